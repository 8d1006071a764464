"""One request on its way: an instance, a connection, the reply; another instance if need be.

Rule: what was never sent may be tried on another instance; what was sent is not, because it
may have been executed, unless its method is known to be idempotent and the retry budget has
something left. Every request ends with exactly one reply, at the latest at its deadline,
unless its client has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.core import heavy
from proxy.core.balancer import NOBODY, Node, Place
from proxy.core.deadline import effective_timeout_s, request_timeout_ms
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
from proxy.core.service import Service
from proxy.core.translate import CannotTranslate, in_codec, request_of
from proxy.net.deadlines import Wheel
from proxy.net.hedge import Hedge
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

STALL_S = 0.5
"""A timer that is so late tells of us and not of the instance."""

OutcomeCallback = Callable[[Outcome], None]

_NOT_TRIED = Unavailable("no instance")


def _ignore(_outcome: Outcome) -> None:
    return


class Exchange:
    """A request and the way to its one reply."""

    __slots__ = (
        "_attempt",
        "_begun_s",
        "_body",
        "_candidates",
        "_counts",
        "_deadline_s",
        "_done",
        "_extra",
        "_forwarder",
        "_hedge",
        "_hedge_timer",
        "_is_translating",
        "_last",
        "_node",
        "_number",
        "_on_outcome",
        "_pool",
        "_request",
        "_sent_on",
        "_service",
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
        self._service: Service = forwarder.service(request.route.uri)
        self._tried: frozenset[Address] = NOBODY
        self._attempt = 0
        self._extra = 0
        """How often it was sent besides the first time, as a retry or as a hedge."""
        self._begun_s = 0.0
        self._node: Node | None = None
        self._hedge: Hedge | None = None
        self._hedge_timer: asyncio.TimerHandle | None = None
        self._last: Outcome | None = None
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
        service = self._service
        policy = service.policy
        service.in_flight += 1
        if service.in_flight > policy.max_in_flight:
            self._reject(f"{policy.max_in_flight} requests are under way")
            return
        if policy.idempotent:
            service.budget.record_request()
        self._try_next(_NOT_TRIED)

    def _try_next(self, last: Unavailable) -> None:
        route, now_s = self._request.route, self._forwarder.loop.time()
        place = self._service.choose(self._candidates, route.props, now_s, self._tried)
        if place is None:
            self._give_up(last)
        else:
            self._try(place, now_s)

    def _try(self, place: Place, now_s: float) -> None:
        instance, node = place
        forwarder, service = self._forwarder, self._service
        if self._wheel is None:
            props = self._request.route.props
            timeout_s = effective_timeout_s(
                request_ms=request_timeout_ms(props) if props else None,
                instance_ms=instance.timeout_ms,
                service_ms=service.policy.timeout_ms,
                default_s=forwarder.settings.timeout_s,
            )
            service.used_s = now_s
            if self._request.deadline_s is not None:
                left_s = round(self._request.deadline_s - now_s, 3)
                timeout_s = min(timeout_s, max(0.0, left_s))
            self._deadline_s = now_s + timeout_s
            self._wheel = forwarder.deadlines.of(timeout_s)
            self._wheel.add(self._expire, self._deadline_s)
        self._attempt += 1
        self._begun_s = now_s
        self._node = node
        self.instance = instance
        service.begin(node, now_s)
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

    def _leave_node(self) -> Node:
        """The attempt is over."""
        node, self._node = self._node, None
        assert node is not None
        node.in_flight -= 1
        return node

    def _give_up(self, last: Unavailable) -> None:
        if self._last is not None:
            # It was sent once: what is said must not promise that it was not executed.
            self._end_failed(self._last)
        elif not self._candidates.instances:
            steps = "; ".join(self._candidates.steps)
            self._fail(Ec.SERVICE_NOT_FOUND, f"no instance of {self._request.route.uri}: {steps}")
        elif last is _NOT_TRIED:
            cap = self._service.policy.max_in_flight_instance
            self._reject(f"{cap} requests are under way to each instance")
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
        if self._service.p95 is not None and not self._extra and self._sent_on is not None:
            self._plan_hedge(self._service.p95.value_s())

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
        self._leave_node()
        self._fail(Ec.SERIALIZATION, f"{self._request.route.uri}: {why}; the request was not sent")

    def _on_unavailable(self, why: Unavailable) -> None:
        self._waiter = None
        node, forwarder = self._leave_node(), self._forwarder
        now_s = forwarder.loop.time()
        if not why.is_overload:
            self._service.failed(node, self._begun_s, now_s, why.why, is_refused=why.is_refused)
            self._counts.transport_failures += 1
        self._tried |= {node.address}
        if may_retry(
            sent=False,
            idempotent=False,
            attempt=self._attempt,
            remaining_s=self._deadline_s - now_s,
            max_retries=MAX_UNSENT_RETRIES,
        ):
            forwarder.metrics.retried += 1
            self._counts.retried += 1
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
        node, service = self._leave_node(), self._service
        is_failure = reply.ec is not None and is_transport_failure(reply.ec)
        if is_failure:
            service.failed(node, self._begun_s, now_s, f"replied ec {reply.ec}")
            self._counts.transport_failures += 1
        else:
            service.succeeded(node, self._request.route.method, self._begun_s, now_s)
        # First: the client's next request, which the reply may set off, can use it again.
        pool.release(upstream)
        if self._done:
            return
        if is_failure:
            self._on_sent_failure(node, reply)
        else:
            forwarder.metrics.ok += 1
            self._end_with(reply)

    def _on_loss(self, why: str) -> None:
        upstream, self._sent_on = self._sent_on, None
        assert upstream is not None
        assert self._pool is not None
        node = self._leave_node()
        if self._speech.wire is not Wire.MESH:
            # An agent that ends says nothing of the instance, which the next request finds.
            self._service.failed(node, self._begun_s, self._forwarder.loop.time(), why)
        self._counts.transport_failures += 1
        self._pool.discard(upstream)
        uri = self._request.route.uri
        em = f"{uri}: {why} before it replied; the request may have been executed"
        if not self._done:
            self._on_sent_failure(node, Failure(Ec.REMOTING, em))

    def _on_sent_failure(self, node: Node, outcome: Outcome) -> None:
        """What was sent failed: only what may run twice has another chance."""
        self._tried |= {node.address}
        self._last = outcome
        if self._hedge is None and not self._resend():
            self._end_failed(outcome)

    def _resend(self) -> bool:
        """Send it once more, to another instance, if that is allowed; whether it was."""
        service, now_s = self._service, self._forwarder.loop.time()
        route = self._request.route
        if not may_retry(
            sent=True,
            idempotent=service.is_idempotent(route.method),
            attempt=1 + self._extra,
            remaining_s=self._deadline_s - now_s,
            max_retries=service.policy.retries,
        ):
            return False
        self._candidates = self._forwarder.candidates(route, self._zone)
        place = service.choose(self._candidates, route.props, now_s, self._tried)
        if place is None or not self._take_budget(now_s):
            return False
        self._extra += 1
        self._counts.resent += 1
        self._forwarder.metrics.retried += 1
        self._try(place, now_s)
        return True

    def _take_budget(self, now_s: float) -> bool:
        if self._service.budget.try_take(now_s):
            return True
        self._counts.budget_exhausted += 1
        return False

    def _expire(self) -> None:
        if self._done:
            return
        forwarder = self._forwarder
        forwarder.metrics.timeouts += 1
        where = f" from {self.instance.address}" if self.instance else ""
        sent = self._sent_on is not None or self._last is not None
        now_s = forwarder.loop.time()
        # A loop that stood still (SIGSTOP, a frozen machine) may not have read the reply.
        is_ours = self._is_translating or now_s - self._deadline_s >= STALL_S
        if self._node is not None and not is_ours:
            self._service.timed_out(self._node, self._request.route.method, self._begun_s, now_s)
            self._counts.transport_failures += 1
        self._let_go()
        detail = "no reply" if sent else "no connection"
        self._fail(Ec.TIMEOUT, f"{self._request.route.uri}: {detail}{where} before the deadline")

    # Hedging: a second attempt while the first is under way

    def _plan_hedge(self, after_s: float | None) -> None:
        if after_s is None or not self._service.is_idempotent(self._request.route.method):
            return
        loop = self._forwarder.loop
        if loop.time() + after_s < self._deadline_s:
            self._hedge_timer = loop.call_later(after_s, self._start_hedge)

    def _start_hedge(self) -> None:
        node, service, now_s = self._node, self._service, self._forwarder.loop.time()
        if self._done or self._sent_on is None or node is None or self._extra:
            return
        tried = self._tried | {node.address}
        place = service.choose(self._candidates, self._request.route.props, now_s, tried)
        if place is None or not self._take_budget(now_s):
            return
        self._extra += 1
        self._counts.hedges += 1
        self._hedge = Hedge(self._forwarder, service, self._request, place, self._on_hedge_end)
        self._hedge.start()

    def _on_hedge_end(self, reply: MoaReply | None) -> None:
        """`reply` is None when the second attempt failed."""
        self._hedge = None
        if self._done:
            return
        if reply is not None:
            if self._node is not None:
                # It takes at least so long: the balancer is to know.
                now_s = self._forwarder.loop.time()
                self._service.lagged(self._node, self._request.route.method, self._begun_s, now_s)
            self._let_go()
            self._counts.hedges_won += 1
            self._forwarder.metrics.ok += 1
            self._end_with(reply)
        elif self._last is not None and self._node is None:
            self._end_failed(self._last)

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
        if self._node is not None:
            self._leave_node()
        if self._hedge is not None:
            self._hedge.cancel()
            self._hedge = None

    def _reject(self, why: str) -> None:
        """Too much is under way; nothing waits."""
        self._counts.capped += 1
        self._fail(Ec.THREAD_POOL_IS_FULL, f"{self._request.route.uri}: {why}; not sent")

    def _end_failed(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failure):
            self._fail(outcome.ec, outcome.em)
        else:
            self._forwarder.metrics.transport_errors += 1
            self._end_with(outcome)

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
        self._service.in_flight -= 1
        if self._wheel is not None:
            self._wheel.remove(self._expire)
        if self._hedge_timer is not None:
            self._hedge_timer.cancel()
        if self._hedge is not None:
            self._hedge.cancel()
