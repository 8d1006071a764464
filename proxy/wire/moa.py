"""The JSON envelope of MOA: the route of a request, the `ec` of a reply (docs/PROTOCOL.md §1, §4).

The agent reads only what it needs to route; everything else is the server's to judge. Where
a body is not a JSON object in strict UTF-8, it is not MOA and is passed on untouched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from types import MappingProxyType

from proxy.wire.value import value

MAX_URI_CHARS = 512
"""A service URI names keys of the registry and labels of metrics, so it has a bound."""

_EC_SCAN_LIMIT = 16 * 1024


class Ec(IntEnum):
    """Result codes of MOA (public)."""

    SUCCESS = 200
    THROWABLE = 300
    INITIALIZATION = 301
    SERIALIZATION = 302
    REMOTING = 303
    TIMEOUT = 304
    USER_CANCELLED = 305
    NO_URI_FOUND = 401
    INVALID_TARGET_URI = 402
    SERVICE_NOT_FOUND = 501
    METHOD_NOT_FOUND = 502
    INVOCATION_TARGET = 503
    THREAD_POOL_IS_FULL = 504
    ASYNC_SUBMIT = 505
    IP_NOT_ALLOWED = 506
    INITIALIZATION_CLIENT = 3010
    INITIALIZATION_SERVER = 3011
    SERIALIZATION_CLIENT = 3020
    SERIALIZATION_SERVER = 3021
    REMOTING_CLIENT = 3030
    REMOTING_SERVER = 3031
    TIMEOUT_CLIENT = 3040
    TIMEOUT_SERVER = 3041


_TRANSPORT_FAILURES = frozenset(
    {
        Ec.REMOTING,
        Ec.TIMEOUT,
        Ec.THREAD_POOL_IS_FULL,
        Ec.REMOTING_CLIENT,
        Ec.REMOTING_SERVER,
        Ec.TIMEOUT_CLIENT,
        Ec.TIMEOUT_SERVER,
    }
)


def is_transport_failure(ec: int) -> bool:
    """Whether a reply with this code counts towards ejecting the instance."""
    return ec in _TRANSPORT_FAILURES


EMPTY_REQUEST = "the request is empty: expected a body with a service (action) and a method (m)"


class NotMoa(Exception):
    """The body is no JSON object: the traffic is not MOA, pass it on as it is."""


class BadRequest(Exception):
    """The body is a JSON object that names no valid route; `ec` and `em` answer the caller."""

    def __init__(self, ec: Ec, em: str) -> None:
        super().__init__(em)
        self.ec = ec
        self.em = em


@value
class Route:
    """What a request asks for; `group` is empty when the caller named none."""

    uri: str
    group: str
    method: str
    props: Mapping[str, str]


_NO_PROPS: Mapping[str, str] = MappingProxyType({})

# No number matters to a route. `len` spares converting them: a number of 100 000 digits costs
# quadratic time in int(), and more than 4300 digits raise ValueError.
_DECODER = json.JSONDecoder(parse_int=len, parse_float=len)


def parse_route(body: bytes) -> Route:
    """The route of a request's JSON.

    `action` is `uri` or `uri#group`. Of duplicate keys the last counts, as in Go's and
    Python's decoders; keys are matched with case; NaN and Infinity pass, the server judges
    them. A byte-order mark, invalid UTF-8 and text after the object are not JSON. Entries of
    `props` that are not text are left out, and `[]`, PHP's empty map, is no props.

    Raises NotMoa when the body is not a JSON object, BadRequest when it is one without a
    usable `action` (401, 402), `params` (302) or `params.m` (502).
    """
    return route_of(_decode_object(body))


def route_of(request: dict[str, object]) -> Route:
    """The route that a decoded request names; the rules are the same in every body codec.

    Raises BadRequest as `parse_route` does.
    """
    uri, group = _read_action(request)
    return Route(uri, group, _read_method(request), _read_props(request))


def _decode_object(body: bytes) -> dict[str, object]:
    if not body.startswith(b"{") and not body.lstrip(b" \t\r\n").startswith(b"{"):
        raise NotMoa(f"expected a JSON object, got {body[:16]!r}")
    try:
        decoded = _decode(body.decode())
    except RecursionError:
        raise BadRequest(Ec.SERIALIZATION, "request is nested too deeply") from None
    except ValueError as error:
        raise NotMoa(f"not JSON: {error}") from None
    if not isinstance(decoded, dict):
        raise NotMoa(f"expected a JSON object, got {type(decoded).__name__}")
    return decoded


def _decode(text: str) -> object:
    """As `_DECODER.decode`, which looks for space around the value whether there is any or not."""
    if text.startswith("{"):
        value, end = _DECODER.raw_decode(text)
        if end == len(text) or not text[end:].strip(" \t\n\r"):
            return value
    return _DECODER.decode(text)


def _read_action(request: dict[str, object]) -> tuple[str, str]:
    action = request.get("action")
    if action is None:
        raise BadRequest(Ec.NO_URI_FOUND, "No uri found: the request has no action")
    if not isinstance(action, str):
        raise BadRequest(
            Ec.INVALID_TARGET_URI, f"Invalid target uri: action is {_kind(action)}, expected text"
        )
    return _split_action(action)


@lru_cache(maxsize=1024)
def _split_action(action: str) -> tuple[str, str]:
    """Remembered, because a node asks few services, very often."""
    uri, _, group = action.partition("#")
    if not uri or len(action) > MAX_URI_CHARS or " " in action or not action.isprintable():
        raise BadRequest(
            Ec.INVALID_TARGET_URI,
            f"Invalid target uri: {action[:64]!a}, expected uri or uri#group of at most "
            f"{MAX_URI_CHARS} printable characters without spaces",
        )
    return uri, group


def _read_method(request: dict[str, object]) -> str:
    params = request.get("params")
    if not isinstance(params, dict):
        raise BadRequest(
            Ec.SERIALIZATION, f"params is {_kind(params)}, expected an object with m and args"
        )
    method = params.get("m")
    if not isinstance(method, str) or not _is_text(method):
        raise BadRequest(
            Ec.METHOD_NOT_FOUND, f"Method not found: params.m is {_kind(method)}, expected text"
        )
    return method


def _read_props(request: dict[str, object]) -> Mapping[str, str]:
    props = request.get("props")
    if not props:
        return _NO_PROPS
    if not isinstance(props, dict):
        raise BadRequest(Ec.SERIALIZATION, f"props is {_kind(props)}, expected an object")
    return MappingProxyType(
        {
            key: value
            for key, value in props.items()
            if isinstance(value, str) and _is_text(key) and _is_text(value)
        }
    )


_SURROGATES = chr(0xD800), chr(0xDFFF)


def _is_text(text: str) -> bool:
    """Whether it can leave as UTF-8: JSON can spell half a surrogate pair as \\ud800."""
    return text.isascii() or not any(_SURROGATES[0] <= char <= _SURROGATES[1] for char in text)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", bool: "a boolean", int: "a number"}
    if value is None:
        return "missing"
    return names.get(type(value), "a number" if isinstance(value, float) else "invalid text")


def error_body(ec: Ec, em: str) -> bytes:
    """The JSON of a reply that reports an error; pure ASCII."""
    return json.dumps({"ec": int(ec), "em": em, "result": None}, separators=(",", ":")).encode()


UNSENT = "not sent: "
"""How `em` begins in a 303 that promises that no service has seen the request."""
_UNSENT_START = b'{"ec":303,"em":"not sent: '


def unsent_body(why: str) -> bytes:
    """A 303 that promises that no service has seen the request (docs/PROTOCOL.md §4)."""
    return error_body(Ec.REMOTING, UNSENT + why)


def is_unsent(body: bytes) -> bool:
    """Whether a reply is an `unsent_body`: the request may go to another instance."""
    return body.startswith(_UNSENT_START)


_EC_FIRST = re.compile(
    rb'\s*\{\s*(?:"em"\s*:\s*(?:null|"(?:[^"\\]|\\.){0,1024}")\s*,\s*)?"ec"\s*:\s*(-?\d{1,9})\s*[,}]',
    re.DOTALL,
)


_EC_SUCCESS = b'{"ec":200,'
"""How nearly every reply begins: worth a short cut."""


def parse_ec(body: bytes) -> int | None:
    """The `ec` of a reply, or None where it cannot be told cheaply.

    Servers write it first or behind `em`; a reply of other order is decoded when it is at
    most 16 KiB, which every error reply is.
    """
    if body.startswith(_EC_SUCCESS):
        return Ec.SUCCESS
    if match := _EC_FIRST.match(body):
        return int(match.group(1))
    if len(body) > _EC_SCAN_LIMIT or not body.lstrip(b" \t\r\n").startswith(b"{"):
        return None
    try:
        decoded = json.loads(body.decode())
    except (ValueError, RecursionError):
        return None
    ec = decoded.get("ec") if isinstance(decoded, dict) else None
    return ec if isinstance(ec, int) and not isinstance(ec, bool) else None
