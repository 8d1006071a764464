"""The route of a Hessian request and the code of a reply, found without reading the values."""

from __future__ import annotations

import json
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.hessian import (
    Date,
    HessianError,
    HessianList,
    HessianMap,
    HessianObject,
    Long,
    Scalar,
    Untranslatable,
    Value,
    decode,
    encode,
    error_body,
    hessian_to_json,
    scan_ec,
    scan_route,
)
from proxy.wire.hessian.errors import DEFAULT_LIMITS
from proxy.wire.hessian.skipper import Skipper
from proxy.wire.moa import BadRequest, Ec, NotMoa, Route, parse_route
from tests.support.hessian_forms import write_in_any_form
from tests.support.hessian_values import RANDOMS, SCALARS, TYPES, values

ACTION = "/service/user#blue"
DECOY: Value = HessianMap([("action", "/wrong"), ("m", "wrong"), ("params", "wrong")])
PARAMS = HessianMap([("m", "getName"), ("args", HessianList([DECOY, "m"])), ("n", DECOY)])
PROPS = HessianMap([("hashid", "7")])


def route_of(value: Value) -> Route:
    return scan_route(encode(value))


def assert_route(value: Value) -> None:
    assert route_of(value) == Route("/service/user", "blue", "getName", {"hashid": "7"})


def test_route_of_a_plain_request() -> None:
    assert_route(HessianMap([("action", ACTION), ("params", PARAMS), ("props", PROPS)]))


def test_keys_in_any_order_among_others() -> None:
    entries: list[tuple[Value, Value]] = [
        (DECOY, "a map as key"),
        (None, 1),
        ("x", DECOY),
        (b"action", "bytes"),
        ("props", PROPS),
        ("params", PARAMS),
        ("action", ACTION),
        (PARAMS, PARAMS),
    ]
    assert_route(HessianMap(entries, "com.example.Props"))


def test_last_of_duplicate_keys_counts() -> None:
    wrong: Value = HessianMap([("m", "wrong"), ("wrong", "wrong")])
    entries: list[tuple[Value, Value]] = [("action", "/wrong"), ("params", wrong), ("props", wrong)]
    entries += [("props", 5), ("props", PROPS), ("action", ACTION), ("params", PARAMS)]
    assert_route(HessianMap(entries))


def test_objects_serve_as_maps() -> None:
    params = HessianObject("Params", ("args", "m"), [HessianList([DECOY]), "getName"])
    props = HessianObject("Props", ("hashid",), ["7"])
    assert_route(HessianObject("Request", ("props", "action", "params"), [props, ACTION, params]))


def test_references_to_params_and_props() -> None:
    earlier = HessianList([HessianObject("A", ("x",), [PARAMS]), PROPS])
    entries: list[tuple[Value, Value]] = [("x", earlier), ("params", PARAMS), ("props", PROPS)]
    assert_route(HessianMap([*entries, ("action", ACTION)]))


def test_params_may_be_the_request_itself() -> None:
    request = HessianMap([("m", "getName"), ("action", ACTION), ("props", PROPS)])
    request.entries.append(("params", request))
    assert_route(request)


def test_objects_of_classes_defined_between() -> None:
    body = (
        b"C\x01A\x91\x01mC\x01R\x93\x06action\x06params\x05props"
        b"\x61C\x01B\x91\x06hashid\x12/service/user#blueC\x01D\x90\x60\x07getName\x62\x017"
    )
    assert scan_route(body) == Route("/service/user", "blue", "getName", {"hashid": "7"})


def test_texts_in_chunks_and_in_astral_characters() -> None:
    params = b"R\x00\x01p\x05aramsH\x01mR\x00\x01\xed\xa0\xbd\x01\xed\xb8\x80Z"
    body = b"HR\x00\x03act\x03ion\x02/a" + params + b"Z"
    assert scan_route(body).method == "\U0001f600"


def test_props_keep_text_only() -> None:
    half: Value = "\ud800"
    props = HessianMap([("hashid", "7"), ("n", 1), ("x", half), (half, "x"), (5, "five")])
    assert_route(HessianMap([("action", ACTION), ("params", PARAMS), ("props", props)]))


@pytest.mark.parametrize(
    "body", [b"", b"N", b"\x90", b"\x78", b"\x02hi", b"H", b"HZ\x90", b"@", b"HQ"]
)
def test_what_is_no_hessian_map_is_not_moa(body: bytes) -> None:
    with pytest.raises(NotMoa):
        scan_route(body)


def test_cut_request_is_not_moa() -> None:
    body = encode(HessianMap([("action", ACTION), ("params", PARAMS), ("props", PROPS)]))
    for end in range(len(body)):
        with pytest.raises(NotMoa):
            scan_route(body[:end])


