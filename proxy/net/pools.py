"""The pools of all instances: one for each address and each way of speaking to it."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from functools import partial

from proxy.core.message import OVER_MESH, Speech, Wire, speech_of
from proxy.core.model import Address, Instance
from proxy.net.mesh_pool import MeshPool, MeshPoolSettings
from proxy.net.pool import Pool
from proxy.net.pool_types import PoolSettings
from proxy.net.resp_upstream import RespUpstream
from proxy.net.turbo_upstream import TurboUpstream
from proxy.net.upstream import Upstream
from proxy.obs.metrics import Metrics
from proxy.wire.resp import Limits
from proxy.wire.turbo import Form, PacketLimits

_FRAMING_BYTES = 64 * 1024
"""What a reply may have besides its one large element."""

_FORMS = {Wire.TURBO: Form.PACKET19, Wire.TURBO9: Form.PACKET9}


class Pools:
    """Makes a pool when an instance is first asked, and closes those that are not listed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: PoolSettings,
        metrics: Metrics,
        source_for: Callable[[Address], str | None],
        mesh: MeshPoolSettings | None = None,
        rand: random.Random | None = None,
    ) -> None:
        """Without `mesh` no agent is spoken to as one."""
        self._loop = loop
        self._settings = settings
        self._metrics = metrics
        self._source_for = source_for
        largest = settings.max_reply_bytes
        self._resp_limits = Limits(max_element=largest, max_frame=largest + _FRAMING_BYTES)
        self._packet_limits = PacketLimits(max_body=largest)
        self._pools: dict[Address, dict[Wire, Pool]] = {}
        self._mesh = mesh
        self._rand = rand or random.Random()
        self._mesh_pools: dict[Address, MeshPool] = {}

    def __iter__(self) -> Iterator[Pool]:
        for by_wire in self._pools.values():
            yield from by_wire.values()

    @property
    def mesh_pools(self) -> Iterator[MeshPool]:
        """The pools to instances' agents."""
        return iter(self._mesh_pools.values())

    def way_to(self, instance: Instance, caller: Speech) -> tuple[Speech, Pool | MeshPool]:
        """How a request goes now: over the mesh where that is confirmed, else the own way.

        A service of this node is reached past its agent, which is this one.
        """
        own = speech_of(instance, caller)
        if self._mesh is not None and "mesh" in instance.protocols:
            mesh = self._mesh_pools.get(instance.address) or self._new_mesh(instance.address)
            if mesh is not None and mesh.is_ready():
                return OVER_MESH[own.codec], mesh
        return own, self.get(instance.address, own.wire)

    def _new_mesh(self, address: Address) -> MeshPool | None:
        if self._mesh is None or self._source_for(address) is not None:
            return None
        pool = MeshPool(
            self._loop,
            address,
            self._mesh,
            self._metrics,
            self._rand,
            partial(self._drop_idle, address),
        )
        self._mesh_pools[address] = pool
        return pool

    def _drop_idle(self, address: Address) -> None:
        """Idle connections went through the agent that is leaving, too: it is closing them."""
        for pool in self._pools.get(address, {}).values():
            pool.drop_idle()

    def at(self, address: Address) -> dict[Wire, Pool]:
        """The pools of an address, with those that are made later, until they are closed."""
        by_wire = self._pools.get(address)
        if by_wire is None:
            by_wire = self._pools[address] = {}
        return by_wire

    def get(self, address: Address, wire: Wire) -> Pool:
        by_wire = self.at(address)
        pool = by_wire.get(wire)
        if pool is None:
            pool = by_wire[wire] = self._new(address, wire)
        return pool

    def load(self, address: Address) -> int:
        """Requests on their way to an address, or waiting for a connection."""
        by_wire = self._pools.get(address)
        load = 0 if by_wire is None else sum([pool.load for pool in by_wire.values()])
        mesh = self._mesh_pools.get(address)
        return load if mesh is None else load + mesh.load

    def load_hint(self, address: Address) -> int | None:
        """Requests in flight at an instance, from all callers, as its agent said last."""
        mesh = self._mesh_pools.get(address)
        return None if mesh is None else mesh.load_hint

    # Connections that change hands (docs/UPGRADE.md)

    def set_aside(self, every: int) -> Iterator[tuple[Pool, Wire, Upstream]]:
        """See `Pool.set_aside`: of all pools."""
        for by_wire in self._pools.values():
            for wire, pool in by_wire.items():
                for upstream in pool.set_aside(every):
                    yield pool, wire, upstream

    def meet(self, addresses: Iterable[Address]) -> None:
        """Connect to the agents of these instances, before a request would."""
        for address in addresses:
            mesh = self._mesh_pools.get(address) or self._new_mesh(address)
            if mesh is not None:
                mesh.is_ready()

    def met(self) -> list[Address]:
        """Instances whose agents have shown that they speak the mesh protocol."""
        return [address for address, pool in self._mesh_pools.items() if pool.connections]

    def retire_mesh(self) -> None:
        """End the connections to agents in peace: requests go another way from now on."""
        while self._mesh_pools:
            self._mesh_pools.popitem()[1].close()

    def retain(self, addresses: AbstractSet[Address]) -> None:
        """Close the pools of all other addresses."""
        for address in self._pools.keys() - addresses:
            self._close(address)
        for address in self._mesh_pools.keys() - addresses:
            self._mesh_pools.pop(address).close()

    def close(self) -> None:
        while self._pools:
            # Who is failed by this may ask for another: none is listed now.
            self._close(next(iter(self._pools)))
        while self._mesh_pools:
            self._mesh_pools.popitem()[1].close()

    def _close(self, address: Address) -> None:
        for pool in self._pools.pop(address).values():
            pool.close()

    def _new(self, address: Address, wire: Wire) -> Pool:
        settings = self._settings
        make = partial(self._connect_resp, address)
        size = settings.size
        if wire is not Wire.RESP:
            make = partial(self._connect_turbo, address, _FORMS[wire])
            size = settings.shared_size
        return Pool(self._loop, address, settings, make, size, self._source_for(address))

    def _connect_resp(self, address: Address, sock: socket.socket) -> Upstream:
        return RespUpstream(self._loop, sock, address, self._resp_limits)

    def _connect_turbo(self, address: Address, form: Form, sock: socket.socket) -> Upstream:
        capacity = self._settings.shared_requests
        return TurboUpstream(
            self._loop, sock, address, form, self._packet_limits, self._count_late, capacity
        )

    def _count_late(self) -> None:
        self._metrics.late_replies += 1
