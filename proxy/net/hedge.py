"""A second attempt at a request whose first one takes long: the first reply of the two wins.

Only what may run twice is hedged (docs/ARCHITECTURE.md "Failover"). A hedge is one attempt:
when it fails, nothing more is tried.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.core import heavy
from proxy.core.balancer import Node
from proxy.core.message import Answer, MoaReply, Unsent, reply_of, speech_of
from proxy.core.translate import CannotTranslate, request_frame
from proxy.net.attempt import Attempt
from proxy.net.pool import Pool
from proxy.net.pool_types import Unavailable, Waiter
from proxy.net.upstream import Upstream
from proxy.wire.moa import is_transport_failure

if TYPE_CHECKING:
    from proxy.net.exchange import Exchange


class Hedge:
    """Waits `after_s`; then, if `first` has no reply yet, makes one attempt elsewhere.

    The exchange's `on_hedge_end` is called once the attempt has ended, with the reply or None,
    unless it is cancelled. It is in the instance's own protocol.
    """

    __slots__ = (
        "_begun_s",
        "_exchange",
        "_first",
        "_node",
        "_number",
        "_pool",
        "_sent_on",
        "_speech",
        "_timer",
        "_waiter",
    )

    def __init__(self, exchange: Exchange, first: Attempt, after_s: float) -> None:
        self._exchange = exchange
        self._first = first
        self._speech = exchange.request.speech
        self._begun_s = 0.0
        self._node: Node | None = None
        """None before it begins and after its end."""
        self._pool: Pool | None = None
        self._sent_on: Upstream | None = None
        self._number = 0
        self._waiter: Waiter | None = None
        self._timer: asyncio.TimerHandle = exchange.forwarder.loop.call_later(after_s, self._start)

    @property
    def is_under_way(self) -> bool:
        return self._node is not None

    def _start(self) -> None:
        exchange = self._exchange
        forwarder, now_s = exchange.forwarder, exchange.forwarder.loop.time()
        place = exchange.second_place(now_s, self._first.instance) if self._first.is_sent else None
        if place is None:
            return
        exchange.counts.hedges += 1
        self._node, self._begun_s = place.node, now_s
        self._speech = speech_of(place.instance, exchange.request.speech)
        self._pool = forwarder.pools.get(place.instance.address, self._speech.wire)
        exchange.service.begin(place.node, now_s)
        self._waiter = Waiter(self._on_connection, self._on_unavailable)
        self._pool.acquire(self._waiter)

    def _on_connection(self, upstream: Upstream) -> None:
        self._waiter = None
        assert self._pool is not None
        request = self._exchange.request
        limit = self._exchange.forwarder.settings.max_body_bytes
        if heavy.translation(request, self._speech.codec, limit) is not None:
            # What takes a process of its own to translate is not worth a second attempt.
            self._pool.release(upstream)
            self._end(None)
            return
        try:
            frame = request_frame(request, self._speech, limit)
        except CannotTranslate:
            self._pool.release(upstream)
            self._end(None)
            return
        self._sent_on = upstream
        self._number = upstream.send(frame, self._on_reply, self._on_loss)

    def _on_unavailable(self, why: Unavailable) -> None:
        self._waiter = None
        if not why.is_overload:
            self._fail(why.why, is_refused=why.is_refused)
        self._end(None)

    def _on_reply(self, answer: Answer | Unsent) -> None:
        upstream, self._sent_on = self._sent_on, None
        assert upstream is not None
        assert self._pool is not None
        if isinstance(answer, Unsent):
            self._pool.release(upstream)
            self._end(None)
            return
        exchange = self._exchange
        reply = reply_of(answer, exchange.forwarder.settings.max_body_bytes)
        is_failure = reply.ec is not None and is_transport_failure(reply.ec)
        if is_failure:
            self._fail(f"replied ec {reply.ec}", is_refused=reply.is_unsent)
        else:
            assert self._node is not None
            method, now_s = exchange.request.route.method, exchange.forwarder.loop.time()
            exchange.service.succeeded(self._node, method, self._begun_s, now_s)
        self._pool.release(upstream)
        self._end(None if is_failure else reply)

    def _on_loss(self, why: str) -> None:
        upstream, self._sent_on = self._sent_on, None
        assert upstream is not None
        assert self._pool is not None
        self._pool.discard(upstream)
        self._fail(why)
        self._end(None)

    def _fail(self, why: str, *, is_refused: bool = False) -> None:
        assert self._node is not None
        now_s, service = self._exchange.forwarder.loop.time(), self._exchange.service
        service.failed(self._node, self._begun_s, now_s, why, is_refused=is_refused)

    def _end(self, reply: MoaReply | None) -> None:
        self._leave_node()
        self._exchange.on_hedge_end(reply)

    def _leave_node(self) -> None:
        if self._node is not None:
            self._node.in_flight -= 1
            self._node = None

    def cancel(self) -> None:
        """Nobody waits for it any more; nothing is called back."""
        self._timer.cancel()
        if self._waiter is not None and self._pool is not None:
            self._pool.leave(self._waiter)
            self._waiter = None
        if self._sent_on is not None and self._pool is not None:
            upstream, self._sent_on = self._sent_on, None
            self._pool.abandon(upstream, self._number)
        self._leave_node()


def plan_hedge(exchange: Exchange, first: Attempt) -> Hedge | None:
    """A hedge of an attempt that was just sent; None where there is to be none.

    Only methods that may run twice are hedged, once the service's p95 is known and if it lies
    before the deadline.
    """
    service, quantile = exchange.service, exchange.service.p95
    after_s = None if quantile is None else quantile.value_s()
    if after_s is None or not service.is_idempotent(exchange.request.route.method):
        return None
    if exchange.forwarder.loop.time() + after_s >= exchange.deadline_s:
        return None
    return Hedge(exchange, first, after_s)
