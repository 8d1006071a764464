"""Requests of other agents to the services of this node, each in the service's own protocol.

Unlike an `Exchange` a local call has no choice and no second try: whoever sent it has both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.core.deadline import effective_timeout_s
from proxy.core.message import (
    Answer,
    Failure,
    MoaRequest,
    Outcome,
    Speech,
    Unsent,
    reply_of,
    speech_of,
)
from proxy.core.model import Address, Instance, ServiceTable
from proxy.core.translate import CannotTranslate, request_frame
from proxy.net.pool import Pool
from proxy.net.pool_types import PoolSettings, Unavailable, Waiter
from proxy.net.pools import Pools
from proxy.net.sockets import LOOP_GUARD4, LOOP_GUARD6
from proxy.net.upstream import Upstream
from proxy.obs.metrics import Metrics
from proxy.wire.moa import UNSENT, Ec

OutcomeCallback = Callable[[Outcome], None]


class LocalServices:
    """Owns the connections to this node's services; what they speak is in the registry."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: PoolSettings,
        metrics: Metrics,
        timeout_s: float,
        max_body: int,
    ) -> None:
        """`timeout_s` is for requests that say nothing of a deadline."""
        self.loop = loop
        self.timeout_s = timeout_s
        self.max_body = max_body
        self.pools = Pools(loop, settings, metrics, _loop_guard)
        self._table = ServiceTable()
        self._instances: dict[Address, Instance] = {}

    def update(self, table: ServiceTable) -> None:
        """What the services of this node speak may have changed."""
        self._table = table
        self._instances.clear()

    def load(self, address: Address) -> int:
        """Requests under way to a service of this node, from agents."""
        return self.pools.load(address)

    def prepare(
        self, address: Address | None, request: MoaRequest, on_outcome: OutcomeCallback
    ) -> LocalCall:
        """A call to be started; `on_outcome` gets the reply, unless it is cancelled."""
        if address is None:
            return LocalCall(self, None, request, request.speech, on_outcome)
        speech = speech_of(self._instance(address), request.speech)
        pool = self.pools.get(address, speech.wire)
        return LocalCall(self, pool, request, speech, on_outcome)

    def _instance(self, address: Address) -> Instance:
        """The registry's entry of an address; one that is in none speaks RESP."""
        found = self._instances.get(address)
        if found is None:
            listed = self._table.instances_by_key.values()
            found = next(
                (i for instances in listed for i in instances if i.address == address),
                Instance(address),
            )
            self._instances[address] = found
        return found

    def close(self) -> None:
        self.pools.close()


def _loop_guard(address: Address) -> str:
    return LOOP_GUARD6 if ":" in address.host else LOOP_GUARD4


class LocalCall:
    """One request and its one outcome, at the latest at its deadline."""

    __slots__ = (
        "_done",
        "_number",
        "_on_outcome",
        "_pool",
        "_request",
        "_sent_on",
        "_services",
        "_speech",
        "_timer",
        "_waiter",
    )

    def __init__(
        self,
        services: LocalServices,
        pool: Pool | None,
        request: MoaRequest,
        speech: Speech,
        on_outcome: OutcomeCallback,
    ) -> None:
        """Without a `pool` nobody knows which service is meant."""
        self._services = services
        self._pool = pool
        self._request = request
        self._speech = speech
        self._on_outcome = on_outcome
        self._waiter: Waiter | None = None
        self._sent_on: Upstream | None = None
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._done = False

    @property
    def _uri(self) -> str:
        return self._request.route.uri

    def start(self) -> None:
        if self._pool is None:
            self._end(Failure(Ec.REMOTING, f"{UNSENT}the dialled address is unknown", True))
            return
        loop, deadline_s = self._services.loop, self._request.deadline_s
        if deadline_s is None:
            deadline_s = loop.time() + effective_timeout_s(default_s=self._services.timeout_s)
        self._timer = loop.call_at(deadline_s, self._expire)
        self._waiter = Waiter(self._on_connection, self._on_unavailable)
        self._pool.acquire(self._waiter)

    def _on_connection(self, upstream: Upstream) -> None:
        self._waiter = None
        assert self._pool is not None
        try:
            frame = request_frame(self._request, self._speech, self._services.max_body)
        except CannotTranslate as error:
            self._pool.release(upstream)
            self._end(Failure(Ec.SERIALIZATION, f"{self._uri}: {error}; it was not sent"))
            return
        self._sent_on = upstream
        self._number = upstream.send(frame, self._on_reply, self._on_loss)

    def _on_unavailable(self, why: Unavailable) -> None:
        self._waiter = None
        ec = Ec.THREAD_POOL_IS_FULL if why.is_overload else Ec.REMOTING
        self._end(Failure(ec, f"{UNSENT}{self._uri}: {why.why}", is_unsent=True))

    def _on_reply(self, answer: Answer | Unsent) -> None:
        upstream, self._sent_on = self._sent_on, None
        assert upstream is not None
        assert self._pool is not None
        assert not isinstance(answer, Unsent)
        # First: the next request, which the outcome may set off, can use it again.
        self._pool.release(upstream)
        self._end(reply_of(answer, self._services.max_body))

    def _on_loss(self, why: str) -> None:
        upstream, self._sent_on = self._sent_on, None
        assert upstream is not None
        assert self._pool is not None
        self._pool.discard(upstream)
        em = f"{self._uri}: {why} before it replied; the request may have been executed"
        self._end(Failure(Ec.REMOTING, em))

    def _expire(self) -> None:
        self._let_go()
        em = f"{self._uri}: no reply from the local service before the deadline"
        self._end(Failure(Ec.TIMEOUT, em))

    def cancel(self) -> None:
        """The caller has gone. Over RESP, closing is how the service learns it."""
        if not self._done:
            self._done = True
            self._let_go()
            self._stop_timer()

    def _let_go(self) -> None:
        if self._pool is None:
            return
        if self._waiter is not None:
            self._pool.leave(self._waiter)
            self._waiter = None
        if self._sent_on is not None:
            upstream, self._sent_on = self._sent_on, None
            self._pool.abandon(upstream, self._number)

    def _end(self, outcome: Outcome) -> None:
        if not self._done:
            self._done = True
            self._stop_timer()
            self._on_outcome(outcome)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
