"""What a pool is told and what it tells: settings, who waits, and why there is no connection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy.net.upstream import Upstream


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Bounds of one instance's pool; times in seconds.

    `size` is for connections that carry one request at a time; `shared_size` for those that
    carry many.
    """

    size: int
    shared_size: int
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


class Waiter:
    """Somebody who waits for a connection; `Pool.leave` when they no longer do."""

    __slots__ = ("_on_ready", "_on_unavailable")

    def __init__(
        self,
        on_ready: Callable[[Upstream], None],
        on_unavailable: Callable[[Unavailable], None],
    ) -> None:
        self._on_ready = on_ready
        self._on_unavailable = on_unavailable

    def ready(self, upstream: Upstream) -> None:
        self._on_ready(upstream)

    def unavailable(self, why: Unavailable) -> None:
        self._on_unavailable(why)
