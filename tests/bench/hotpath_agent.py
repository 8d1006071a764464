"""The agent's net layer in a process of its own, for `hotpath`: it ends when its client has gone.

    python -m tests.bench.hotpath_agent CASE DESCRIPTOR PORT

serves the connection `DESCRIPTOR`, whose requests are for the instance, or for the local
service, that listens at `PORT`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

import uvloop

from proxy.core.mesh_calls import Origin
from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.core.routing import Router
from proxy.net.board import Board
from proxy.net.forward import Forwarder, ForwardSettings
from proxy.net.front import Front
from proxy.net.lane import LaneSettings
from proxy.net.local_call import LocalServices
from proxy.net.mesh_pool import MeshPoolSettings
from proxy.net.pool_types import PoolSettings
from proxy.net.served import Direction, Peer, SessionSettings
from proxy.obs.metrics import Metrics
from proxy.wire.mesh import Settings
from proxy.wire.resp import Limits

URI = "/service/echo"
_LIMITS = Limits()
_SLOTS = 256


@dataclass(frozen=True, slots=True)
class Case:
    """One way of a request through an agent; `board`: as a supervised agent notes it."""

    direction: Direction
    mesh: bool
    board: bool

    def __str__(self) -> str:
        wire = "mesh" if self.mesh else "RESP"
        return f"{self.direction.value} {wire}{', board' if self.board else ''}"

    @property
    def far_speaks_mesh(self) -> bool:
        return self.mesh and self.direction is Direction.OUTBOUND

    @property
    def near_speaks_mesh(self) -> bool:
        return self.mesh and self.direction is Direction.INBOUND


# An agent's connection is not noted: requests of it are the caller's agent's to send again.
CASES = tuple(
    Case(direction, mesh, board)
    for direction in Direction
    for mesh in (False, True)
    for board in (False, True)
    if not (mesh and board and direction is Direction.INBOUND)
)


async def _serve(case: Case, sock: socket.socket, address: Address) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    protocols = ("resp", "mesh") if case.far_speaks_mesh else ("resp",)
    table = ServiceTable.build({ServiceKey(URI): [Instance(address, protocols=protocols)]})
    forwarder = _forwarder(loop)
    forwarder.update(table)
    board = None
    if case.board:
        board = Board.create(os.memfd_create("board", os.MFD_CLOEXEC), _SLOTS)
    front = _front(forwarder, table, lambda: ended.set_result(None), board)
    if case.far_speaks_mesh:
        forwarder.pools.meet([address])
        while not forwarder.pools.met():
            await asyncio.sleep(0.01)
    sock.setblocking(False)
    client = Address(*sock.getpeername()[:2])
    front.serve(sock, Peer(case.direction, client, address, True, None))
    # As the agent does when it has started.
    gc.collect()
    gc.freeze()
    await ended


def _forwarder(loop: asyncio.AbstractEventLoop) -> Forwarder:
    largest = _LIMITS.max_element
    pool = PoolSettings(64, 2, 128, 64, 2.0, 60.0, 120.0, 0, largest)
    mesh = MeshPoolSettings(Settings(), Origin("app", "zone"), 1, 60.0, 2.0, mark=0)
    return Forwarder(
        loop,
        ForwardSettings(5.0, largest, pool, mesh),
        Router(zone="zone", default_group="*"),
        Metrics(),
        random.Random(1),
        lambda _address: None,
    )


def _front(
    forwarder: Forwarder, table: ServiceTable, on_end: Callable[[], None], board: Board | None
) -> Front:
    made = forwarder.settings
    local = LocalServices(
        forwarder.loop, made.pool, forwarder.metrics, made.timeout_s, made.max_body_bytes
    )
    local.update(table)
    settings = SessionSettings(
        limits=_LIMITS,
        max_pending_bytes=256 * 1024,
        pipeline_depth=1,
        packets_at_once=128,
        max_packet=_LIMITS.max_element,
        detect_wait_s=1.0,
        request_read_timeout_s=10.0,
        lane=LaneSettings(_LIMITS, connect_timeout_s=2.0, patience_s=2.0, mark=0),
    )
    return Front(settings, forwarder, on_end, Settings(), local, board)


def _main(number: int, descriptor: int, port: int) -> None:
    sock = socket.socket(fileno=descriptor)
    uvloop.run(_serve(CASES[number], sock, Address("127.0.0.1", port)))


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:4]))
