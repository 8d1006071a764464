"""One request on its way: an instance, a connection, the reply; another instance if need be.

Rule: what was never sent may be tried on another instance; what was sent is not, because it
may have been executed. Every request ends with exactly one reply, at the latest at its
deadline, unless its client has gone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.balancer import pick
from proxy.core.deadline import effective_timeout_s
from proxy.core.health import REFUSED, HealthBook
from proxy.core.model import Address, Instance, ServiceTable
from proxy.core.retry import may_retry
from proxy.core.routing import Candidates, Router, narrow
from proxy.net.pool import Pool, PoolSettings, Unavailable, Waiter
from proxy.net.upstream import Upstream
from proxy.obs.metrics import Metrics, ServiceCounts
from proxy.wire.moa import Ec, Route, error_body, is_transport_failure, is_unsent, parse_ec
from proxy.wire.resp import Reply, bulk

MAX_UNSENT_RETRIES = 3
"""Instances that may turn out to be dead before a request gives up; none of them saw it."""

ReplyCallback = Callable[[bytes], None]

_NOT_TRIED = Unavailable("no instance")


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """Of the agent that forwards; `timeout_s` is for instances that say nothing."""

    timeout_s: float
    pool: PoolSettings


class Forwarder:
    """Routes requests over the pools of all instances, which it owns."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: ForwardSettings,
        router: Router,
        metrics: Metrics,
        rand: random.Random,
        source_for: Callable[[Address], str | None],
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.table = ServiceTable()
        self.metrics = metrics
        self.health = HealthBook(rand)
        self.pools: dict[Address, Pool] = {}
        self._router = router
        self._rand = rand
        self._source_for = source_for

    def update(self, table: ServiceTable) -> None:
        """Use a new table; pools of instances that are no longer listed are closed."""
        self.table = table
        self.health.retain(table.addresses)
        for address in self.pools.keys() - table.addresses:
            self.pools.pop(address).close()

    def candidates(self, route: Route) -> Candidates:
        return self._router.candidates(self.table, route)

    def prepare(self, request: bytes, route: Route, on_reply: ReplyCallback) -> Exchange:
        """An exchange to be started; `on_reply` gets the RESP reply, unless it is cancelled."""
        return Exchange(self, request, route, on_reply)

    def pool(self, address: Address) -> Pool:
        pool = self.pools.get(address)
        if pool is None:
            pool = Pool(self.loop, address, self.settings.pool, self._source_for(address))
            self.pools[address] = pool
        return pool

    def load(self, address: Address) -> int:
        pool = self.pools.get(address)
        return 0 if pool is None else pool.load

    def choose(self, found: Candidates, exclude: frozenset[Address]) -> Instance | None:
        """A healthy instance that was not tried yet; None when all were."""
        usable = self.health.usable(found.instances, self.loop.time())
        chosen = pick(narrow(found, usable), self.load, self._rand, exclude)
        if chosen is None and exclude:
            # Better one that is ejected than none: everything healthy was tried.
            chosen = pick(found.instances, self.load, self._rand, exclude)
        return chosen

    def close(self) -> None:
        """Fail what waits; nothing is sent any more."""
        self.table = ServiceTable()
        while self.pools:
            # One that fails may ask for another: none is listed now.
            self.pools.popitem()[1].close()


