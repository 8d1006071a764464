"""One try of a request at one instance: a connection, the request in its words, what came of it.

Over the mesh where the instance's agent has confirmed it, else in the instance's own protocol;
what an agent did not process goes on to the instance itself, as the same attempt. Whether
there is another attempt is its exchange's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from proxy.core import failures, heavy
from proxy.core.balancer import Node, Place
from proxy.core.mesh_calls import MeshCall
from proxy.core.message import (
    Answer,
    Codec,
    MoaReply,
    Speech,
    Unsent,
    Wire,
    reply_of,
    speech_of,
)
from proxy.core.translate import CannotTranslate, in_codec, request_of
from proxy.net.mesh_pool import MeshPool
from proxy.net.pool import Pool
from proxy.net.pool_types import Unavailable, Waiter
from proxy.net.upstream import Outgoing, Upstream
from proxy.wire.moa import Ec, is_transport_failure

if TYPE_CHECKING:
    from proxy.net.exchange import Exchange


class Translated(NamedTuple):
    """What a job made of a request's body: it serves every instance of that codec."""

    codec: Codec
    body: bytes


class Attempt:
    """One of the exchange's `on_…` is called once, unless the attempt is cancelled before.

    `number` counts the attempts of the exchange from 1.
    """

    __slots__ = (
        "_begun_s",
        "_exchange",
        "_node",
        "_number",
        "_pool",
        "_sent_as",
        "_sent_on",
        "_speech",
        "_waiter",
        "instance",
        "is_translating",
    )

    def __init__(self, exchange: Exchange, place: Place, number: int, begun_s: float) -> None:
        self.instance = place.instance
        self.is_translating = False
        """Another process is at the body: what takes long is us, not the instance."""
        self._node: Node | None = place.node
        """None once it is over."""
        self._exchange = exchange
        self._number = number
        self._begun_s = begun_s
        self._speech = exchange.request.speech
        self._pool: Pool | MeshPool | None = None
        self._waiter: Waiter | None = None
        self._sent_on: Upstream | None = None
        self._sent_as = 0

    @property
    def is_sent(self) -> bool:
        """Whether the request lies at the instance, and no reply has come."""
        return self._sent_on is not None

    @property
    def is_over(self) -> bool:
        return self._node is None

    def start(self) -> None:
        assert self._node is not None
        self._exchange.service.begin(self._node, self._begun_s)
        self._approach()

    def _approach(self) -> None:
        exchange = self._exchange
        way = exchange.forwarder.pools.way_to(self.instance, exchange.request.speech)
        self._acquire(*way)

    def _acquire(self, speech: Speech, pool: Pool | MeshPool) -> None:
        """`pool` is kept: the table, and with it the address's pool, may change meanwhile."""
        self._speech, self._pool = speech, pool
        self._waiter = Waiter(self._on_connection, self._on_unavailable)
        pool.acquire(self._waiter)

    def _leave_node(self) -> Node:
        """The attempt is over."""
        node, self._node = self._node, None
        assert node is not None
        node.in_flight -= 1
        return node

    def _on_connection(self, upstream: Upstream) -> None:
        """Translated no sooner than now: most of what never gets here need not be."""
        self._waiter = None
        exchange, speech, pool = self._exchange, self._speech, self._pool
        assert pool is not None
        request, done = exchange.request, exchange.translated
        body = done.body if done is not None and done.codec is speech.codec else None
        if body is None and request.speech != speech:
            forwarder = exchange.forwarder
            limit = forwarder.settings.max_body_bytes
            job = heavy.translation(request, speech.codec, limit)
            if job is not None:
                pool.release(upstream)
                self.is_translating = True
                forwarder.worker.ask(job, self._on_request_translated)
                return
            try:
                body = in_codec(request.body, request.speech.codec, speech.codec, limit)
            except CannotTranslate as error:
                pool.release(upstream)
                self._fail_translation(str(error))
                return
        self._sent_on = upstream
        self._sent_as = upstream.send(self._frame(body), self._on_upstream_reply, self._on_loss)
        if exchange.service.p95 is not None and self._sent_on is not None:
            exchange.on_sent(self)

    def _frame(self, body: bytes | None) -> Outgoing:
        """`body` is in the codec of the instance; None: it speaks as the caller does."""
        exchange, speech = self._exchange, self._speech
        request = exchange.request
        if speech.wire is Wire.MESH:
            exchange.forwarder.metrics.mesh_calls += 1
            body = request.body if body is None else body
            number, deadline_s = self._number - 1, exchange.deadline_s
            return MeshCall(request, speech.codec, body, deadline_s, number, exchange.caller)
        return request.raw if body is None else request_of(body, speech)

    def _on_request_translated(self, done: heavy.Done) -> None:
        """Another process has translated the body: on with it, over whichever connection."""
        self.is_translating = False
        if self._node is None:
            return
        if done.failure:
            self._fail_translation(done.failure)
            return
        self._exchange.translated = Translated(self._speech.codec, done.data)
        self._approach()

    def _fall_back(self) -> None:
        """Not processed by the instance's agent: at once to the instance itself, which may
        be well where its agent is leaving, gone, or of another version."""
        exchange = self._exchange
        forwarder = exchange.forwarder
        forwarder.metrics.mesh_fallbacks += 1
        speech = speech_of(self.instance, exchange.request.speech)
        self._acquire(speech, forwarder.pools.get(self.instance.address, speech.wire))

    def _fail_translation(self, why: str) -> None:
        self._leave_node()
        self._exchange.on_untranslatable(why)

    def _on_unavailable(self, why: Unavailable) -> None:
        self._waiter = None
        node, exchange = self._leave_node(), self._exchange
        if not why.is_overload:
            now_s = exchange.forwarder.loop.time()
            exchange.service.failed(node, self._begun_s, now_s, why.why, is_refused=why.is_refused)
            exchange.counts.transport_failures += 1
        exchange.on_unavailable(node, why)

    def _on_upstream_reply(self, answer: Answer | Unsent) -> None:
        upstream, pool = self._sent_on, self._pool
        assert upstream is not None
        assert pool is not None
        self._sent_on = None
        if isinstance(answer, Unsent):
            pool.release(upstream)
            self._fall_back()
            return
        reply = reply_of(answer, self._exchange.forwarder.settings.max_body_bytes)
        if reply.is_unsent:
            pool.release(upstream)
            self._on_unsent(reply)
            return
        node = self._leave_node()
        is_failure = self._judge(node, reply)
        # First: the client's next request, which the reply may set off, can use it again.
        pool.release(upstream)
        if is_failure:
            self._exchange.on_sent_failure(node, reply)
        else:
            self._exchange.on_reply(reply)

    def _on_unsent(self, reply: MoaReply) -> None:
        """The instance's agent promises that the instance has not seen the request."""
        is_overload = reply.ec == Ec.THREAD_POOL_IS_FULL
        what = "is full" if is_overload else "cannot reach it"
        why = f"{self.instance.address}: its agent {what}"
        self._on_unavailable(Unavailable(why, is_overload, is_refused=not is_overload))

    def _judge(self, node: Node, reply: MoaReply) -> bool:
        """Tell the service what a reply shows of its instance; whether it is a failure."""
        exchange = self._exchange
        now_s = exchange.forwarder.loop.time()
        if reply.header is not None and reply.header.load is not None:
            node.told(reply.header.load, now_s)
        ec = reply.ec
        if ec is not None and is_transport_failure(ec):
            exchange.service.failed(node, self._begun_s, now_s, f"replied ec {ec}")
            exchange.counts.transport_failures += 1
            return True
        exchange.service.succeeded(node, exchange.request.route.method, self._begun_s, now_s)
        exchange.forwarder.metrics.latency_s += now_s - self._begun_s
        exchange.forwarder.metrics.latencies += 1
        return False

    def _on_loss(self, why: str) -> None:
        upstream, self._sent_on = self._sent_on, None
        assert upstream is not None
        assert self._pool is not None
        node, exchange = self._leave_node(), self._exchange
        if self._speech.wire is not Wire.MESH:
            # An agent that ends says nothing of the instance, which the next request finds.
            exchange.service.failed(node, self._begun_s, exchange.forwarder.loop.time(), why)
        exchange.counts.transport_failures += 1
        self._pool.discard(upstream)
        exchange.on_sent_failure(node, failures.lost(exchange.request.route.uri, why))

    def time_out(self, now_s: float) -> None:
        """The deadline has come: a failure of the instance, if that is where the request is."""
        if self._node is not None:
            exchange = self._exchange
            method = exchange.request.route.method
            exchange.service.timed_out(self._node, method, self._begun_s, now_s)
            exchange.counts.transport_failures += 1

    def lag(self, now_s: float) -> None:
        """Somebody else was faster: it takes at least so long, and the balancer is to know."""
        if self._node is not None:
            exchange = self._exchange
            exchange.service.lagged(self._node, exchange.request.route.method, self._begun_s, now_s)

    def cancel(self) -> None:
        """Leave the connection or the queue; a late reply must not meet another request."""
        if self._waiter is not None and self._pool is not None:
            self._pool.leave(self._waiter)
            self._waiter = None
        if self._sent_on is not None and self._pool is not None:
            upstream, self._sent_on = self._sent_on, None
            self._pool.abandon(upstream, self._sent_as)
        if self._node is not None:
            self._leave_node()
