"""JSON to Hessian and back: what crosses, and what is refused by its path."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.hessian import (
    Date,
    HessianError,
    HessianList,
    HessianMap,
    HessianObject,
    Limits,
    Long,
    Untranslatable,
    Value,
    decode,
    encode,
    from_json,
    hessian_to_json,
    json_to_hessian,
    to_json,
)
from proxy.wire.hessian.translate import JsonValue
from tests.support.hessian_outline import outline

CROSSES: list[tuple[Value, JsonValue]] = [
    (None, None),
    (True, True),
    (5, 5),
    (Long(5), 5),
    (Long(-(2**63)), -(2**63)),
    (2.5, 2.5),
    (-0.0, -0.0),
    ("\U0001f600", "\U0001f600"),
    (Date(894621091000), 894621091000),
    (HessianList([1, HessianList([], "[int")], "java.util.LinkedList"), [1, []]),
    (HessianMap([("a", 1), (5, 2), (Long(6), 3)], "java.util.TreeMap"), {"a": 1, "5": 2, "6": 3}),
    (HessianMap([("a", 1), ("b", 2), ("a", 3)]), {"a": 3, "b": 2}),
    (HessianObject("com.x.User", ("id", "name"), [Long(1), "x"]), {"id": 1, "name": "x"}),
    (HessianObject("java.sql.Timestamp", ("value",), [Date(7)]), 7),
    (HessianObject("com.caucho.hessian.io.FloatHandle", ("_value",), [1.5]), 1.5),
    (HessianObject("com.caucho.hessian.io.ByteHandle", ("_value",), [5]), 5),
]


@pytest.mark.parametrize(("value", "expected"), CROSSES)
def test_hessian_to_json(value: Value, expected: JsonValue) -> None:
    body = hessian_to_json(encode(value))
    assert body == json.dumps(expected, ensure_ascii=False, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("null", None),
        ("true", True),
        ("2147483647", 2147483647),
        ("-2147483648", -2147483648),
        ("2147483648", Long(2147483648)),
        ("-9223372036854775808", Long(-(2**63))),
        ("1.0", 1.0),
        ("1e3", 1000.0),
        ("-0.0", -0.0),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ("[1,[]]", HessianList([1, HessianList([])])),
        ('{"a":{"b":null}}', HessianMap([("a", HessianMap([("b", None)]))])),
        ('{"a":1,"a":2}', HessianMap([("a", 2)])),
    ],
)
def test_json_to_hessian(text: str, expected: Value) -> None:
    assert outline(decode(json_to_hessian(text.encode()))) == outline(expected)


LOOP = HessianList([1])
LOOP.items.append(HessianMap([("again", LOOP)]))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "$: nan: JSON has no such number"),
        (HessianMap([("result", HessianList([1, float("inf")]))]), "$.result[1]: inf: JSON has"),
        (HessianList([b"\x01"]), "$[0]: b'\\x01': binary data has no place in JSON"),
        (HessianMap([("x", "a\ud800")]), "$.x: 'a\\ud800': text with half a surrogate pair"),
        (HessianMap([(2.5, 1)]), "$: HessianMap: has a key of type float"),
        (HessianMap([(None, 1)]), "has a key of type NoneType"),
        (HessianMap([(True, 1)]), "has a key of type bool"),
        (HessianMap([("5", 1), (5, 1)], "T"), "$: HessianMap of type T: has two keys that are '5'"),
        (LOOP, "$[1].again: HessianList: holds itself"),
        (
            HessianList([HessianObject("java.math.BigDecimal", ("value",), ["1.5"])]),
            "$[0]: HessianObject of type java.math.BigDecimal: an object of the Java platform",
        ),
    ],
)
def test_what_json_cannot_hold_is_refused_by_path(value: Value, words: str) -> None:
    with pytest.raises(Untranslatable) as caught:
        hessian_to_json(encode(value))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a":[1,9223372036854775808]}', "$.a[1]: 9223372036854775808: an integer of more than"),
        ("1" * 100_000, "an integer of more than 64 bits"),
        ('["\\udc00"]', "$[0]: '\\udc00': text with half a surrogate pair"),
        ('{"\\udc00":1}', "$: dict: text with half a surrogate pair"),
        ("[1e999]", "$[0]: inf: JSON has no such number"),
        ("[NaN]", "$: the whole value: not JSON: NaN is no number of JSON"),
        ("[", "$: the whole value: not JSON"),
        ("[" * 100_000, "$: the whole value: not JSON"),
        ("[" * 600 + "]" * 600, "is nested deeper than 512 levels"),
    ],
    ids=lambda text: text[:20],
)
def test_what_hessian_cannot_hold_is_refused_by_path(text: str, words: str) -> None:
    with pytest.raises(Untranslatable) as caught:
        json_to_hessian(text.encode())
    assert words in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_json_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(Untranslatable, match="not JSON"):
        json_to_hessian(b'"\xff"')


def test_broken_hessian_is_no_matter_of_translation() -> None:
    with pytest.raises(HessianError):
        hessian_to_json(b"\x79")


def test_shared_value_is_written_twice() -> None:
    shared = HessianList([1])
    assert to_json(HessianList([shared, shared])) == [[1], [1]]


def test_sharing_does_not_multiply_without_bound() -> None:
    value = HessianList(["x" * 1000])
    for _ in range(40):
        value = HessianList([value, value])
    with pytest.raises(Untranslatable) as caught:
        hessian_to_json(encode(value), Limits(max_bytes=20_000))
    assert caught.value.reason == "with this the whole grows over 20000 bytes"


def test_json_text_has_the_limit_of_a_body() -> None:
    body = encode(HessianList([0.1] * 100))
    with pytest.raises(Untranslatable, match="1001 bytes of JSON, the limit is 1000"):
        hessian_to_json(encode(HessianList([-0.125e-5] * 100)), Limits(max_bytes=1000))
    assert len(hessian_to_json(body, Limits(max_bytes=1000))) == 401


JSON: st.SearchStrategy[JsonValue] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=30,
)


@given(JSON)
def test_json_survives_the_way_there_and_back(value: JsonValue) -> None:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    assert hessian_to_json(json_to_hessian(text)) == text
    assert to_json(from_json(value)) == value
