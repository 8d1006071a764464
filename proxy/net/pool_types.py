"""What a pool is told and what it tells: settings, who waits, and why there is no connection."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.model import Address
from proxy.net.upstream import Upstream

_OUR_LIMITS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)
"""Errors of connect() and socket() that say nothing of the instance."""
_REFUSALS = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH})


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Bounds of one instance's pool; times in seconds.

    `size` is for connections that carry one request at a time; `shared_size` for those that
    carry up to `shared_requests` each.
    """

    size: int
    shared_size: int
    shared_requests: int
    queue: int
    connect_timeout_s: float
    idle_ping_s: float
    idle_close_s: float
    mark: int
    max_reply_bytes: int


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why no connection could be had; nothing of the request was sent."""

    why: str
    is_overload: bool = False
    """The queue was full, or we have no descriptor left: the instance itself may be well."""
    is_refused: bool = False
    """Nothing listens there: one proof is enough."""

    @classmethod
    def because(cls, address: Address, error: OSError) -> Unavailable:
        """No connection to `address` could be made."""
        return cls(
            f"{address}: {error.strerror or error}",
            is_overload=error.errno in _OUR_LIMITS,
            is_refused=error.errno in _REFUSALS,
        )


class Waiter:
    """Somebody who waits for a connection; `Pool.leave` when they no longer do."""

    __slots__ = ("ready", "unavailable")

    def __init__(
        self,
        ready: Callable[[Upstream], None],
        unavailable: Callable[[Unavailable], None],
    ) -> None:
        self.ready = ready
        self.unavailable = unavailable
