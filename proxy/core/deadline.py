"""Deadlines: how long a request may take, and how much of that is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.core.message import MoaRequest
from proxy.core.model import Instance

DEFAULT_TIMEOUT_S = 5.0

MAX_TIMEOUT_S = 3600.0
"""No wait on a peer is longer, whatever a member of the registry says."""

TIMEOUT_PROP = "moa.timeout"
"""The property with which a request says how long it may take, in ms (docs/PROTOCOL.md §1)."""

_MAX_DIGITS = 9


def request_timeout_ms(props: Mapping[str, str]) -> int | None:
    """What a request says of its own time; None when that is nothing, or no number."""
    text = props.get(TIMEOUT_PROP, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None


@dataclass(frozen=True, slots=True, order=True)
class Deadline:
    """A moment on the monotonic clock; the earlier of two compares as less."""

    at_s: float

    @classmethod
    def after(cls, now_s: float, timeout_s: float) -> Deadline:
        """The deadline that is `timeout_s` away."""
        return cls(now_s + timeout_s)

    def remaining_s(self, now_s: float) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at_s - now_s)

    def expired(self, now_s: float) -> bool:
        """Whether nothing is left."""
        return now_s >= self.at_s


def effective_timeout_s(
    *,
    request_ms: int | None = None,
    instance_ms: int | None = None,
    service_ms: int | None = None,
    default_s: float = DEFAULT_TIMEOUT_S,
) -> float:
    """The request's own timeout, else the instance's, else the service's, else the default.

    A value of 0 or less says nothing, as in the members of old services; the result is at
    most MAX_TIMEOUT_S.
    """
    for timeout_ms in (request_ms, instance_ms, service_ms):
        if timeout_ms is not None and timeout_ms > 0:
            return min(timeout_ms / 1000, MAX_TIMEOUT_S)
    return min(default_s, MAX_TIMEOUT_S)


def timeout_of(
    request: MoaRequest,
    instance: Instance,
    service_ms: int | None,
    default_s: float,
    now_s: float,
) -> float:
    """How long a request may take from now on, given the first instance that it goes to.

    What is left of the deadline that came with it over the mesh is in whole milliseconds, so
    that requests of one timeout share it.
    """
    props = request.route.props
    timeout_s = effective_timeout_s(
        request_ms=request_timeout_ms(props) if props else None,
        instance_ms=instance.timeout_ms,
        service_ms=service_ms,
        default_s=default_s,
    )
    if request.deadline_s is None:
        return timeout_s
    return min(timeout_s, max(0.0, round(request.deadline_s - now_s, 3)))