class Exchange:
    """A request and the way to its one reply."""

    __slots__ = (
        "_attempt",
        "_candidates",
        "_counts",
        "_deadline_s",
        "_done",
        "_forwarder",
        "_on_reply",
        "_pool",
        "_request",
        "_route",
        "_sent_on",
        "_timer",
        "_tried",
        "_waiter",
        "instance",
    )

    def __init__(
        self, forwarder: Forwarder, request: bytes, route: Route, on_reply: ReplyCallback
    ) -> None:
        self._forwarder = forwarder
        self._request = request
        self._route = route
        self._on_reply = on_reply
        self._candidates: Candidates = forwarder.candidates(route)
        self._counts: ServiceCounts = forwarder.metrics.service(route.uri)
        self._tried: frozenset[Address] = frozenset()
        self._attempt = 0
        self._deadline_s = 0.0
        self._pool: Pool | None = None
        self._waiter: Waiter | None = None
        self._sent_on: Upstream | None = None
        self._timer: asyncio.TimerHandle | None = None
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
        if self._timer is None:
            timeout_s = effective_timeout_s(
                instance_ms=instance.timeout_ms, default_s=forwarder.settings.timeout_s
            )
            self._deadline_s = now_s + timeout_s
            self._timer = forwarder.loop.call_at(self._deadline_s, self._expire)
        self._attempt += 1
        self.instance = instance
        forwarder.health.begin(instance.address, now_s)
        # Kept: the table, and with it the address's pool, may change before the reply.
        self._pool = forwarder.pool(instance.address)
        self._waiter = Waiter(self._on_connection, self._on_unavailable)
        self._pool.acquire(self._waiter)

    def _give_up(self, last: Unavailable) -> None:
        if not self._candidates.instances:
            steps = "; ".join(self._candidates.steps)
            self._fail(Ec.SERVICE_NOT_FOUND, f"no instance of {self._route.uri}: {steps}")
        elif last.is_overload:
            self._fail(Ec.THREAD_POOL_IS_FULL, f"{self._route.uri}: {last.why}")
        else:
            self._fail(Ec.REMOTING, f"{self._route.uri}: {last.why}")

    def _on_connection(self, upstream: Upstream) -> None:
        self._waiter = None
        self._sent_on = upstream
        upstream.send(self._request, self._on_upstream_reply, self._on_loss)

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
            self._candidates = forwarder.candidates(self._route)
            self._try_next(why)
        else:
            self._give_up(why)

    def _on_upstream_reply(self, reply: Reply) -> None:
        upstream, pool = self._sent_on, self._pool
        assert upstream is not None
        assert pool is not None
        self._sent_on = None
        forwarder = self._forwarder
        address, now_s = upstream.address, forwarder.loop.time()
        body = b"" if reply.begin < 0 else reply.payload or b""
        if is_unsent(body) and not self._done:
            pool.release(upstream)
            why = f"{address}: its agent cannot reach it"
            self._on_unavailable(Unavailable(why, is_refused=True))
            return
        ec = parse_ec(body)
        is_failure = ec is not None and is_transport_failure(ec)
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
            self._end(reply.raw)

    def _on_loss(self, why: str) -> None:
        assert self._sent_on is not None
        forwarder = self._forwarder
        forwarder.health.record_failure(self._sent_on.address, forwarder.loop.time())
        self._counts.transport_failures += 1
        self._let_go()
        self._fail(
            Ec.REMOTING,
            f"{self._route.uri}: {why} before it replied; the request may have been executed",
        )

    def _expire(self) -> None:
        if self._done:
            return
        forwarder = self._forwarder
        forwarder.metrics.timeouts += 1
        where = f" from {self.instance.address}" if self.instance else ""
        sent = self._sent_on is not None
        if self.instance is not None:
            forwarder.health.record_failure(self.instance.address, forwarder.loop.time())
            self._counts.transport_failures += 1
        self._let_go()
        detail = "no reply" if sent else "no connection"
        self._fail(Ec.TIMEOUT, f"{self._route.uri}: {detail}{where} before the deadline")

    def cancel(self) -> None:
        """The client has gone. RESP has no cancel: closing is how the server learns it."""
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
            self._pool.discard(upstream)

    def _fail(self, ec: Ec, em: str) -> None:
        if self._done:
            return
        self._forwarder.metrics.failed += 1
        self._counts.failed += 1
        self._end(bulk(error_body(ec, em)))

    def _end(self, reply: bytes) -> None:
        self._finish()
        self._on_reply(reply)

    def _finish(self) -> None:
        self._done = True
        self._forwarder.metrics.in_flight -= 1
        if self._timer is not None:
            self._timer.cancel()
