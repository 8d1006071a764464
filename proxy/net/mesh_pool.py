"""The mesh connections to one instance's agent, and whether there is such an agent at all.

No request waits for any of it: `is_ready` says whether one can go now, and connects aside when
it cannot. Meanwhile requests go over the instance's own protocol (docs/adr/0007).
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.mesh_calls import Origin
from proxy.core.model import Address
from proxy.net.dial import Dial
from proxy.net.mesh_upstream import MeshUpstream
from proxy.net.pool_types import Waiter
from proxy.net.sockets import open_client
from proxy.net.upstream import Upstream
from proxy.obs.metrics import Metrics
from proxy.wire.mesh import Settings

BACKOFF_S, MAX_BACKOFF_S = 0.25, 30.0
"""After a connection ended or could not be made; doubled each time, with jitter."""
STABLE_S = 10.0
"""A connection that lasted so long starts the back-off anew."""
IDLE_CLOSE_S = 300.0
_TICK_S = 30.0
_JITTER = 0.2


@dataclass(frozen=True, slots=True)
class MeshPoolSettings:
    """How instances' agents are spoken to; times in seconds.

    `size` connections to each; one that does not say HELLO is asked again after `retry_s`.
    """

    wire: Settings
    origin: Origin
    size: int
    retry_s: float
    connect_timeout_s: float
    mark: int


class MeshPool:
    """Implements what an exchange needs of a pool; a waiter is served at once or never."""

    __slots__ = (
        "_closed",
        "_dial",
        "_failures",
        "_loop",
        "_metrics",
        "_on_agent_end",
        "_open",
        "_opening",
        "_rand",
        "_refused",
        "_retry_at_s",
        "_settings",
        "_timer",
        "address",
        "load",
        "load_hint",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: Address,
        settings: MeshPoolSettings,
        metrics: Metrics,
        rand: random.Random,
        on_agent_end: Callable[[], None],
    ) -> None:
        """`on_agent_end` tells that a confirmed agent is leaving or has gone."""
        self.address = address
        self.load = 0
        """Requests under way."""
        self.load_hint: int | None = None
        """Requests in flight at the instance, from all callers, as its agent said last."""
        self._loop = loop
        self._settings = settings
        self._metrics = metrics
        self._rand = rand
        self._on_agent_end = on_agent_end
        self._open: list[MeshUpstream] = []
        """Those that take requests."""
        self._opening: MeshUpstream | None = None
        self._dial: Dial | None = None
        self._failures = 0
        self._refused = False
        self._retry_at_s = 0.0
        self._closed = False
        self._timer = loop.call_later(_TICK_S, self._tick)

    @property
    def connections(self) -> int:
        return len(self._open)

    @property
    def upstreams(self) -> tuple[MeshUpstream, ...]:
        """The connections that take requests."""
        return tuple(self._open)

    def describe(self) -> str:
        """What is known of the peer, in a word."""
        if self._open:
            return "confirmed"
        if self._opening is not None or self._dial is not None:
            return "connecting"
        return "refused" if self._refused else "unknown"

    # For an exchange

    def is_ready(self) -> bool:
        """Whether a request can go now; opens a connection when there may be one more."""
        count = len(self._open)
        if count < self._settings.size and (count == 0 or self.load > 1):
            self._connect_if_due()
        return self._least_loaded() is not None

    def acquire(self, waiter: Waiter) -> None:
        """Serve the waiter now; only after `is_ready` has said yes."""
        upstream = self._least_loaded()
        assert upstream is not None
        self.load += 1
        waiter.ready(upstream)

    def _least_loaded(self) -> MeshUpstream | None:
        best: MeshUpstream | None = None
        for upstream in self._open:
            if not upstream.is_congested and (
                best is None or upstream.open_requests < best.open_requests
            ):
                best = upstream
        return best

    def leave(self, waiter: Waiter) -> None:
        """Nobody waits here."""

    def release(self, upstream: Upstream) -> None:
        """A request on it is over."""
        self.load -= 1
        upstream.used_s = self._loop.time()
        if isinstance(upstream, MeshUpstream) and upstream.load_hint is not None:
            self.load_hint = upstream.load_hint

    def abandon(self, upstream: Upstream, number: int) -> None:
        """Nobody waits for a request's reply any more."""
        upstream.forget(number)
        self.release(upstream)

    def discard(self, upstream: Upstream) -> None:
        """A request ended with its connection."""
        self.release(upstream)

    # Connecting

    def _connect_if_due(self) -> None:
        due = self._loop.time() >= self._retry_at_s
        if self._closed or self._dial is not None or self._opening is not None or not due:
            return
        settings = self._settings
        try:
            sock = open_client(self.address, mark=settings.mark)
        except OSError:
            self._back_off()
            return
        target = (self.address.host, self.address.port)
        timeout_s = settings.connect_timeout_s
        self._dial = Dial(self._loop, sock, target, timeout_s, self._on_dialled)

    def _on_dialled(self, result: socket.socket | OSError) -> None:
        self._dial = None
        if isinstance(result, OSError):
            self._back_off()
            return
        settings = self._settings
        self._opening = MeshUpstream(
            self._loop,
            result,
            self.address,
            settings.wire,
            settings.origin,
            self._rand.getrandbits,
            self,
        )
        self._opening.start()

    def on_ready(self, upstream: MeshUpstream) -> None:
        self._opening = None
        self._refused = False
        self._open.append(upstream)

    def on_leaving(self, upstream: MeshUpstream) -> None:
        if upstream in self._open:
            self._open.remove(upstream)
            if not self._closed:
                self._on_agent_end()

    def on_end(self, upstream: MeshUpstream, why: str) -> None:
        if upstream.was_greeted:
            self._metrics.mesh_losses += 1
            if self._loop.time() - upstream.ready_s >= STABLE_S:
                self._failures = 0
            self._back_off()
            return
        self._opening = None
        if not self._closed:
            self._metrics.mesh_hello_failures += 1
            self._refused = True
            self._retry_after(self._settings.retry_s)

    def _back_off(self) -> None:
        delay_s = min(BACKOFF_S * 2.0 ** min(self._failures, 30), MAX_BACKOFF_S)
        self._failures += 1
        self._retry_after(delay_s)

    def _retry_after(self, delay_s: float) -> None:
        spread = 1 + _JITTER * (2 * self._rand.random() - 1)
        self._retry_at_s = self._loop.time() + delay_s * spread

    def _tick(self) -> None:
        """Close what nobody has used for long."""
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        now_s = self._loop.time()
        for upstream in self.upstreams:
            if not upstream.open_requests and now_s - upstream.used_s >= IDLE_CLOSE_S:
                upstream.retire()

    def close(self) -> None:
        """Open nothing more; what is under way ends in peace."""
        self._closed = True
        self._timer.cancel()
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        if self._opening is not None:
            self._opening.close()
        for upstream in self.upstreams:
            upstream.retire()