BAD: list[tuple[list[tuple[Value, Value]], Ec]] = [
    ([], Ec.NO_URI_FOUND),
    ([("action", None)], Ec.NO_URI_FOUND),
    ([("Action", ACTION)], Ec.NO_URI_FOUND),
    ([("action", 7)], Ec.INVALID_TARGET_URI),
    ([("action", b"/a")], Ec.INVALID_TARGET_URI),
    ([("action", DECOY)], Ec.INVALID_TARGET_URI),
    ([("action", "/a b")], Ec.INVALID_TARGET_URI),
    ([("action", "\ud800")], Ec.INVALID_TARGET_URI),
    ([("action", ACTION)], Ec.SERIALIZATION),
    ([("action", ACTION), ("params", HessianList([]))], Ec.SERIALIZATION),
    ([("action", ACTION), ("params", Date(1))], Ec.SERIALIZATION),
    ([("action", ACTION), ("params", HessianMap([]))], Ec.METHOD_NOT_FOUND),
    ([("action", ACTION), ("params", HessianMap([("m", Long(5))]))], Ec.METHOD_NOT_FOUND),
    ([("action", ACTION), ("params", HessianMap([("m", "\udfff")]))], Ec.METHOD_NOT_FOUND),
    ([("action", ACTION), ("params", PARAMS), ("props", HessianList([1]))], Ec.SERIALIZATION),
    ([("action", ACTION), ("params", PARAMS), ("props", 0)], Ec.SERIALIZATION),
]


@pytest.mark.parametrize(("entries", "ec"), BAD)
def test_bad_request_says_what_is_wrong(entries: list[tuple[Value, Value]], ec: Ec) -> None:
    with pytest.raises(BadRequest) as caught:
        route_of(HessianMap(entries))
    assert caught.value.ec == ec
    assert caught.value.em


@pytest.mark.parametrize(
    "props", [None, False, "", HessianList([]), HessianList([], "x"), HessianMap([])]
)
def test_empty_props_in_any_language(props: Value) -> None:
    entries: list[tuple[Value, Value]] = [("action", ACTION), ("params", PARAMS), ("props", props)]
    assert route_of(HessianMap(entries)).props == {}


KEYS: st.SearchStrategy[Scalar] = st.sampled_from(["action", "params", "props", "m", "x", 5])
WORDS = st.sampled_from(["/a", "/b#g", "m", "", "\ud83d\ude00", "\ud800"])
FEW_SCALARS: st.SearchStrategy[Scalar] = WORDS | st.sampled_from([None, True, 5, Long(5), 2.5])


@st.composite
def requests(draw: st.DrawFn) -> Value:
    """Values that are nearly requests."""
    value = draw(values(FEW_SCALARS, KEYS, 8))
    if draw(st.booleans()):
        params = HessianMap([("m", draw(WORDS))], draw(TYPES))
        return HessianMap([("action", draw(WORDS)), ("params", params), ("x", value)], draw(TYPES))
    return value


def judge(body: bytes) -> object:
    """What `parse_route` says of the same request in JSON."""
    try:
        return parse_route(hessian_to_json(body))
    except BadRequest as error:
        return error.ec
    except NotMoa:
        return NotMoa


@given(requests(), RANDOMS)
def test_scan_agrees_with_the_parser_of_the_same_json(value: Value, random: Random) -> None:
    body = write_in_any_form(value, random)
    try:
        expected = judge(body)
    except Untranslatable:
        return
    try:
        scanned: object = scan_route(body)
    except BadRequest as error:
        scanned = error.ec
    except NotMoa:
        scanned = NotMoa
    assert scanned == expected


@given(values(SCALARS), RANDOMS)
def test_what_is_read_can_be_passed_over(value: Value, random: Random) -> None:
    body = write_in_any_form(value, random)
    assert Skipper(body, DEFAULT_LIMITS).skip(0) == len(body)


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_have_a_clear_answer(body: bytes, in_map: bool) -> None:
    body = b"H\x06action\x02/a\x06params" + body + b"Z" if in_map else body
    with suppress(NotMoa, BadRequest):
        scan_route(body)
    with suppress(HessianError):
        decode(body)
    scan_ec(body)


@pytest.mark.parametrize(
    ("value", "ec"),
    [
        (HessianMap([("ec", 200), ("em", ""), ("result", "x")]), 200),
        (HessianMap([("em", "x"), ("result", DECOY), ("ec", Long(304))], "t"), 304),
        (HessianObject("Reply", ("em", "ec"), ["", 503]), 503),
        (HessianMap([("ec", "200")]), None),
        (HessianMap([("ec", 2.5)]), None),
        (HessianMap([("ec", True)]), None),
        (HessianMap([("result", HessianMap([("ec", 5)]))]), None),
        (HessianMap([("result", "x" * 20_000), ("ec", 304)]), None),
        (HessianMap([("ec", 304), ("result", "x" * 20_000)]), 304),
        ("ec", None),
    ],
)
def test_ec_of_a_reply(value: Value, ec: int | None) -> None:
    assert scan_ec(encode(value)) == ec


@given(st.binary(max_size=40))
def test_ec_of_any_bytes(body: bytes) -> None:
    scan_ec(body)
    scan_ec(b"H\x02ec" + body)


def test_error_body_is_a_reply() -> None:
    body = error_body(Ec.TIMEOUT, 'a"\n\u00e9')
    assert scan_ec(body) == Ec.TIMEOUT
    assert json.loads(hessian_to_json(body)) == {"ec": 304, "em": 'a"\n\u00e9', "result": None}
