"""Sends the PINGs that `core/checks` asks for, over the instances' own pools.

A PING speaks the protocol that requests to the instance would. It is no request: nothing
counts it as one, on either side, and an inbound agent passes it on to its service.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from proxy.core.checks import CheckSchedule, Target
from proxy.core.message import RESP_JSON, speech_of
from proxy.net.pool_types import Unavailable, Waiter
from proxy.net.upstream import Upstream

if TYPE_CHECKING:
    from proxy.net.forward import Forwarder

MAX_AT_ONCE = 64
TICK_S = 0.1
REFRESH_S = 2.0
STALL_S = 0.25
"""A timer that is so late tells of us and not of the instance."""


class Checker:
    """Checks between `start` and `close`."""

    def __init__(self, forwarder: Forwarder, rand: random.Random) -> None:
        self._forwarder = forwarder
        self._schedule = CheckSchedule(rand)
        self._checks: set[_Check] = set()
        self._refresh_at_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, also again after `close`."""
        self._timer = self._forwarder.loop.call_later(TICK_S, self._tick)

    def close(self) -> None:
        """End every check without a verdict."""
        if self._timer is not None:
            self._timer.cancel()
        for check in list(self._checks):
            check.cancel()
        self._checks.clear()

    def _tick(self) -> None:
        forwarder = self._forwarder
        now_s = forwarder.loop.time()
        self._timer = forwarder.loop.call_later(TICK_S, self._tick)
        if now_s >= self._refresh_at_s:
            self._refresh_at_s = now_s + REFRESH_S
            self._schedule.refresh(forwarder.table, forwarder.services, now_s)
        room = MAX_AT_ONCE - len(self._checks)
        for target in list(self._schedule.due(now_s, room)):
            if target.instance.address in forwarder.table.addresses:
                check = _Check(forwarder, target, self._checks)
                self._checks.add(check)
                check.start()


class _Check:
    """One PING; takes itself out of `running` when it has ended."""

    __slots__ = (
        "_forwarder",
        "_is_over",
        "_pool",
        "_running",
        "_target",
        "_timer",
        "_upstream",
        "_waiter",
    )

    def __init__(self, forwarder: Forwarder, target: Target, running: set[_Check]) -> None:
        self._forwarder = forwarder
        self._target = target
        self._running = running
        speech = speech_of(target.instance, RESP_JSON)
        self._pool = forwarder.pools.get(target.instance.address, speech.wire)
        self._upstream: Upstream | None = None
        self._is_over = False
        self._timer = forwarder.loop.call_later(target.timeout_s, self._expire)
        self._waiter: Waiter | None = Waiter(self._on_connection, self._on_unavailable)

    def start(self) -> None:
        assert self._waiter is not None
        self._forwarder.metrics.pings += 1
        self._pool.acquire(self._waiter)

    def _on_connection(self, upstream: Upstream) -> None:
        self._waiter = None
        self._upstream = upstream
        upstream.ping(self._on_answer, self._on_loss)

    def _on_unavailable(self, why: Unavailable) -> None:
        self._waiter = None
        if why.is_overload:
            self.cancel()  # Of ours: it says nothing of the instance.
        else:
            self._end(is_answered=False)

    def _on_answer(self, _is_well: bool) -> None:
        """An error is an answer, too: old servers do not know PING."""
        if self._is_over:
            return
        upstream, self._upstream = self._upstream, None
        assert upstream is not None
        self._pool.release(upstream)
        self._end(is_answered=True)

    def _on_loss(self, _why: str) -> None:
        if self._is_over:
            return
        upstream, self._upstream = self._upstream, None
        assert upstream is not None
        self._pool.discard(upstream)
        self._end(is_answered=False)

    def _expire(self) -> None:
        if self._is_over:
            return
        if self._forwarder.loop.time() - self._timer.when() > STALL_S:
            self.cancel()  # We stood still; the answer may be there, unread.
            return
        self._let_go()
        self._end(is_answered=False)

    def cancel(self) -> None:
        """End it without a verdict."""
        self._let_go()
        self._finish()

    def _let_go(self) -> None:
        if self._waiter is not None:
            self._pool.leave(self._waiter)
            self._waiter = None
        if self._upstream is not None:
            upstream, self._upstream = self._upstream, None
            self._pool.give_up(upstream)

    def _end(self, *, is_answered: bool) -> None:
        self._finish()
        address, now_s = self._target.instance.address, self._forwarder.loop.time()
        if not is_answered:
            self._forwarder.metrics.pings_failed += 1
        for service in self._target.services.values():
            service.pinged(address, now_s, is_answered=is_answered)

    def _finish(self) -> None:
        self._is_over = True
        self._timer.cancel()
        self._running.discard(self)
