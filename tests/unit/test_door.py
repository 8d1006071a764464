"""The door: who comes in, how many, and how supervisors are told to go elsewhere."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import pytest

from proxy.core.model import Address, PeerAgent
from proxy.net.door import Door, DoorSettings
from proxy.net.served import Served
from proxy.obs.metrics import Metrics
from tests.unit.net_support import read_end, until

LIMIT = 10
NODE = PeerAgent(Address("127.0.0.1", 15008), "chat", "a")


@dataclass
class Visitor:
    """What the door sees of a session."""

    number: int
    house: House
    sock: socket.socket
    service: str = ""
    requests: int = 1
    is_idle: bool = True
    started_s: float = 0.0

    def close(self) -> None:
        del self.house.sessions[self.number]
        self.sock.close()


@dataclass
class House:
    """A door on a free port, and who is inside."""

    sessions: dict[int, Visitor] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    known: dict[str, PeerAgent] = field(default_factory=lambda: {"127.0.0.1": NODE})
    is_shut: bool = False
    service: str = "/service/demo"
    """What the next visitor asks for; a supervisor only asks PING."""
    outside: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.door = Door(
            asyncio.get_running_loop(),
            DoorSettings((Address("127.0.0.1", self.port),), LIMIT),
            self.metrics,
            cast("dict[int, Served]", self.sessions),
            lambda host: self.known.get(host),
        )
        self.door.serve = self.serve
        self.door.open()

    def serve(self, sock: socket.socket, caller: PeerAgent) -> int | None:
        assert caller == NODE
        if self.is_shut:
            return None
        number = self.metrics.peer_accepted + 1
        self.sessions[number] = Visitor(number, self, sock, self.service)
        return number

    async def knock(self, source: str = "127.0.0.1") -> socket.socket | None:
        """Connect, and wait until the door has decided; None when it was refused at once."""
        before = self.metrics.peer_accepted + self.metrics.peer_refused
        sock = socket.socket()
        self.outside.append(sock)
        sock.setblocking(False)
        sock.bind((source, 0))
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        except ConnectionResetError:
            return None
        await until(
            lambda: self.metrics.peer_accepted + self.metrics.peer_refused > before, "a decision"
        )
        return sock


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    yield made
    made.door.close()
    for end in [*made.outside, *(visitor.sock for visitor in made.sessions.values())]:
        end.close()


async def is_reset(sock: socket.socket | None) -> bool:
    return sock is None or await read_end(sock) is ConnectionResetError


async def test_only_the_applications_nodes_come_in(house: House) -> None:
    await house.knock()
    assert await is_reset(await house.knock("127.0.0.2"))
    assert (len(house.sessions), house.metrics.peer_refused) == (1, 1)


async def test_agent_that_serves_nobody_refuses(house: House) -> None:
    house.is_shut = True
    assert await is_reset(await house.knock())


async def test_connections_are_bounded_and_who_leaves_makes_room(house: House) -> None:
    for _ in range(LIMIT):
        await house.knock()
    assert await is_reset(await house.knock())
    house.sessions[3].close()
    await house.knock()
    assert len(house.sessions) == LIMIT


async def test_supervisors_are_dismissed_before_it_is_full(house: House) -> None:
    """Nine tenths are callers' connections: the next supervisor hears that there is no room."""
    house.service = ""
    supervisor = await house.knock()
    assert supervisor is not None
    house.service = "/service/demo"
    for _ in range(LIMIT - 1):
        await house.knock()
    assert await read_end(supervisor) == b""
    assert len(house.sessions) == LIMIT - 1


async def test_who_has_just_come_is_not_dismissed(house: House) -> None:
    house.service = ""
    await house.knock()
    visitor = house.sessions[1]
    visitor.requests, visitor.started_s = 0, asyncio.get_running_loop().time()
    house.door.dismiss()
    assert len(house.sessions) == 1
    visitor.requests, visitor.is_idle = 1, False
    house.door.dismiss()
    assert len(house.sessions) == 1, "it is in the middle of a request"
    visitor.is_idle = True
    house.door.dismiss()
    assert house.sessions == {}


async def test_closed_door_keeps_who_is_inside(house: House) -> None:
    await house.knock()
    house.door.close()
    assert not house.door.is_open
    assert len(house.sessions) == 1
    with pytest.raises(ConnectionRefusedError):
        await house.knock()
