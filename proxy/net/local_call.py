"""Requests of other agents to the services of this node, each in the service's own protocol.

Unlike an `Exchange` a local call has no choice and no second try: whoever sent it has both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.core.deadline import effective_timeout_s
from proxy.core.message import (
    Answer,
    Codec,
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
from proxy.net.deadlines import Deadlines, Wheel
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
        self.table = ServiceTable()
        self.deadlines = Deadlines(loop)
        self._instances: dict[Address, Instance] = {}

    def update(self, table: ServiceTable) -> None:
        """What the services of this node speak may have changed."""
        self.table = table
        self._instances.clear()

    def service(self, address: Address | None) -> LocalService:
        """What an agent's connection asks that dialled this address; None: nobody knows which."""
        return LocalService(self, address)

    def instance(self, address: Address) -> Instance:
        """The registry's entry of an address; one that is in none speaks RESP."""
        found = self._instances.get(address)
        if found is None:
            listed = self.table.instances_by_key.values()
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


class LocalService:
    """One service of this node. How it is spoken to is found once, until the table changes."""

    __slots__ = ("_address", "_pools", "_services", "_table", "_ways")

    def __init__(self, services: LocalServices, address: Address | None) -> None:
        self._services = services
        self._address = address
        self._table = services.table
        self._pools = {} if address is None else services.pools.at(address)
        self._ways: dict[Codec, tuple[Speech, Pool]] = {}
        """By the codec of the request."""

    def load(self) -> int | None:
        """Requests under way to it, from agents."""
        if self._address is None:
            return None
        load = 0
        for pool in self._pools.values():
            load += pool.load
        return load

    def prepare(self, request: MoaRequest, on_outcome: OutcomeCallback) -> LocalCall:
        """A call to be started; `on_outcome` gets the reply, unless it is cancelled."""
        services = self._services
        if self._address is None:
            return LocalCall(services, None, request, request.speech, on_outcome)
        if self._table is not services.table:
            self._table = services.table
            self._ways.clear()
        codec = request.speech.codec
        way = self._ways.get(codec)
        if way is None:
            speech = speech_of(services.instance(self._address), request.speech)
            way = self._ways[codec] = speech, services.pools.get(self._address, speech.wire)
        return LocalCall(services, way[1], request, way[0], on_outcome)


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
        "_waiter",
        "_wheel",
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
        self._wheel: Wheel | None = None
        self._done = False

    @property
    def _uri(self) -> str:
        return self._request.route.uri

    def start(self) -> None:
        if self._pool is None:
            self._end(Failure(Ec.REMOTING, f"{UNSENT}the dialled address is unknown", True))
            return
        services, deadline_s = self._services, self._request.deadline_s
        now_s = services.loop.time()
        if deadline_s is None:
            timeout_s = effective_timeout_s(default_s=services.timeout_s)
        else:
            # In whole milliseconds, as the caller's agent says it: most requests share a few.
            timeout_s = max(0.0, round(deadline_s - now_s, 3))
        self._wheel = services.deadlines.of(timeout_s)
        self._wheel.add(self._expire, now_s + timeout_s)
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
        if self._done:
            return
        self._let_go()
        em = f"{self._uri}: no reply from the local service before the deadline"
        self._end(Failure(Ec.TIMEOUT, em))

    def cancel(self) -> None:
        """The caller has gone. Over RESP, closing is how the service learns it."""
        if not self._done:
            self._done = True
            self._let_go()
            self._drop_deadline()

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
            self._drop_deadline()
            self._on_outcome(outcome)

    def _drop_deadline(self) -> None:
        if self._wheel is not None:
            self._wheel.remove(self._expire)
