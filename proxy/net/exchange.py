"""One request on its way: attempts at instances, a deadline, one reply.

Rule: what was never sent may be tried on another instance; what was sent is not, because it
may have been executed, unless its method is known to be idempotent and the retry budget has
something left. Every request ends with exactly one reply, at the latest at its deadline,
unless its client has gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.core import failures, heavy
from proxy.core.balancer import NOBODY, Node, Place
from proxy.core.deadline import timeout_of
from proxy.core.message import Failure, MoaReply, MoaRequest, Outcome
from proxy.core.model import Address, Instance, PeerAgent
from proxy.core.retry import may_go_elsewhere
from proxy.core.routing import Candidates
from proxy.core.service import Service
from proxy.net.attempt import Attempt, Translated
from proxy.net.deadlines import Wheel
from proxy.net.hedge import Hedge, plan_hedge
from proxy.net.pool_types import Unavailable
from proxy.obs.metrics import ServiceCounts

if TYPE_CHECKING:
    from proxy.net.forward import Forwarder

STALL_S = 0.5
"""A timer that is so late tells of us and not of the instance."""

OutcomeCallback = Callable[[Outcome], None]

_NOT_TRIED = Unavailable("no instance")


class Exchange:
    """A request and the way to its one reply."""

    __slots__ = (
        "_attempt",
        "_attempts",
        "_candidates",
        "_done",
        "_extra",
        "_hedge",
        "_last",
        "_on_outcome",
        "_tried",
        "_wheel",
        "_zone",
        "caller",
        "counts",
        "deadline_s",
        "forwarder",
        "instance",
        "request",
        "service",
        "translated",
    )

    def __init__(
        self,
        forwarder: Forwarder,
        request: MoaRequest,
        on_outcome: OutcomeCallback,
        caller: PeerAgent | None,
    ) -> None:
        uri = request.route.uri
        self.forwarder = forwarder
        self.request = request
        self.caller = caller
        self.counts: ServiceCounts = forwarder.metrics.service(uri)
        self.service: Service = forwarder.service(uri)
        self.deadline_s = 0.0
        """Set when the first instance is chosen, whose own timeout may count."""
        self.instance: Instance | None = None
        """Where it was tried last."""
        self.translated: Translated | None = None
        self._on_outcome = on_outcome
        self._zone = None if caller is None else caller.zone
        self._candidates: Candidates = forwarder.candidates(request.route, self._zone)
        self._tried: frozenset[Address] = NOBODY
        self._attempt: Attempt | None = None
        self._attempts = 0
        self._extra = 0
        """How often it was sent besides the first time, as a retry or as a hedge."""
        self._hedge: Hedge | None = None
        self._last: Outcome | None = None
        self._wheel: Wheel | None = None
        self._done = False

    def start(self) -> None:
        metrics = self.forwarder.metrics
        metrics.requests += 1
        metrics.in_flight += 1
        self.counts.requests += 1
        service = self.service
        policy = service.policy
        service.in_flight += 1
        if service.in_flight > policy.max_in_flight:
            self._reject(f"{policy.max_in_flight} requests are under way")
            return
        if policy.idempotent:
            service.budget.record_request()
        self._try_next(_NOT_TRIED)

    def _try_next(self, last: Unavailable) -> None:
        route, now_s = self.request.route, self.forwarder.loop.time()
        place = self.service.choose(self._candidates, route.props, now_s, self._tried)
        if place is None:
            self._give_up(last)
        else:
            self._try(place, now_s)

    def _try(self, place: Place, now_s: float) -> None:
        if self._wheel is None:
            forwarder, own_ms = self.forwarder, self.service.policy.timeout_ms
            default_s = forwarder.settings.timeout_s
            timeout_s = timeout_of(self.request, place.instance, own_ms, default_s, now_s)
            self.service.used_s = now_s
            self.deadline_s = now_s + timeout_s
            self._wheel = forwarder.deadlines.of(timeout_s)
            self._wheel.add(self._expire, self.deadline_s)
        self._attempts += 1
        self.instance = place.instance
        self._attempt = Attempt(self, place, self._attempts, now_s)
        self._attempt.start()

    def _give_up(self, last: Unavailable) -> None:
        uri, found = self.request.route.uri, self._candidates
        if self._last is not None:
            # It was sent once: what is said must not promise that it was not executed.
            self._end_failed(self._last)
        elif not found.instances:
            self._fail(failures.no_instance(uri, found))
        elif last is _NOT_TRIED:
            cap = self.service.policy.max_in_flight_instance
            self._reject(f"{cap} requests are under way to each instance")
        else:
            self._fail(failures.unreachable(uri, last.why, is_overload=last.is_overload))

    # What an attempt tells

    def on_untranslatable(self, why: str) -> None:
        """Its body has no counterpart in the codec of the instance."""
        self._fail(failures.untranslatable(self.request.route.uri, why))

    def on_unavailable(self, node: Node, why: Unavailable) -> None:
        """It was never sent: another instance may be asked."""
        forwarder = self.forwarder
        self._tried |= {node.address}
        if may_go_elsewhere(self._attempts, self.deadline_s - forwarder.loop.time()):
            forwarder.metrics.retried += 1
            self.counts.retried += 1
            # The table may have changed, and be the reason.
            self._candidates = forwarder.candidates(self.request.route, self._zone)
            self._try_next(why)
        else:
            self._give_up(why)

    def on_reply(self, reply: MoaReply) -> None:
        """An instance answered, whatever its business result."""
        if self._done:
            return
        self.forwarder.metrics.ok += 1
        self._end_with(reply)

    def on_sent_failure(self, node: Node, outcome: Outcome) -> None:
        """What was sent failed: only what may run twice has another chance."""
        if self._done:
            return
        self._tried |= {node.address}
        self._last = outcome
        is_hedged = self._hedge is not None and self._hedge.is_under_way
        if not is_hedged and not self._resend():
            self._end_failed(outcome)

    def _resend(self) -> bool:
        """Send it once more, to another instance, if that is allowed; whether it was."""
        route, now_s = self.request.route, self.forwarder.loop.time()
        if not self.service.may_resend(route.method, self._extra, self.deadline_s - now_s):
            return False
        self._candidates = self.forwarder.candidates(route, self._zone)
        place = self.second_place(now_s)
        if place is None:
            return False
        self.counts.resent += 1
        self.forwarder.metrics.retried += 1
        self._try(place, now_s)
        return True

    def second_place(self, now_s: float, besides: Instance | None = None) -> Place | None:
        """Another instance for what was sent, if the retry budget pays for it."""
        tried = self._tried if besides is None else self._tried | {besides.address}
        service = self.service
        place = service.choose(self._candidates, self.request.route.props, now_s, tried)
        if place is None:
            return None
        if not service.budget.try_take(now_s):
            self.counts.budget_exhausted += 1
            return None
        self._extra += 1
        return place

    def _expire(self) -> None:
        attempt = self._attempt
        if self._done or attempt is None:
            return
        self.forwarder.metrics.timeouts += 1
        now_s = self.forwarder.loop.time()
        # A loop that stood still (SIGSTOP, a frozen machine) may not have read the reply.
        if not attempt.is_translating and now_s - self.deadline_s < STALL_S:
            attempt.time_out(now_s)
        was_sent = attempt.is_sent or self._last is not None
        self._let_go()
        address = attempt.instance.address
        self._fail(failures.late(self.request.route.uri, address, was_sent=was_sent))

    # Hedging: a second attempt while the first is under way

    def on_sent(self, attempt: Attempt) -> None:
        """Where the service's p95 is kept: what takes longer may be hedged."""
        if not self._extra:
            if self._hedge is not None:
                self._hedge.cancel()
            self._hedge = plan_hedge(self, attempt)

    def on_hedge_end(self, reply: MoaReply | None) -> None:
        """`reply` is None when the second attempt failed."""
        attempt = self._attempt
        assert attempt is not None
        if reply is not None:
            attempt.lag(self.forwarder.loop.time())
            self._let_go()
            self.counts.hedges_won += 1
            self.on_reply(reply)
        elif self._last is not None and attempt.is_over:
            self._end_failed(self._last)

    # The end

    def cancel(self) -> None:
        """The client has gone. Over RESP, closing is how the server learns it."""
        self._on_outcome = lambda _: None
        if not self._done:
            self.forwarder.metrics.clients_cancelled += 1
            self._let_go()
            self._finish()

    def _let_go(self) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
        if self._hedge is not None:
            self._hedge.cancel()

    def _reject(self, why: str) -> None:
        self.counts.capped += 1
        self._fail(failures.capped(self.request.route.uri, why))

    def _end_failed(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failure):
            self._fail(outcome)
        else:
            self.forwarder.metrics.transport_errors += 1
            self._end_with(outcome)

    def _fail(self, failure: Failure) -> None:
        if not self._done:
            self.forwarder.metrics.failed += 1
            self.counts.failed += 1
            self._finish()
            self._on_outcome(failure)

    def _end_with(self, reply: MoaReply) -> None:
        """The reply is here: it is only the caller that waits for its translation."""
        codec, forwarder = self.request.speech.codec, self.forwarder
        self._finish()
        if reply.speech.codec is not codec:
            job = heavy.translation(reply, codec, forwarder.settings.max_body_bytes)
            if job is not None:
                forwarder.worker.ask(
                    job, lambda done: self._on_outcome(heavy.translated(reply, codec, done))
                )
                return
        self._on_outcome(reply)

    def _finish(self) -> None:
        self._done = True
        # The two hold each other: left so, only the garbage collector would free them.
        self._attempt = None
        self.forwarder.metrics.in_flight -= 1
        self.service.in_flight -= 1
        if self._wheel is not None:
            self._wheel.remove(self._expire)
        if self._hedge is not None:
            self._hedge.cancel()
