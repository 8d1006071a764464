"""The giver's own bounds; what it does with real agents is in tests/e2e/test_upgrade*.py."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import cast

from proxy.core.model import Address
from proxy.net.handover.channel import Channel
from proxy.net.handover.giver import Giver, GiveSettings
from proxy.net.handover.sides import GivingSide, IdleUpstream
from proxy.net.moved import Kind, Moved
from proxy.net.served import Direction, Served
from proxy.wire.handover import MAX_LENGTH, Received
from proxy.wire.handover import handover_pb2 as pb
from tests.unit.net_support import tcp_pair, until


class Settled:
    """A connection that can leave at once, with so many bytes that nobody has served."""

    is_settled = True

    def __init__(self, number: int, unread: int) -> None:
        self.far, self.near = tcp_pair()
        self.has_gone = self.is_frozen = False
        self._number, self._unread = number, unread

    def freeze(self, on_settled: Callable[[], None]) -> None:
        self.is_frozen = True
        asyncio.get_running_loop().call_soon(on_settled)

    def thaw(self) -> None:
        self.is_frozen = False

    def export(self) -> Moved:
        return Moved(
            number=self._number,
            kind=Kind.RESP,
            direction=Direction.OUTBOUND,
            client=self.near,
            original=Address("127.0.0.1", 1),
            unread=bytes(self._unread),
        )

    def let_go(self) -> None:
        self.has_gone = True


class Side:
    """An agent with these connections and nothing else."""

    next_number = 100

    def __init__(self, *sizes: int) -> None:
        self.connections = {n: Settled(n, size) for n, size in enumerate(sizes, 1)}

    @property
    def sessions(self) -> Mapping[int, Served]:
        left = {n: c for n, c in self.connections.items() if not c.has_gone}
        return cast(Mapping[int, Served], left)

    def shared(self) -> dict[str, int]:
        return {}

    def step_back(self) -> None:
        return

    def step_forward(self) -> None:
        return

    def stay(self) -> None:
        return

    def state(self, *, is_last: bool, with_table: bool) -> dict[str, bytes]:
        return {}

    def idle_upstreams(self, *, is_last: bool) -> list[IdleUpstream]:
        return []


async def test_connection_too_large_for_a_frame_stays_and_the_others_move() -> None:
    """One does not fit alone, and two do not fit together."""
    loop, side = asyncio.get_running_loop(), Side(10, MAX_LENGTH, MAX_LENGTH - 2**21, 2**21)
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    giving, taking = Channel(loop, near), Channel(loop, far)
    ends: list[str | None] = []
    done: list[pb.Done] = []

    def accept(received: Received, _fds: list[int] | None) -> None:
        message = received.message
        if isinstance(message, pb.Shared):
            taking.send(pb.Accepted(batch=0))
        elif isinstance(message, pb.Prepare):
            taken = [connection.number for connection in message.connections]
            taking.send(pb.Accepted(batch=message.batch, taken=taken))
        elif isinstance(message, pb.Done):
            done.append(message)

    taking.on_frame = accept
    giving.start()
    taking.start()
    giver = Giver(
        loop, giving, cast(GivingSide, side), GiveSettings(), lambda _progress: None, ends.append
    )
    try:
        giver.start(100, needs_table=False)
        await until(lambda: done)
        assert ends == [None]
        assert (done[0].moved, done[0].left) == (3, 1)
        assert [n for n, c in side.connections.items() if not c.has_gone] == [2]
        assert not side.connections[2].is_frozen, "it goes on here"
    finally:
        giving.close()
        taking.close()
        for connection in side.connections.values():
            connection.far.close()
            connection.near.close()
