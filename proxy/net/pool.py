"""The connections to one instance: few, reused, kept honest by PING, with a bounded queue."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from proxy.core.model import Address
from proxy.net.dial import Dial
from proxy.net.pool_types import PoolSettings, Unavailable, Waiter
from proxy.net.sockets import open_client
from proxy.net.upstream import Upstream

PING_TIMEOUT_S = 2.0
REDIAL_S = 1.0
"""After a refusal, another connection besides those that work is not tried sooner."""


class Pool:
    """Hands out places on connections to one address and takes them back.

    `make` makes the upstream of a connected socket; at most `size` of them are open. An
    upstream is *free* while it has room for one more request.
    """

    __slots__ = (
        "_closed",
        "_dials",
        "_free",
        "_lent",
        "_loop",
        "_make",
        "_open",
        "_redial_at_s",
        "_settings",
        "_size",
        "_timer",
        "_waiting",
        "address",
        "load",
        "source",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: Address,
        settings: PoolSettings,
        make: Callable[[socket.socket], Upstream],
        size: int,
        source: str | None = None,
    ) -> None:
        self.address = address
        self.source = source
        self.load = 0
        """Requests on the way or waiting: what the balancer compares."""
        self._loop = loop
        self._settings = settings
        self._make = make
        self._size = size
        self._open: set[Upstream] = set()
        self._free: list[Upstream] = []
        self._lent: dict[Upstream, int] = {}
        self._dials: set[Dial] = set()
        self._waiting: OrderedDict[Waiter, None] = OrderedDict()
        self._redial_at_s = 0.0
        self._closed = False
        self._timer = loop.call_later(self._tick_s, self._tick)

    @property
    def _tick_s(self) -> float:
        return max(0.25, self._settings.idle_ping_s / 4)

    @property
    def connections(self) -> int:
        return len(self._open)

    def acquire(self, waiter: Waiter) -> None:
        """Call the waiter back, now or later, once: with a connection or with why not."""
        while self._free:
            upstream = self._free.pop()
            # One that is shared is not looked at: requests are on it, which would tell.
            is_well = not upstream.is_lost if upstream in self._lent else upstream.looks_alive()
            if is_well:
                self._lend(upstream, waiter)
                if upstream.capacity > 1:
                    self._share(upstream)
                return
            self._drop(upstream)
        if len(self._open) + len(self._dials) < self._size:
            self._wait(waiter)
            self._dial()
        elif len(self._waiting) < self._settings.queue:
            self._wait(waiter)
        else:
            waiter.unavailable(
                Unavailable(
                    f"{self.address}: {self.load - len(self._waiting)} requests are on the way "
                    f"and {len(self._waiting)} wait",
                    is_overload=True,
                )
            )

    def _share(self, upstream: Upstream) -> None:
        """Open one more connection beside one that carries several requests already."""
        is_due = self._loop.time() >= self._redial_at_s
        if self._lent.get(upstream, 0) > 1 and not self._dials and is_due:
            self._dial()

    def _wait(self, waiter: Waiter) -> None:
        self._waiting[waiter] = None
        self.load += 1

    def _next_waiter(self) -> Waiter:
        self.load -= 1
        return self._waiting.popitem(last=False)[0]

    def leave(self, waiter: Waiter) -> None:
        """Wait no longer; nothing is called back."""
        if waiter in self._waiting:
            del self._waiting[waiter]
            self.load -= 1

    def release(self, upstream: Upstream) -> None:
        """Take back the place of a request whose reply has arrived."""
        self._take_back(upstream)
        now_s = upstream.used_s = self._loop.time()
        if upstream.capacity > 1 or upstream.is_lost or self._waiting or self._closed:
            self._offer(upstream)
            return
        # As nearly always: nobody waits for it, and it is idle now.
        upstream.heard_s = now_s
        self._free.append(upstream)

    def abandon(self, upstream: Upstream, number: int) -> None:
        """Take back the place of a request whose reply nobody waits for any more."""
        if upstream.forget(number):
            self.release(upstream)
        else:
            self.discard(upstream)

    def give_up(self, upstream: Upstream) -> None:
        """Take back the place of a PING without an answer; close the connection unless
        requests are on it, whose own deadlines count."""
        if self._lent[upstream] > 1:
            self.release(upstream)
        else:
            self.discard(upstream)

    def discard(self, upstream: Upstream) -> None:
        """Take back a place on a connection that cannot be used again, and close that."""
        self._take_back(upstream)
        self._replace(upstream)

    def _take_back(self, upstream: Upstream) -> None:
        self.load -= 1
        left = self._lent.pop(upstream) - 1
        if left:
            self._lent[upstream] = left

    def _replace(self, upstream: Upstream) -> None:
        """Close a connection, and open another if somebody waits for it."""
        self._drop(upstream)
        if self._waiting and not self._closed:
            self._dial()

    def _drop(self, upstream: Upstream) -> None:
        self._open.discard(upstream)
        if upstream in self._free:
            self._free.remove(upstream)
        upstream.close()

    def _offer(self, upstream: Upstream) -> None:
        """Give a place to who waits, or note that there is one."""
        is_busy = upstream in self._lent
        if self._closed and is_busy and not upstream.is_lost:
            return
        # The server may have ended it right behind its reply; an idle one is looked at when
        # it is lent.
        if (
            self._closed
            or upstream.is_lost
            or (self._waiting and not is_busy and not upstream.looks_alive())
        ):
            self._replace(upstream)
            return
        if not is_busy:
            upstream.heard_s = self._loop.time()
        while self._waiting and self._has_room(upstream):
            self._lend(upstream, self._next_waiter())
        if self._has_room(upstream) and upstream not in self._free:
            self._free.append(upstream)

    def _has_room(self, upstream: Upstream) -> bool:
        count = self._lent.get(upstream, 0)
        return count < upstream.capacity and not upstream.is_congested and not upstream.is_lost

    def _lend(self, upstream: Upstream, waiter: Waiter) -> None:
        """`upstream` is not among the free ones; it goes back there while it has room."""
        count = self._lent.get(upstream, 0) + 1
        self._lent[upstream] = count
        self.load += 1
        waiter.ready(upstream)
        if upstream.capacity > 1 and self._has_room(upstream) and upstream not in self._free:
            self._free.insert(0, upstream)

    def _on_room(self, upstream: Upstream) -> None:
        if upstream in self._open:
            self._offer(upstream)

    def _on_idle_loss(self, upstream: Upstream) -> None:
        if upstream in self._free and upstream not in self._lent:
            self._drop(upstream)

    # Connecting

    def _dial(self) -> None:
        if len(self._open) + len(self._dials) >= self._size:
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
            self._welcome(self._make(result))

    def _welcome(self, upstream: Upstream) -> None:
        upstream.used_s = self._loop.time()
        upstream.on_idle_loss = partial(self._on_idle_loss, upstream)
        upstream.on_room = partial(self._on_room, upstream)
        if upstream.looks_alive():
            self._open.add(upstream)
            self._offer(upstream)
        else:
            # As good as refused; dialling again would go on for ever.
            upstream.close()
            self._on_refused(ConnectionResetError(errno.ECONNRESET, "closed at once"))

    def _on_refused(self, error: OSError) -> None:
        self._redial_at_s = self._loop.time() + REDIAL_S
        why = Unavailable.because(self.address, error)
        # Without any connection nobody can be served here: let all of them go elsewhere.
        count = 1 if self._open or self._dials else len(self._waiting)
        for _ in range(count):
            if not self._waiting:
                return
            self._next_waiter().unavailable(why)

    # Keeping idle connections honest

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._tick_s, self._tick)
        now_s = self._loop.time()
        for upstream in list(self._free):
            if upstream in self._lent:
                continue
            if now_s - upstream.used_s >= self._settings.idle_close_s:
                self._drop(upstream)
            elif now_s - upstream.heard_s >= self._settings.idle_ping_s:
                self._free.remove(upstream)
                self._ping(upstream)

    def _ping(self, upstream: Upstream) -> None:
        """A connection that a firewall has forgotten is found now and not by a request."""

        def forget(_why: str = "") -> None:
            timer.cancel()
            self._replace(upstream)

        def answered(is_well: bool) -> None:
            timer.cancel()
            if is_well:
                self._offer(upstream)
            else:
                self._replace(upstream)

        timer = self._loop.call_later(PING_TIMEOUT_S, forget)
        upstream.ping(answered, forget)

    # Connections that change hands (docs/UPGRADE.md)

    def set_aside(self, every: int) -> list[Upstream]:
        """Every so many of the connections that no request is on; none goes on them, and
        nothing is read of them, until they are put back."""
        aside = [u for u in self._free if u not in self._lent and u.looks_alive()][::every]
        for upstream in aside:
            self._free.remove(upstream)
            upstream.stream.hold()
        return aside

    def put_back(self, upstream: Upstream) -> None:
        """Use it again."""
        upstream.stream.unhold()
        self._offer(upstream)

    def detach(self, upstream: Upstream) -> None:
        """Another process has it: forget it without a word to the server."""
        self._open.discard(upstream)
        upstream.stream.detach()

    def adopt(self, sock: socket.socket, last_number: int) -> None:
        """Use a connection that no request is on, whose requests had numbers up to this one;
        closed when there is no room for it."""
        if self._closed or len(self._open) + len(self._dials) >= self._size:
            sock.close()
            return
        upstream = self._make(sock)
        upstream.number_after(last_number)
        self._welcome(upstream)

    def drop_idle(self) -> None:
        """Close the connections that no request is on."""
        for upstream in [u for u in self._free if u not in self._lent]:
            self._drop(upstream)

    def close(self) -> None:
        """Close what is idle, fail who waits; what is lent closes when it comes back."""
        self._closed = True
        self._timer.cancel()
        for dial in list(self._dials):
            dial.cancel()
        for upstream in [u for u in self._open if u not in self._lent]:
            self._drop(upstream)
        gone = Unavailable(f"{self.address}: is no longer listed", is_overload=True)
        while self._waiting:
            self._next_waiter().unavailable(gone)
