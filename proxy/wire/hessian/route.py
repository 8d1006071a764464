"""The route of a Hessian 2 request, found without making its values (docs/PROTOCOL.md §2)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from proxy.wire.hessian import tags
from proxy.wire.hessian.errors import DEFAULT_LIMITS, HessianError, LimitError, Limits
from proxy.wire.hessian.skipper import Skipper
from proxy.wire.hessian.texts import read_text
from proxy.wire.moa import BadRequest, Ec, NotMoa, Route, route_of

_RECORDS = tags.MAPS | tags.OBJECTS
_NUMBERS = tags.INTS | tags.LONGS | tags.DOUBLES | tags.DATES
_SINGLE: dict[int, object] = {
    tags.NULL: None,
    tags.TRUE: True,
    tags.FALSE: False,
    **dict.fromkeys(_NUMBERS, 1),
    **dict.fromkeys(tags.BINARIES, b"?"),
}
"""What stands for a value whose content no route needs: something of its JSON kind."""


def scan_route(body: bytes, limits: Limits = DEFAULT_LIMITS, max_steps: int | None = None) -> Route:
    """The route of the request that `body` holds as one Hessian map.

    A map of any type and an object of any class serve alike, for the request, its `params`
    and its `props`, and so does a reference to one. Keys may have any order; of a key that
    comes twice the last counts. The values of the arguments are passed over: only their
    extent is checked, for the server judges the rest. Linear in the body; makes nothing of it
    but the route.

    Raises what `proxy.wire.moa.parse_route` raises, with the same codes: NotMoa when the body
    is not exactly one Hessian map or object, BadRequest when it names no usable route or
    passes a limit; and LongScan behind `max_steps` values.
    """
    if len(body) > limits.max_bytes:
        raise BadRequest(
            Ec.SERIALIZATION,
            f"request of {len(body)} bytes is over the limit of {limits.max_bytes}",
        )
    try:
        request = _RouteScan(body, limits, max_steps).request()
    except LimitError as error:
        raise BadRequest(Ec.SERIALIZATION, str(error)) from None
    except HessianError as error:
        raise NotMoa(f"not Hessian 2: {error}") from None
    except (IndexError, struct.error):
        raise NotMoa(f"not Hessian 2: body of {len(body)} bytes ends within a value") from None
    return route_of(request)


@dataclass(frozen=True, slots=True)
class _Reference:
    """Stands for a value of a record until the whole body was seen."""

    target: int


class _RouteScan:
    __slots__ = ("_data", "_skipper")

    def __init__(self, data: bytes, limits: Limits, max_steps: int | None) -> None:
        self._data = data
        self._skipper = Skipper(data, limits, max_steps)

    def request(self) -> dict[str, object]:
        """What `parse_route` would have decoded, as far as the route depends on it."""
        found: dict[str, object] = {}

        def visit(key: str | None, at: int) -> int:
            at = self._skipper.behind_definitions(at)
            if key == "action":
                found[key], end = self._value(at)
            elif key in ("params", "props"):
                found[key], end = self._record(at, key)
            else:
                end = self._skipper.skip(at)
            return end

        begin = self._skipper.behind_definitions(0)
        if self._data[begin] not in _RECORDS:
            raise HessianError(f"expected a map or an object, got tag 0x{self._data[begin]:02x}")
        end = self._skipper.visit_entries(begin, visit)
        if end > len(self._data):
            raise IndexError
        if end < len(self._data):
            raise HessianError(f"expected the end at {end}, got {len(self._data) - end} bytes")
        self._skipper.go_back()
        for key, value in found.items():
            if isinstance(value, _Reference):
                found[key] = self._record(value.target, key)[0]
        return found

    def _record(self, at: int, name: str) -> tuple[object, int]:
        """The entries of `params` or `props` that matter, or what stands for another value."""
        if self._data[at] == tags.REFERENCE:
            end = self._skipper.skip(at)
            return _Reference(self._skipper.target(at)), end
        if self._data[at] not in _RECORDS:
            return self._value(at)
        entries: dict[str, object] = {}

        def visit(key: str | None, at: int) -> int:
            if key is None or (name == "params" and key != "m"):
                return self._skipper.skip(at)
            entries[key], end = self._value(self._skipper.behind_definitions(at))
            return end

        return entries, self._skipper.visit_entries(at, visit)

    def _value(self, at: int) -> tuple[object, int]:
        """A string, or what stands for a value of another kind."""
        tag = self._data[at]
        if tag in tags.TEXTS:
            return read_text(self._data, at)
        end = self._skipper.skip(at)
        if tag in _SINGLE:
            return _SINGLE[tag], end
        if tag in tags.LISTS:
            return ([] if self._skipper.is_empty_list(at) else [None]), end
        return {}, end
