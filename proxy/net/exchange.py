"""One request on its way: an instance, a connection, the reply; another instance if need be.

Rule: what was never sent may be tried on another instance; what was sent is not, because it
may have been executed. Every request ends with exactly one reply, at the latest at its
deadline, unless its client has gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.core import heavy
from proxy.core.deadline import effective_timeout_s
from proxy.core.health import REFUSED
from proxy.core.mesh_calls import MeshCall
from proxy.core.message import (
    Answer,
    Failure,
    MoaReply,
    MoaRequest,
    Outcome,
    Speech,
    Unsent,
    Wire,
    reply_of,
    speech_of,
)
from proxy.core.model import Address, Instance
from proxy.core.retry import may_retry
from proxy.core.routing import Candidates
from proxy.core.translate import CannotTranslate, in_codec, request_of
from proxy.net.deadlines import Wheel
from proxy.net.mesh_pool import MeshPool
from proxy.net.pool import Pool
from proxy.net.pool_types import Unavailable, Waiter
from proxy.net.upstream import Outgoing, Upstream
from proxy.obs.metrics import ServiceCounts
from proxy.wire.moa import Ec, is_transport_failure

if TYPE_CHECKING:
    from proxy.net.forward import Forwarder

MAX_UNSENT_RETRIES = 3
"""Instances that may turn out to be dead before a request gives up; none of them saw it."""

OutcomeCallback = Callable[[Outcome], None]


def _ignore(_outcome: Outcome) -> None:
    return


_NOT_TRIED = Unavailable("no instance")


class Exchange:
    """A request and the way to its one reply."""

    __slots__ = (
        "_attempt",
        "_body",
        "_candidates",
        "_counts",
        "_deadline_s",
        "_done",
        "_forwarder",
        "_is_translating",
        "_number",
        "_on_outcome",
        "_pool",
        "_request",
        "_sent_on",
        "_speech",
        "_tried",
        "_waiter",
        "_wheel",
        "_zone",
        "instance",
    )

    def __init__(
        self,
        forwarder: Forwarder,
        request: MoaRequest,
        on_outcome: OutcomeCallback,
        zone: str | None,
    ) -> None:
        self._forwarder = forwarder
        self._request = request
        self._on_outcome = on_outcome
        self._zone = zone
        self._candidates: Candidates = forwarder.candidates(request.route, zone)
        self._counts: ServiceCounts = forwarder.metrics.service(request.route.uri)
        self._tried: frozenset[Address] = frozenset()
        self._attempt = 0
        self._deadline_s = 0.0
        self._pool: Pool | MeshPool | None = None
        self._waiter: Waiter | None = None
        self._sent_on: Upstream | None = None
        self._number = 0
        self._body: bytes | None = None
        """What a job made of the request's body, in the codec of `_speech`."""
        self._is_translating = False
        self._speech = request.speech
        self._wheel: Wheel | None = None
        self._done = False
        self.instance: Instance | None = None

    def start(self) -> None:
        metrics = self._forwarder.metrics
        metrics.requests += 1
        metrics.in_flight += 1
        self._counts.requests += 1
        self._try_next(_NOT_TRIED)

    def _try_next(self, last: Unavailable) -> None:
        instance = self._forwarder.choose(self._candidates, self._tried)
        if instance is None:
            self._give_up(last)
            return
        forwarder = self._forwarder
        now_s = forwarder.loop.time()
        if self._wheel is None:
            timeout_s = effective_timeout_s(
                instance_ms=instance.timeout_ms, default_s=forwarder.settings.timeout_s
            )
            if self._request.deadline_s is not None:
                left_s = round(self._request.deadline_s - now_s, 3)
                timeout_s = min(timeout_s, max(0.0, left_s))
            self._deadline_s = now_s + timeout_s
            self._wheel = forwarder.deadlines.of(timeout_s)
            self._wheel.add(self._expire, self._deadline_s)
        self._attempt += 1
        self.instance = instance
        forwarder.health.begin(instance.address, now_s)
        self._approach(instance)

    def _approach(self, instance: Instance) -> None:
        way = self._forwarder.pools.way_to(instance, self._request.speech)
        self._acquire(*way)

    def _acquire(self, speech: Speech, pool: Pool | MeshPool) -> None:
        """`pool` is kept: the table, and with it the address's pool, may change meanwhile."""
        if speech.codec is not self._speech.codec:
            self._body = None
        self._speech, self._pool = speech, pool
        self._waiter = Waiter(self._on_connection, self._on_unavailable)
        pool.acquire(self._waiter)

    def _give_up(self, last: Unavailable) -> None:
        if not self._candidates.instances:
            steps = "; ".join(self._candidates.steps)
            self._fail(Ec.SERVICE_NOT_FOUND, f"no instance of {self._request.route.uri}: {steps}")
        elif last.is_overload:
            self._fail(Ec.THREAD_POOL_IS_FULL, f"{self._request.route.uri}: {last.why}")
        else:
            self._fail(Ec.REMOTING, f"{self._request.route.uri}: {last.why}")

    def _on_connection(self, upstream: Upstream) -> None:
        """Translated no sooner than now: most of what never gets here need not be."""
        self._waiter = None
        pool = self._pool
        assert pool is not None
        request, speech, body = self._request, self._speech, self._body
        if body is None and request.speech != speech:
            limit = self._forwarder.settings.max_body_bytes
            job = heavy.translation(request, speech.codec, limit)
            if job is not None:
                pool.release(upstream)
                self._is_translating = True
                self._forwarder.worker.ask(job, self._on_request_translated)
                return
            try:
                body = in_codec(request.body, request.speech.codec, speech.codec, limit)
            except CannotTranslate as error:
                pool.release(upstream)
                self._fail_translation(str(error))
                return
        self._sent_on = upstream
        self._number = upstream.send(self._frame(body), self._on_upstream_reply, self._on_loss)

    def _frame(self, body: bytes | None) -> Outgoing:
        """`body` is in the codec of the instance; None: it speaks as the caller does."""
        request, speech = self._request, self._speech
        if speech.wire is Wire.MESH:
            self._forwarder.metrics.mesh_calls += 1
            body = request.body if body is None else body
            return MeshCall(request, speech.codec, body, self._deadline_s, self._attempt - 1)
        return request.raw if body is None else request_of(body, speech)

    def _on_request_translated(self, done: heavy.Done) -> None:
        """Another process has translated the body: on with it, over whichever connection."""
        self._is_translating = False
        if self._done:
            return
        if done.failure:
            self._fail_translation(done.failure)
            return
        assert self.instance is not None
        self._body = done.data
        self._approach(self.instance)

    def _fall_back(self) -> None:
        """Not processed by the instance's agent: at once to the instance itself, which may
        be well where its agent is leaving, gone, or of another version."""
        forwarder, instance = self._forwarder, self.instance
        assert instance is not None
        forwarder.metrics.mesh_fallbacks += 1
        speech = speech_of(instance, self._request.speech)
        self._acquire(speech, forwarder.pools.get(instance.address, speech.wire))

    def _fail_translation(self, why: str) -> None:
        self._fail(Ec.SERIALIZATION, f"{self._request.route.uri}: {why}; the request was not sent")

    def _on_unavailable(self, why: Unavailable) -> None:
        self._waiter = None
        assert self.instance is not None
        address, forwarder = self.instance.address, self._forwarder
        if not why.is_overload:
            weight = REFUSED if why.is_refused else 1
            forwarder.health.record_failure(address, forwarder.loop.time(), weight)
            self._counts.transport_failures += 1
        self._tried |= {address}
        if may_retry(
            sent=False,
            idempotent=False,
            attempt=self._attempt,
            remaining_s=self._deadline_s - forwarder.loop.time(),
            max_retries=MAX_UNSENT_RETRIES,
        ):
            forwarder.metrics.retried += 1
            # The table may have changed, and be the reason.
            self._candidates = forwarder.candidates(self._request.route, self._zone)
            self._try_next(why)
        else:
            self._give_up(why)

    def _on_upstream_reply(self, answer: Answer | Unsent) -> None:
        upstream, pool = self._sent_on, self._pool
        assert upstream is not None
        assert pool is not None
        self._sent_on = None
        if isinstance(answer, Unsent):
            pool.release(upstream)
            self._fall_back()
            return
        forwarder = self._forwarder
        address, now_s = upstream.address, forwarder.loop.time()
        reply = reply_of(answer, forwarder.settings.max_body_bytes)
        if reply.is_unsent and not self._done:
            pool.release(upstream)
            is_overload = reply.ec == Ec.THREAD_POOL_IS_FULL
            why = f"{address}: its agent {'is full' if is_overload else 'cannot reach it'}"
            self._on_unavailable(Unavailable(why, is_overload, is_refused=not is_overload))
            return
        is_failure = reply.ec is not None and is_transport_failure(reply.ec)
        if is_failure:
            forwarder.health.record_failure(address, now_s)
            self._counts.transport_failures += 1
        else:
            forwarder.health.record_success(address, now_s)
        # First: the client's next request, which the reply may set off, can use it again.
        pool.release(upstream)
        if not self._done:
            if is_failure:
                forwarder.metrics.transport_errors += 1
            else:
                forwarder.metrics.ok += 1
            self._end_with(reply)

    def _on_loss(self, why: str) -> None:
        upstream, self._sent_on = self._sent_on, None
        assert upstream is not None
        assert self._pool is not None
        forwarder = self._forwarder
        if self._speech.wire is not Wire.MESH:
            # An agent that ends says nothing of the instance, which the next request finds.
            forwarder.health.record_failure(upstream.address, forwarder.loop.time())
        self._counts.transport_failures += 1
        self._pool.discard(upstream)
        uri = self._request.route.uri
        em = f"{uri}: {why} before it replied; the request may have been executed"
        self._fail(Ec.REMOTING, em)

    def _expire(self) -> None:
        if self._done:
            return
        forwarder = self._forwarder
        forwarder.metrics.timeouts += 1
        where = f" from {self.instance.address}" if self.instance else ""
        sent = self._sent_on is not None
        if self.instance is not None and not self._is_translating:
            forwarder.health.record_failure(self.instance.address, forwarder.loop.time())
            self._counts.transport_failures += 1
        self._let_go()
        detail = "no reply" if sent else "no connection"
        self._fail(Ec.TIMEOUT, f"{self._request.route.uri}: {detail}{where} before the deadline")

    def cancel(self) -> None:
        """The client has gone. Over RESP, closing is how the server learns it."""
        self._on_outcome = _ignore
        if not self._done:
            self._forwarder.metrics.clients_cancelled += 1
            self._let_go()
            self._finish()

    def _let_go(self) -> None:
        """Leave the connection or the queue; a late reply must not meet another request."""
        if self._waiter is not None and self._pool is not None:
            self._pool.leave(self._waiter)
            self._waiter = None
        if self._sent_on is not None and self._pool is not None:
            upstream, self._sent_on = self._sent_on, None
            self._pool.abandon(upstream, self._number)

    def _fail(self, ec: Ec, em: str) -> None:
        if self._done:
            return
        self._forwarder.metrics.failed += 1
        self._counts.failed += 1
        self._end(Failure(ec, em))

    def _end_with(self, reply: MoaReply) -> None:
        """The reply is here: it is only the caller that waits for its translation."""
        codec = self._request.speech.codec
        if reply.speech.codec is codec:
            self._end(reply)
            return
        job = heavy.translation(reply, codec, self._forwarder.settings.max_body_bytes)
        if job is None:
            self._end(reply)
            return
        self._finish()
        self._forwarder.worker.ask(
            job, lambda done: self._on_outcome(heavy.translated(reply, codec, done))
        )

    def _end(self, outcome: Outcome) -> None:
        self._finish()
        self._on_outcome(outcome)

    def _finish(self) -> None:
        self._done = True
        self._forwarder.metrics.in_flight -= 1
        if self._wheel is not None:
            self._wheel.remove(self._expire)
