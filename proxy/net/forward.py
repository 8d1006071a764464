"""Routes requests: which instance, over which of the pools that it owns."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.message import MoaRequest
from proxy.core.model import Address, PeerAgent, ServiceTable
from proxy.core.policy import DEFAULT_POLICIES, Policies
from proxy.core.routing import Candidates, Router
from proxy.core.service import Service, Services
from proxy.net.deadlines import Deadlines
from proxy.net.exchange import Exchange, OutcomeCallback
from proxy.net.mesh_pool import MeshPoolSettings
from proxy.net.pool_types import PoolSettings
from proxy.net.pools import Pools
from proxy.net.worker import Worker
from proxy.obs.metrics import Metrics
from proxy.wire.moa import Route


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """Of the agent that forwards.

    `timeout_s` is for instances that say nothing; a body that is translated or decompressed
    has at most `max_body_bytes`. Without `mesh`, agents are not spoken to as such.
    """

    timeout_s: float
    max_body_bytes: int
    pool: PoolSettings
    mesh: MeshPoolSettings | None = None
    policies: Policies = DEFAULT_POLICIES


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
        self.services = Services(settings.policies, rand)
        self.pools = Pools(loop, settings.pool, metrics, source_for, settings.mesh, rand)
        self.worker = Worker(loop)
        self.deadlines = Deadlines(loop)
        self._router = router

    def update(self, table: ServiceTable) -> None:
        """Use a new table; pools of instances that are no longer listed are closed."""
        self.table = table
        self.services.update(table)
        self.pools.retain(table.addresses)

    def candidates(self, route: Route, zone: str | None = None) -> Candidates:
        return self._router.candidates(self.table, route, zone)

    def prepare(
        self, request: MoaRequest, on_outcome: OutcomeCallback, caller: PeerAgent | None = None
    ) -> Exchange:
        """An exchange to be started; `on_outcome` gets the reply, unless it is cancelled.

        `caller` is the node that a caller from another node is on, None for this one: it is
        routed in that one's zone, and known to the instance's agent as of its application.
        """
        return Exchange(self, request, on_outcome, caller)

    def load(self, address: Address) -> int:
        return self.pools.load(address)

    def service(self, uri: str) -> Service:
        """The state of a service that a request goes to."""
        return self.services.get(uri, self.loop.time())

    def close(self) -> None:
        """Fail what waits; nothing is sent any more."""
        self.table = ServiceTable()
        self.pools.close()
        self.worker.close()
