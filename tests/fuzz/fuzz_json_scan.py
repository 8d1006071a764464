"""The route scanner against the decoder: on raw bodies, and on valid JSON made to mislead it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.fuzz.harness import fuzz, instrumented

with instrumented():
    from proxy.wire import moa_scan
    from proxy.wire.moa import BadRequest, Ec, NotMoa, Route, parse_route

KEYS = (
    *(b'"action"', b'"params"', b'"m"', b'"args"', b'"props"', b'"x"', b'""', b'"hashid"'),
    *(
        b'"\\u006d"',
        b'"\\u0061ction"',
        b'"prop\\u0073"',
        b'"x\\"m"',
        b'"\\\\"',
        b'"m\\\\"',
        b'"am"',
    ),
)
SCALARS = (
    *(b'"/service/a"', b'"/a#g"', b'"f"', b'"\\/b\\u00e9"', b'"m"', b'"]}"', b'"},"', b'"\\""'),
    *(
        b'"\\ud800"',
        b'""',
        b"1",
        b"-2.5e3",
        b"true",
        b"null",
        b"[]",
        b"{}",
        b'"items :b"',
        b'"\xc3\xa9"',
    ),
)
SPACES = (b"", b"", b"", b"", b" ", b"\n\t ")
START = b'{"action":"/a","params":{"m":"f","args":['


def check(data: bytes) -> None:
    """The first byte says whether the rest is a body, arguments, or a recipe for JSON."""
    kind, rest = (data[0] % 4, data[1:]) if data else (0, b"")
    if kind == 0:
        compare(rest)
    elif kind == 1:
        compare(START + rest + b"]}}")
    else:
        body = Recipe(rest).request()
        json.loads(body)
        compare(body, is_json=True)


@contextmanager
def thresholds(small: int, large: int) -> Iterator[None]:
    """Scan bodies from `small` bytes on, and leap from colon to colon from `large` on."""
    before = moa_scan._SMALL, moa_scan._LARGE
    moa_scan._SMALL, moa_scan._LARGE = small, large
    try:
        yield
    finally:
        moa_scan._SMALL, moa_scan._LARGE = before


def compare(body: bytes, *, is_json: bool = False) -> None:
    """Both ways through the scanner against the decoder, however short the body is."""
    expected = outcome(body, parse_route)
    for large in (0, 1 << 40):
        with thresholds(0, large):
            got = outcome(body, moa_scan.scan_route)
        if isinstance(got, Route) and not isinstance(expected, Route):
            # The one difference: arguments that only the server judges.
            assert not is_json, body
            assert expected[0] is NotMoa or expected[1] is Ec.SERIALIZATION, (expected, body)
        else:
            assert got == expected, (got, expected, body)


def outcome(
    body: bytes, find: Callable[[bytes], Route]
) -> Route | tuple[type[Exception], Ec | None]:
    """The route, or what was raised."""
    try:
        return find(body)
    except NotMoa:
        return NotMoa, None
    except BadRequest as bad:
        return BadRequest, bad.ec


class Recipe:
    """Writes one valid JSON object; each byte is a choice, and missing bytes choose 0."""

    def __init__(self, choices: bytes) -> None:
        self._choices = choices
        self._at = 0

    def _next(self, count: int) -> int:
        at, self._at = self._at, self._at + 1
        return self._choices[at] % count if at < len(self._choices) else 0

    def _space(self) -> bytes:
        return SPACES[self._next(len(SPACES))]

    def request(self) -> bytes:
        """Any object, or more often one that begins as a request and may go on as none."""
        body = self._object(4) if self._next(4) == 3 else self._usual()
        return self._space() + body + self._space()

    def _usual(self) -> bytes:
        """Members of a request in a usual order, each of them or not, then any members."""
        params = [self._member(b'"m"', 0)] if self._next(3) else []
        params += [self._member(b'"args"', 3), *self._members(self._next(3), 2)]
        inner = b'"params":{' + b",".join(params) + b"}"
        first = [self._member(b'"action"', 0)] if self._next(3) else []
        first += [self._member(b'"props"', 1)] if self._next(4) == 3 else []
        return b"{" + b",".join([*first, inner, *self._members(self._next(3), 2)]) + b"}"

    def _object(self, depth: int) -> bytes:
        return b"{" + b",".join(self._members(self._next(6), depth)) + b"}"

    def _members(self, count: int, depth: int) -> list[bytes]:
        return [self._member(KEYS[self._next(len(KEYS))], depth) for _ in range(count)]

    def _member(self, key: bytes, depth: int) -> bytes:
        colon = self._space() + b":" + self._space()
        return self._space() + key + colon + self._value(depth) + self._space()

    def _value(self, depth: int) -> bytes:
        kind = self._next(8) if depth else 0
        if kind >= 6:
            return self._object(depth - 1)
        if kind >= 4:
            values = [self._space() + self._value(depth - 1) for _ in range(self._next(4))]
            return b"[" + b",".join(values) + b"]"
        return SCALARS[self._next(len(SCALARS))]


if __name__ == "__main__":
    fuzz(check)
