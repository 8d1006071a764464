"""The supervisor's keeper of peers: whom it believes to live, and what it writes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from installer.opsd.peers import PeerKeeper, PeerTimes
from interceptor import peers
from interceptor.node import Node
from proxy.core.model import Address, PeerAgent
from proxy.registry.agents import AgentDirectory
from tests.kernel.mesh import Mesh
from tests.support.lab import Lab

WITHIN_S = 20.0
TIMES = PeerTimes(ping_interval_s=0.1, answer_s=0.5, retry_s=0.2, stamp_s=0.1, valid_s=60)


@dataclass
class Door:
    """Answers PING as an agent's door does; or with something else, or not at all."""

    zone: str
    answer: bytes = b"+PONG\r\n"
    port: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    server: asyncio.Server | None = None

    async def open(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self.server is not None:
            self.server.close()
        for writer in self.writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with suppress(OSError):
            while await reader.read(100):
                writer.write(self.answer)

    @property
    def agent(self) -> PeerAgent:
        return PeerAgent(Address("127.0.0.1", self.port), "chat", self.zone)


async def _never() -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def kept(node: Node, *doors: Door) -> AsyncIterator[PeerKeeper]:
    """A keeper of zone `a` that runs; at the end it is stopped as by SIGTERM."""
    for door in doors:
        await door.open()
    keeper = PeerKeeper(
        node=node,
        directory=AgentDirectory("chat", [], [door.agent for door in doors]),
        follow=_never,
        zone="a",
        times=TIMES,
    )
    task = asyncio.create_task(keeper.run())
    try:
        yield keeper
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        for door in doors:
            await door.close()


def installed(lab: Lab) -> Node:
    mesh = Mesh(lab)
    mesh.kernel.install(mesh.settings())
    return mesh.kernel


async def written(node: Node, *doors: Door) -> None:
    """Wait until the fresh IPv4 slots hold exactly these doors."""
    with node.maps() as maps:
        async with asyncio.timeout(WITHIN_S):
            while {s.port for s in peers.read(maps) if s.valid_until_ns} != {d.port for d in doors}:
                await asyncio.sleep(0.01)


async def test_own_zone_is_preferred_while_it_lives(lab: Lab) -> None:
    node, near, near2, far = installed(lab), Door("a"), Door("a"), Door("b")
    async with kept(node, near, near2, far):
        await written(node, near, near2)
        await near.close()
        await written(node, near2)
        near2.answer = b"-ERR what\r\n"
        await written(node, far)
        await near.open()
        await written(node, near)
    with node.maps() as maps:
        assert peers.read(maps) == [], "a supervisor that is stopped leaves no peers behind"


async def test_peer_that_hangs_is_lost_and_found_again(lab: Lab) -> None:
    node, door = installed(lab), Door("a")
    async with kept(node, door) as keeper:
        await written(node, door)
        door.answer = b""
        await written(node)
        assert keeper.alive == []
        door.answer = b"+PONG\r\n"
        await written(node, door)


async def test_installation_that_goes_and_comes_is_followed(lab: Lab) -> None:
    mesh, door = Mesh(lab), Door("a")
    async with kept(mesh.kernel, door) as keeper:
        async with asyncio.timeout(WITHIN_S):
            while not keeper.alive:
                await asyncio.sleep(0.01)
        mesh.kernel.install(mesh.settings())
        await written(mesh.kernel, door)
        mesh.kernel.uninstall()
        assert not mesh.node.root.exists()
        mesh.kernel.install(mesh.settings())
        await written(mesh.kernel, door)
        mesh.kernel.uninstall()
    assert not mesh.node.root.exists()
