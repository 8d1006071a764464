"""A second attempt at a request whose first one takes long: the first reply of the two wins.

Only what may run twice is hedged (docs/ARCHITECTURE.md "Failover"). A hedge is one attempt:
when it fails, nothing more is tried.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.core import heavy
from proxy.core.balancer import Place
from proxy.core.message import Answer, MoaReply, MoaRequest, Unsent, reply_of, speech_of
from proxy.core.service import Service
from proxy.core.translate import CannotTranslate, request_frame
from proxy.net.pool_types import Unavailable, Waiter
from proxy.net.upstream import Upstream
from proxy.wire.moa import is_transport_failure

if TYPE_CHECKING:
    from proxy.net.forward import Forwarder


class Hedge:
    """One attempt; `on_end` is called once, with the reply or None, unless it is cancelled."""

    __slots__ = (
        "_begun_s",
        "_forwarder",
        "_node",
        "_number",
        "_on_end",
        "_pool",
        "_request",
        "_sent_on",
        "_service",
        "_speech",
        "_waiter",
    )

    def __init__(
        self,
        forwarder: Forwarder,
        service: Service,
        request: MoaRequest,
        place: Place,
        on_end: Callable[[MoaReply | None], None],
    ) -> None:
        self._forwarder = forwarder
        self._service = service
        self._request = request
        self._on_end = on_end
        self._node = place.node
        self._speech = speech_of(place.instance, request.speech)
        self._pool = forwarder.pools.get(place.instance.address, self._speech.wire)
        self._begun_s = forwarder.loop.time()
        self._sent_on: Upstream | None = None
        self._number = 0
        self._waiter: Waiter | None = None

    def start(self) -> None:
        self._service.begin(self._node, self._begun_s)
        self._waiter = Waiter(self._on_connection, self._on_unavailable)
        self._pool.acquire(self._waiter)

    def _on_connection(self, upstream: Upstream) -> None:
        self._waiter = None
        limit = self._forwarder.settings.max_body_bytes
        if heavy.translation(self._request, self._speech.codec, limit) is not None:
            # What takes a process of its own to translate is not worth a second attempt.
            self._pool.release(upstream)
            self._end(None)
            return
        try:
            frame = request_frame(self._request, self._speech, limit)
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
        if isinstance(answer, Unsent):
            self._pool.release(upstream)
            self._end(None)
            return
        reply = reply_of(answer, self._forwarder.settings.max_body_bytes)
        is_failure = reply.ec is not None and is_transport_failure(reply.ec)
        if is_failure:
            self._fail(f"replied ec {reply.ec}", is_refused=reply.is_unsent)
        else:
            method, now_s = self._request.route.method, self._forwarder.loop.time()
            self._service.succeeded(self._node, method, self._begun_s, now_s)
        self._pool.release(upstream)
        self._end(None if is_failure else reply)

    def _on_loss(self, why: str) -> None:
        upstream, self._sent_on = self._sent_on, None
        assert upstream is not None
        self._pool.discard(upstream)
        self._fail(why)
        self._end(None)

    def _fail(self, why: str, *, is_refused: bool = False) -> None:
        now_s = self._forwarder.loop.time()
        self._service.failed(self._node, self._begun_s, now_s, why, is_refused=is_refused)

    def _end(self, reply: MoaReply | None) -> None:
        self._node.in_flight -= 1
        self._on_end(reply)

    def cancel(self) -> None:
        """Nobody waits for it any more; nothing is called back."""
        if self._waiter is not None:
            self._pool.leave(self._waiter)
            self._waiter = None
        elif self._sent_on is not None:
            upstream, self._sent_on = self._sent_on, None
            self._pool.abandon(upstream, self._number)
        else:
            return
        self._node.in_flight -= 1
