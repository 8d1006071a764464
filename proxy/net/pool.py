"""The connections to one instance: few, reused, kept honest by PING, with a bounded queue."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from proxy.core.model import Address
from proxy.net.dial import Dial
from proxy.net.sockets import open_client
from proxy.net.upstream import Upstream
from proxy.wire.resp import Limits, Reply, encode_command

_PING = encode_command(b"PING")

_OUR_LIMITS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)
"""Errors of connect() and socket() that say nothing of the instance."""
PING_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Bounds of one instance's pool; times in seconds."""

    size: int
    queue: int
    connect_timeout_s: float
    idle_ping_s: float
    idle_close_s: float
    mark: int
    limits: Limits


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


class Pool:
    """Hands out connections to one address and takes them back."""

    __slots__ = (
        "_closed",
        "_dials",
        "_idle",
        "_lent",
        "_loop",
        "_pinging",
        "_settings",
        "_timer",
        "_waiting",
        "address",
        "source",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: Address,
        settings: PoolSettings,
        source: str | None = None,
    ) -> None:
        self.address = address
        self.source = source
        self._loop = loop
        self._settings = settings
        self._idle: list[Upstream] = []
        self._lent: set[Upstream] = set()
        self._pinging: set[Upstream] = set()
        self._dials: set[Dial] = set()
        self._waiting: OrderedDict[Waiter, None] = OrderedDict()
        self._closed = False
        self._timer = loop.call_later(self._tick_s, self._tick)

    @property
    def _tick_s(self) -> float:
        return max(0.25, self._settings.idle_ping_s / 4)

    @property
    def load(self) -> int:
        """Requests on the way or waiting: what the balancer compares."""
        return len(self._lent) + len(self._waiting)

    @property
    def connections(self) -> int:
        return len(self._idle) + len(self._lent) + len(self._pinging)

    def acquire(self, waiter: Waiter) -> None:
        """Call the waiter back, now or later, once: with a connection or with why not."""
        while self._idle:
            upstream = self._idle.pop()
            if upstream.looks_alive():
                self._lend(upstream, waiter)
                return
            upstream.close()
        if self.connections + len(self._dials) < self._settings.size:
            self._waiting[waiter] = None
            self._dial()
        elif len(self._waiting) < self._settings.queue:
            self._waiting[waiter] = None
        else:
            waiter.unavailable(
                Unavailable(
                    f"{self.address}: {len(self._lent)} requests are on the way and "
                    f"{len(self._waiting)} wait",
                    is_overload=True,
                )
            )

    def leave(self, waiter: Waiter) -> None:
        """Wait no longer; nothing is called back."""
        self._waiting.pop(waiter, None)

    def release(self, upstream: Upstream) -> None:
        """Take back a connection whose reply has arrived."""
        self._lent.discard(upstream)
        upstream.used_s = self._loop.time()
        self._offer(upstream)

    def discard(self, upstream: Upstream) -> None:
        """Close a connection that cannot be used again."""
        self._lent.discard(upstream)
        self._replace(upstream)

    def _replace(self, upstream: Upstream) -> None:
        """Close a connection, and open another if somebody waits for it."""
        upstream.close()
        if self._waiting and not self._closed:
            self._dial()

    def _offer(self, upstream: Upstream) -> None:
        # The server may have ended it right behind its reply; an idle one is looked at when
        # it is lent.
        if self._closed or upstream.is_lost or (self._waiting and not upstream.looks_alive()):
            self._replace(upstream)
            return
        if self._waiting:
            self._lend(upstream, self._waiting.popitem(last=False)[0])
            return
        upstream.heard_s = self._loop.time()
        self._idle.append(upstream)

    def _lend(self, upstream: Upstream, waiter: Waiter) -> None:
        self._lent.add(upstream)
        waiter.ready(upstream)

    def _on_idle_loss(self, upstream: Upstream) -> None:
        if upstream in self._idle:
            self._idle.remove(upstream)

    # Connecting

    def _dial(self) -> None:
        if self.connections + len(self._dials) >= self._settings.size:
            return
        try:
            sock = open_client(self.address, mark=self._settings.mark, source=self.source)
        except OSError as e:
            self._loop.call_soon(self._on_dialled, None, e)
            return
        target = (self.address.host, self.address.port)
        dial: Dial | None = None

        def done(result: socket.socket | OSError) -> None:
            self._on_dialled(dial, result)

        dial = Dial(self._loop, sock, target, self._settings.connect_timeout_s, done)
        self._dials.add(dial)

    def _on_dialled(self, dial: Dial | None, result: socket.socket | OSError) -> None:
        if dial is not None:
            self._dials.discard(dial)
        if isinstance(result, OSError):
            self._on_refused(result)
        elif self._closed:
            result.close()
        else:
            upstream = Upstream(self._loop, result, self.address, self._settings.limits)
            upstream.used_s = self._loop.time()
            upstream.on_idle_loss = partial(self._on_idle_loss, upstream)
            if upstream.looks_alive():
                self._offer(upstream)
            else:
                # As good as refused; dialling again would go on for ever.
                upstream.close()
                self._on_refused(ConnectionResetError(errno.ECONNRESET, "closed at once"))

    def _on_refused(self, error: OSError) -> None:
        why = Unavailable(
            f"{self.address}: {error.strerror or error}",
            is_overload=error.errno in _OUR_LIMITS,
            is_refused=error.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH),
        )
        # Without any connection nobody can be served here: let all of them go elsewhere.
        count = 1 if self.connections or self._dials else len(self._waiting)
        for _ in range(count):
            if not self._waiting:
                return
            self._waiting.popitem(last=False)[0].unavailable(why)

    # Keeping idle connections honest

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._tick_s, self._tick)
        now_s = self._loop.time()
        for upstream in list(self._idle):
            if now_s - upstream.used_s >= self._settings.idle_close_s:
                self._idle.remove(upstream)
                upstream.close()
            elif now_s - upstream.heard_s >= self._settings.idle_ping_s:
                self._idle.remove(upstream)
                self._ping(upstream)

    def _ping(self, upstream: Upstream) -> None:
        """A connection that a firewall has forgotten is found now and not by a request."""
        self._pinging.add(upstream)

        def forget(_why: str = "") -> None:
            timer.cancel()
            self._pinging.discard(upstream)
            self._replace(upstream)

        def answered(reply: Reply) -> None:
            timer.cancel()
            self._pinging.discard(upstream)
            if reply.kind == b"-":
                self._replace(upstream)
            else:
                self._offer(upstream)

        timer = self._loop.call_later(PING_TIMEOUT_S, forget)
        upstream.send(_PING, answered, forget)

    def close(self) -> None:
        """Close what is idle, fail who waits; what is lent closes when it comes back."""
        self._closed = True
        self._timer.cancel()
        for dial in list(self._dials):
            dial.cancel()
        for upstream in [*self._idle, *self._pinging]:
            upstream.close()
        self._idle.clear()
        gone = Unavailable(f"{self.address}: is no longer listed", is_overload=True)
        while self._waiting:
            self._waiting.popitem(last=False)[0].unavailable(gone)
