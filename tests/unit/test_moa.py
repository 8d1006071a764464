"""The JSON envelope: routes, what is not MOA, what is a bad request, result codes."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.moa import (
    BadRequest,
    Ec,
    NotMoa,
    error_body,
    is_transport_failure,
    is_unsent,
    parse_ec,
    parse_route,
    unsent_body,
)

PARAMS = b'"params":{"m":"f"}'


def test_route_of_the_public_example() -> None:
    route = parse_route(
        b'{"action":"/service/user-service","params":{"m":"getName","args":["a",1]}}'
    )
    assert (route.uri, route.group, route.method) == ("/service/user-service", "", "getName")
    assert route.props == {}


def test_action_names_a_group() -> None:
    route = parse_route(b'{"action":"/service/a#blue",' + PARAMS + b"}")
    assert (route.uri, route.group) == ("/service/a", "blue")


def test_props_keep_text_only() -> None:
    body = (
        b'{"action":"/a","params":{"m":"f"},"props":{"hashid":"7","n":1,"bad":"\\udc00","x":null}}'
    )
    assert parse_route(body).props == {"hashid": "7"}


@pytest.mark.parametrize("props", [b"[]", b"{}", b"null", b'""'])
def test_empty_props_in_any_language(props: bytes) -> None:
    assert parse_route(b'{"action":"/a",' + PARAMS + b',"props":' + props + b"}").props == {}


def test_values_that_only_the_server_may_judge_pass() -> None:
    huge = b"1" * 100_000
    body = b'{"action":"/a","params":{"m":"f","args":[NaN,-Infinity,1e999,"\\ud800",%b]}}' % huge
    assert parse_route(body).method == "f"


def test_last_of_duplicate_keys_counts() -> None:
    assert parse_route(b'{"action":"/a",' + PARAMS + b',"action":"/b"}').uri == "/b"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"foo",
        b"user:1",
        b"[]",
        b"123",
        b'"{}"',
        b"{",
        b'{"action":"/a"',
        b"{} {}",
        b"{'action':'/a'}",
        b'\xef\xbb\xbf{"action":"/a"}',
        b'{"action":"\xff"}',
        b'{"action":"\xed\xa0\x80"}',
        '{"action":"/a"}'.encode("utf-16"),
        b'{"action":"a\nb"}',
        b"\0{}",
    ],
)
def test_what_is_no_json_object_is_not_moa(body: bytes) -> None:
    with pytest.raises(NotMoa):
        parse_route(body)


@pytest.mark.parametrize(
    ("body", "ec"),
    [
        (b"{}", Ec.NO_URI_FOUND),
        (b'{"action":null}', Ec.NO_URI_FOUND),
        (b'{"Action":"/a"}', Ec.NO_URI_FOUND),
        (b'{"action":7}', Ec.INVALID_TARGET_URI),
        (b'{"action":true}', Ec.INVALID_TARGET_URI),
        (b'{"action":{}}', Ec.INVALID_TARGET_URI),
        (b'{"action":""}', Ec.INVALID_TARGET_URI),
        (b'{"action":"#g"}', Ec.INVALID_TARGET_URI),
        (b'{"action":"/a b"}', Ec.INVALID_TARGET_URI),
        (b'{"action":"/a\\r\\nb"}', Ec.INVALID_TARGET_URI),
        (b'{"action":"\\ud800"}', Ec.INVALID_TARGET_URI),
        (b'{"action":"' + b"a" * 513 + b'"}', Ec.INVALID_TARGET_URI),
        (b'{"action":"/a"}', Ec.SERIALIZATION),
        (b'{"action":"/a","params":[]}', Ec.SERIALIZATION),
        (b'{"action":"/a","params":{}}', Ec.METHOD_NOT_FOUND),
        (b'{"action":"/a","params":{"m":1.5}}', Ec.METHOD_NOT_FOUND),
        (b'{"action":"/a","params":{"m":"\\ud800"}}', Ec.METHOD_NOT_FOUND),
        (b'{"action":"/a","params":{"m":"f"},"props":[1]}', Ec.SERIALIZATION),
        (b'{"action":"/a","params":' + b"[" * 100_000 + b"]" * 100_000 + b"}", Ec.SERIALIZATION),
    ],
)
def test_bad_request_says_what_is_wrong(body: bytes, ec: Ec) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_route(body)
    assert caught.value.ec == ec
    assert caught.value.em
    assert json.loads(error_body(ec, caught.value.em))["ec"] == ec


@given(st.binary(max_size=60) | st.text('{}[]":,#am/ \\u', max_size=40).map(str.encode))
def test_any_body_has_a_clear_answer(body: bytes) -> None:
    with suppress(NotMoa, BadRequest):
        parse_route(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    st.from_regex(r"/[a-z/\-]{1,20}", fullmatch=True),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    st.lists(JSON, max_size=4),
    st.booleans(),
)
def test_route_survives_any_arguments(uri: str, method: str, args: list[object], asc: bool) -> None:
    request = {"params": {"args": args, "m": method}, "action": uri, "x": args}
    route = parse_route(json.dumps(request, ensure_ascii=asc).encode("utf-8", "replace"))
    assert (route.uri, route.method) == (uri, method)


TRANSPORT = {303, 304, 504, 3030, 3031, 3040, 3041}


def test_transport_failures_are_those_of_the_protocol() -> None:
    assert {ec for ec in range(4000) if is_transport_failure(ec)} == TRANSPORT


def test_codes_are_the_public_ones() -> None:
    public = [200, *range(300, 306), 401, 402, *range(501, 507)]
    assert sorted(Ec) == [*public, 3010, 3011, 3020, 3021, 3030, 3031, 3040, 3041]


def test_error_body_is_ascii_json() -> None:
    assert error_body(Ec.TIMEOUT, 'a"\n\u00e9\ud800') == (
        b'{"ec":304,"em":"a\\"\\n\\u00e9\\ud800","result":null}'
    )


@pytest.mark.parametrize(
    ("body", "ec"),
    [
        (b'{"ec":200,"em":"","result":1}', 200),
        (b' { "ec" : 0 }', 0),
        (b'{"em":"a\\",\\"ec\\":1","ec":3031,"result":{"ec":5}}', 3031),
        (b'{"em":null,"ec":304}', 304),
        (b'{"result":{"ec":5},"ec":504}', 504),
        (b'{"ec":"200"}', None),
        (b'{"ec":true}', None),
        (b'{"ec":2.5}', None),
        (b'{"result":{"ec":5}}', None),
        (b"PONG", None),
        (b'{"ec":', None),
        (b'{"x":' + b"[" * 8000, None),
        (b'{"x":"\xff","ec":304}', None),
        (b'{"x":"' + b"y" * 20_000 + b'","ec":304}', None),
    ],
)
def test_ec_of_a_reply(body: bytes, ec: int | None) -> None:
    assert parse_ec(body) == ec


def test_what_was_not_sent_says_so() -> None:
    body = unsent_body("nobody is there")
    assert parse_ec(body) == Ec.REMOTING
    assert is_unsent(body)
    assert not is_unsent(error_body(Ec.REMOTING, "nobody is there"))
    assert not is_unsent(error_body(Ec.TIMEOUT, "not sent: "))


@given(st.integers(-999, 9999), st.text(max_size=20), JSON, st.permutations(["ec", "em", "result"]))
def test_ec_is_found_in_any_order_of_keys(
    ec: int, em: str, result: object, order: list[str]
) -> None:
    reply = {"ec": ec, "em": em, "result": result}
    assert parse_ec(json.dumps({key: reply[key] for key in order}).encode()) == ec
