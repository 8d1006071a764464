"""The route scanner: the decoder is its judge, except for arguments that nobody reads."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.wire import moa_scan
from proxy.wire.moa import BadRequest, Ec, NotMoa, Route, parse_route
from proxy.wire.moa_scan import scan_route
from tests.fuzz.fuzz_json_scan import Recipe, compare, thresholds

ROUTE = Route("/a", "", "f", {})
BIG = '"' + "x" * 3000 + '"'


@pytest.fixture(autouse=True)
def _scan_bodies_of_any_size() -> Iterator[None]:
    with thresholds(0, moa_scan._LARGE):
        yield


def must_scan(body: bytes, monkeypatch: pytest.MonkeyPatch) -> Route:
    """The route, found without the decoder."""
    monkeypatch.setattr(moa_scan, "parse_route", lambda body: pytest.fail("was decoded"))
    route = scan_route(body)
    monkeypatch.undo()
    assert route == parse_route(body)
    return route


@pytest.mark.parametrize(
    "body",
    [
        '{"action":"/a","params":{"m":"f","args":[%s]}}',
        '{"action":"/a","params":{"m":"f","args":[%s]},"props":{"hashid":"7"}}',
        '{"action":"/a","params":{"args":[%s],"m":"f"},"props":{"hashid":"7"}}',
        '{"params":{"m":"f","args":[%s]},"action":"/a"}',
        '{"params":{"args":[%s],"m":"f"},"action":"/a","props":{}}',
        '{"action":"/a","props":{"k":"v"},"params":{"m":"f","args":[%s]}}',
        '{"action":"\\/a#g","params":{"m":"\\u00e9\\ud83d\\ude00","args":[%s]},"props":[]}',
        ' { "action" : "/a" ,\n"params" : { "m" : "f" , "args" : [ %s ] }\r\n,"props": null }\t',
        '{"action":"/a","params":{"m":"f","args":[%s]},"trace":{"id":[1]}}',
        '{"action":"/a","params":{"m":"f","args":{"k":[%s]}}}',
        '{"action":"/a","params":{"m":"f","args":["m","action",{"a":{"b":"]}"}},{"name":1}, %s]}}',
        '{"action":"/\u00e9","params":{"m":"\u4e2d","args":[%s]}}',
    ],
)
def test_usual_requests_are_not_decoded(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    must_scan((body % BIG).encode(), monkeypatch)
    must_scan((body % ("[1,2]," * 40_000 + BIG)).encode(), monkeypatch)


@pytest.mark.parametrize(
    ("body", "uri", "method"),
    [
        ('{"action":"/a","params":{"m":"f","args":[]},"action":"/b"}', "/b", "f"),
        ('{"action":"/a","params":{"m":"f","args":[],"m":"g"}}', "/a", "g"),
        ('{"action":"/a","params":{"m":"f","args":[1],"\\u006d":"g"}}', "/a", "g"),
        ('{"action":"/a","params":{"m":"f","args":[1],"\\u006D":"g"}}', "/a", "g"),
        ('{"action":"/a","params":{"m":"f","args":[1]},"a\\u0063tion":"/b"}', "/b", "f"),
        ('{"action":"/a","params":{"m":"f","args":[]},"params":{"m":"g"}}', "/a", "g"),
        ('{"action":"/a","params":{"m":"f","args":[1],"x\\"m":"g"}}', "/a", "f"),
        ('{"action":"/a","params":{"m":"f","args":[1],"x\\\\":"y","m":"g"}}', "/a", "g"),
        ('{"action":"/a","params":{"m":"f","args":[{"m":"g"}]}}', "/a", "f"),
        ('{"action":"/a","params":{"m":"f","args":[{"action":"/b"}]}}', "/a", "f"),
        ('{"action":"/a","params":{"m":"f","args":["],\\"m\\":\\"g\\"}}"]}}', "/a", "f"),
        ('{"action":"/a","params":{"m":"f","args":[1]},"x":{"m":"g"}}', "/a", "f"),
        ('{"action":"/a","params":{"m":"f","args":[{}]},"x":{"y":[],"m":"g"}}', "/a", "f"),
        ('{"action":"/a","params":{"m":"f","args":[1]},"m":"g"}', "/a", "f"),
        ('{"action":"/a","params":{"m":"f","args":[1],"action":"/b"}}', "/a", "f"),
        ('{"action":"/a","params":{"m":"f","args":[1],"m" : "g"}}', "/a", "g"),
        ('{"action":"/a","params":{"m":"f","args":[1],"m"\n \t:"g"}}', "/a", "g"),
        ('{"action":"/a","params":{"m":"f","args":"m"},"x":"m"}', "/a", "f"),
        ('{"action":"/a","params":{"m":"f","args":["items : 5"],"m":"g"}}', "/a", "g"),
        ('{"action":"/a","params":{"m":"f","args":["\\"m\\" : 5"],"m":"g"}}', "/a", "g"),
        ('{"x":{"action":"/b"},"action":"/a","params":{"m":"f"}}', "/a", "f"),
        ('{"action":"/a","params":"x","params":{"m":"f","args":[1]}}', "/a", "f"),
    ],
)
def test_keys_count_where_the_decoder_sees_them(body: str, uri: str, method: str) -> None:
    compare(body.encode(), is_json=True)
    route = scan_route(body.encode())
    assert (route.uri, route.method) == (uri, method)


def test_late_props_count_once_and_the_last_counts() -> None:
    body = b'{"action":"/a","props":{"k":"1"},"params":{"m":"f","args":[2]},"props":{"k":"2"}}'
    assert scan_route(body).props == {"k": "2"}


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (b'"a",', "a comma too many"),
        (b"garbage", "no JSON at all"),
        (b'"unfinished', "a text without an end"),
        (b"1]]]]", "brackets that were never opened"),
        (b'"\xff\xfe"', "no UTF-8, as GBK of old clients"),
        (b'"a\nb"', "a control character in a text"),
        (b"[" * 100_000 + b"]" * 100_000, "deeper than a decoder goes"),
    ],
)
def test_broken_arguments_are_the_server_s_to_judge(args: bytes, why: str) -> None:
    body = b'{"action":"/a","params":{"m":"f","args":[%b]}}' % args
    with pytest.raises((NotMoa, BadRequest)):
        parse_route(body)
    assert scan_route(body) == ROUTE, why


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"foo",
        b"[]",
        b"{}",
        b'{"action":"/a","params":{"m":"f","args":[1]}',
        b'{"action":"/a","params":{"m":"f","args":[1',
        b'{"action":"/a","params":{"m":"f","args":[1]}} x',
        b'{"action":"/a","params":{"m":"f","args":[1]},"props":{"a":"b"}',
        b'{"action":"/a","params":{"m":"f","args":[1]},"props":{"a":"b"}}}',
        b'{"action":"/a","params":{"args":[1],"m":"f",},"props":{}}',
        b'{"action":"\xff","params":{"m":"f","args":[1]}}',
        b'{"action":"/a","params":{"m":"\\x","args":[1]}}',
        b'\xef\xbb\xbf{"action":"/a","params":{"m":"f","args":[1]}}',
        b'{"action":"/a b","params":{"m":"f","args":[1]}}',
        b'{"action":"","params":{"m":"f","args":["x]}}',
        b'{"action":7,"params":{"m":"f","args":[1]}}',
        b'{"params":{"m":"f","args":[1]}}',
        b'{"action":"/a","params":{"args":[1]}}',
        b'{"action":"/a","params":{"m":"\\ud800","args":[1]}}',
        b'{"action":"/a","params":{"m":"f","args":[1]},"props":[1]}',
        b'{"action":"/a","params":{"m":"f","args":[1]},"props":{"a":1}}',
    ],
)
def test_everything_else_is_refused_or_read_as_by_the_decoder(body: bytes) -> None:
    def outcome() -> tuple[object, ...]:
        try:
            return ("route", parse_route(body))
        except NotMoa:
            return ("not MOA",)
        except BadRequest as bad:
            return ("bad", bad.ec, bad.em)

    expected = outcome()
    if expected[0] == "route":
        assert scan_route(body) == expected[1]
        return
    with pytest.raises((NotMoa, BadRequest)) as caught:
        scan_route(body)
    if isinstance(caught.value, BadRequest):
        assert ("bad", caught.value.ec, caught.value.em) == expected
    else:
        assert expected == ("not MOA",)


def test_short_bodies_are_decoded() -> None:
    with thresholds(2048, moa_scan._LARGE), pytest.raises(NotMoa):
        scan_route(b'{"action":"/a","params":{"m":"f","args":[garbage]}}')


@settings(max_examples=600)
@given(st.binary(max_size=120))
@example(bytes(range(60)))
def test_scanner_agrees_with_the_decoder_on_any_json(choices: bytes) -> None:
    body = Recipe(choices).request()
    json.loads(body)
    compare(body, is_json=True)


TEXT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\{}[]:,mp'), max_size=8
)
KEY = st.sampled_from(["action", "params", "props", "m", "args", "x", "a:b"]) | TEXT
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=3),
    max_leaves=10,
)
REQUEST = st.builds(
    lambda action, method, args, props, more, order: {
        **({"x": more} if order & 1 else {}),
        "action": action,
        **({"props": props} if order & 2 else {}),
        "params": {"m": method, "args": args} if order & 4 else {"args": args, "m": method},
        **({} if order & 2 else {"props": props}),
        **({"y": more} if order & 8 else {}),
    },
    st.just("/service/a") | TEXT,
    TEXT,
    VALUE,
    st.dictionaries(KEY, TEXT, max_size=3) | VALUE,
    VALUE,
    st.integers(0, 15),
)
STYLES = st.tuples(
    st.booleans(), st.booleans(), st.sampled_from([(",", ":"), (", ", ": "), (" , ", " :")])
)


def spelled(request: object, style: tuple[bool, bool, tuple[str, str]]) -> bytes:
    ascii_only, sort, separators = style
    return json.dumps(
        request, ensure_ascii=ascii_only, sort_keys=sort, separators=separators
    ).encode()


@settings(max_examples=200)
@given(REQUEST, STYLES)
def test_scanner_agrees_on_requests_of_any_client(
    request: object, style: tuple[bool, bool, tuple[str, str]]
) -> None:
    compare(spelled(request, style), is_json=True)


@settings(max_examples=200)
@given(REQUEST, STYLES, st.lists(st.tuples(st.integers(0), st.binary(max_size=2)), max_size=4))
def test_scanner_agrees_on_damaged_requests(
    request: object,
    style: tuple[bool, bool, tuple[str, str]],
    damage: list[tuple[int, bytes]],
) -> None:
    body = spelled(request, style)
    for at, instead in damage:
        cut = at % (len(body) + 1)
        body = body[:cut] + instead + body[cut + 1 :]
    compare(body)


@given(st.binary(max_size=80) | st.text('{}[]":,#am/ \\u', max_size=60).map(str.encode))
def test_scanner_agrees_on_garbage(body: bytes) -> None:
    compare(body)


def test_refusal_keeps_the_decoder_s_words() -> None:
    body = b'{"action":7,"params":{"m":"f","args":[1]}}'
    with pytest.raises(BadRequest, match="action is a number") as caught:
        scan_route(body)
    assert caught.value.ec is Ec.INVALID_TARGET_URI
