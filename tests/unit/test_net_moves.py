"""A connection changes hands: between two fronts of one loop, at every point of a dialogue.

`Hands` does what giver and taker do: freeze, export, through the wire's message and back with
descriptors of its own, adopt, let go, begin.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.model import Address, ServiceTable
from proxy.net.front import Front
from proxy.net.handover.codec import from_message, to_message
from proxy.net.moved import Kind, Moved
from proxy.net.served import Direction, Peer
from proxy.wire.handover import handover_pb2 as pb
from proxy.wire.resp import bulk, encode_command
from proxy.wire.turbo import Cmd, encode
from tests.unit.net_support import (
    PacketConnection,
    Server,
    fill,
    forwarder_of,
    front_of,
    read_end,
    read_exactly,
    session_settings,
    table_of,
    tcp_pair,
    turns,
    until,
)

URI = "/service/demo"
PONG = b"+PONG\r\n"


def get(n: int) -> bytes:
    body = {"action": URI, "params": {"m": "echo", "args": [n]}}
    return encode_command(b"GET", json.dumps(body).encode())


def ok(n: int) -> bytes:
    return bulk(b'{"ec":200,"em":"","result":%d}' % n)


class Hands:
    """Two agents' fronts, and a client whose connection the first one has."""

    def __init__(self, table: ServiceTable, original: Address | None, **changes: float) -> None:
        made = session_settings(**changes)
        self.forwarders = [forwarder_of(table), forwarder_of(table)]
        self.fronts = [front_of(forwarder, made) for forwarder in self.forwarders]
        self.at = 0
        self.client, near = tcp_pair()
        self.peer = Peer(
            Direction.OUTBOUND, Address("127.0.0.1", 1), original, original in table.addresses, None
        )
        self.number = self.fronts[0].serve(near, self.peer)

    @property
    def front(self) -> Front:
        return self.fronts[self.at]

    async def settle(self) -> None:
        settled = asyncio.Event()
        self.front.sessions[self.number].freeze(settled.set)
        await asyncio.wait_for(settled.wait(), 5)

    def export(self) -> Moved:
        """As it arrives at the other agent."""
        moved = self.front.sessions[self.number].export()
        wire = pb.Connection.FromString(to_message(moved).SerializeToString())
        sockets = [moved.client.dup()] + ([moved.server.dup()] if moved.server else [])
        arrived = from_message(wire, sockets)
        assert arrived == replace(moved, client=sockets[0], server=(*sockets, None)[1])
        return arrived

    async def move(self) -> Moved:
        await self.settle()
        moved, taker = self.export(), self.fronts[1 - self.at]
        taker.adopt(moved, self.peer)
        self.front.sessions[self.number].let_go()
        assert not self.front.sessions
        self.at = 1 - self.at
        taker.begin(self.number)
        return moved

    def send(self, data: bytes) -> None:
        assert self.client.send(data) == len(data)

    async def call(self, data: bytes, reply: bytes) -> None:
        self.send(data)
        assert await read_exactly(self.client, len(reply)) == reply

    def close(self) -> None:
        self.client.close()
        for front in self.fronts:
            for session in list(front.sessions.values()):
                session.close()
        for forwarder in self.forwarders:
            forwarder.close()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    started = await Server.start()
    yield started
    started.close()


async def test_silent_client_moves(server: Server) -> None:
    hands = Hands(table_of(URI, server.address), server.address)
    assert (await hands.move()).kind is Kind.DETECTING
    await hands.call(b"PING\r\n", PONG)
    hands.close()


async def test_half_a_request_moves(server: Server) -> None:
    hands = Hands(table_of(URI, server.address), server.address)
    whole = get(7)
    hands.send(whole[:20])
    await until(lambda: hands.front.sessions[hands.number].client.bytes_in == 20)
    moved = await hands.move()
    assert (moved.kind, moved.unread) == (Kind.RESP, whole[:20])
    hands.send(whole[20:])
    await (await server.connection()).answer(ok(7))
    assert await read_exactly(hands.client, len(ok(7))) == ok(7)
    hands.close()


async def test_request_under_way_is_answered_before_the_move_and_those_behind_it_after(
    server: Server,
) -> None:
    hands = Hands(table_of(URI, server.address), server.address, pipeline_depth=1)
    hands.send(get(1) + get(2) + get(3))
    connection = await server.connection()
    await connection.command()
    moving = asyncio.ensure_future(hands.move())
    await turns()
    assert not moving.done()
    connection.send(ok(1))
    moved = await moving
    assert moved.unread == get(2) + get(3)
    later = await server.connection(1)
    await later.answer(ok(2))
    await later.answer(ok(3))
    expected = ok(1) + ok(2) + ok(3)
    assert await read_exactly(hands.client, len(expected)) == expected
    hands.close()


async def test_what_a_client_has_set_moves(server: Server) -> None:
    hands = Hands(table_of(URI, server.address), server.address)
    hands.send(encode_command(b"HELLO", b"3", b"SETNAME", b"me"))
    await until(lambda: hands.client.recv(1, socket.MSG_PEEK) if _has(hands.client) else b"")
    hands.client.recv(65536)
    await hands.move()
    await hands.call(encode_command(b"CLIENT", b"GETNAME"), b"$2\r\nme\r\n")
    await hands.call(encode_command(b"CLIENT", b"ID"), b":1\r\n")
    hands.close()


def _has(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


async def test_thawed_connection_goes_on_as_if_nothing_had_been(server: Server) -> None:
    hands = Hands(table_of(URI, server.address), server.address)
    await hands.settle()
    moved = hands.export()
    hands.fronts[1].adopt(moved, hands.peer)
    hands.send(b"PING\r\n")
    hands.fronts[1].drop(hands.number)
    assert not hands.fronts[1].sessions
    hands.front.sessions[hands.number].thaw()
    assert await read_exactly(hands.client, len(PONG)) == PONG
    hands.close()


async def test_client_that_has_left_is_found_by_the_taker(server: Server) -> None:
    hands = Hands(table_of(URI, server.address), server.address)
    await hands.call(b"PING\r\n", PONG)
    await hands.settle()
    moved = hands.export()
    hands.client.close()
    hands.fronts[1].adopt(moved, hands.peer)
    hands.front.sessions[hands.number].let_go()
    hands.fronts[1].begin(hands.number)
    await until(lambda: not hands.fronts[1].sessions)
    hands.close()


async def test_splice_moves_with_what_neither_side_has_read(server: Server) -> None:
    dialled = server.address
    hands = Hands(ServiceTable(), dialled)
    hands.send(b"\x16\x03\x01 no MOA")
    far = (await server.connection()).sock
    assert await read_exactly(far, 10) == b"\x16\x03\x01 no MOA"
    filled = fill(far)  # towards a client that does not read
    await until(lambda: hands.front.sessions[hands.number].client.has_unsent)
    moved = await hands.move()
    assert moved.kind is Kind.RAW
    assert moved.to_client
    hands.send(b"more")
    assert await read_exactly(far, 4) == b"more"
    assert await read_exactly(hands.client, filled) == b"x" * filled
    far.shutdown(socket.SHUT_WR)
    assert await read_end(hands.client) == b""
    hands.send(b"last")
    assert await read_exactly(far, 4) == b"last"
    hands.close()


async def test_what_was_passed_on_before_the_move_is_not_passed_on_again(server: Server) -> None:
    """Half a command of a client that turned out to be the dialled server's."""
    hands = Hands(ServiceTable(), server.address, request_read_timeout_s=0.02)
    half = b"*1\r\n$4\r\nPI"
    hands.send(half)
    far = (await server.connection()).sock
    assert await read_exactly(far, len(half)) == half
    moved = await hands.move()
    assert (moved.kind, moved.unread) == (Kind.RAW, b"")
    hands.send(b"NG\r\n")
    assert await read_exactly(far, 4) == b"NG\r\n"
    hands.close()


async def test_half_closed_splice_moves(server: Server) -> None:
    hands = Hands(ServiceTable(), server.address)
    hands.send(b"\x00 no MOA")
    hands.client.shutdown(socket.SHUT_WR)
    far = (await server.connection()).sock
    assert await read_end(far) == b"\x00 no MOA"
    await hands.move()
    far.send(b"answer")
    far.shutdown(socket.SHUT_WR)
    assert await read_end(hands.client) == b"answer"
    await until(lambda: not hands.front.sessions)
    hands.close()


async def test_packets_move_when_none_is_under_way_and_half_a_one_goes_along(
    server: Server,
) -> None:
    hands = Hands(table_of(URI, server.address), server.address)
    body = json.dumps({"action": URI, "params": {"m": "echo", "args": [1]}}).encode()
    first, second = encode(Cmd.REQ, 5, body), encode(Cmd.REQ, 6, body)
    hands.send(first + second[:30])
    connection = await server.connection()
    await connection.command()
    moving = asyncio.ensure_future(hands.move())
    await turns()
    assert not moving.done()
    connection.send(ok(1))
    assert (await moving).unread == second[:30]
    hands.send(second[30:])
    await (await server.connection(1)).answer(ok(2))
    packets = PacketConnection(hands.client)
    assert [(await packets.packet()).opaque for _ in range(2)] == [5, 6]
    hands.close()


async def _answer_all(server: Server) -> None:
    """An instance that answers each request with its own number."""

    async def serve(number: int) -> None:
        connection = await server.connection(number)
        while True:
            command = await connection.command()
            connection.send(ok(json.loads(command.args[1])["params"]["args"][0]))

    async with asyncio.TaskGroup() as group:
        for number in itertools.count():
            await server.connection(number)
            group.create_task(serve(number))


CUTS = st.lists(st.integers(1, 400), max_size=8)
MOVES = st.sets(st.integers(0, 8), max_size=4)


@settings(max_examples=40, deadline=None)
@given(CUTS, MOVES, st.integers(1, 3))
def test_any_cut_and_any_moves_give_the_same_replies_in_order(
    cuts: list[int], moves: set[int], depth: int
) -> None:
    asyncio.run(_dialogue(cuts, moves, depth))


async def _dialogue(cuts: list[int], moves: set[int], depth: int) -> None:
    server = await Server.start()
    serving = asyncio.ensure_future(_answer_all(server))
    hands = Hands(
        table_of(URI, server.address),
        server.address,
        pipeline_depth=depth,
        request_read_timeout_s=5.0,
    )
    data = b"".join(get(n) + b"PING\r\n" for n in range(5))
    expected = b"".join(ok(n) + PONG for n in range(5))
    at = [0, *(min(sum(cuts[: n + 1]), len(data)) for n in range(len(cuts))), len(data)]
    for step, (begin, end) in enumerate(itertools.pairwise(at)):
        if begin < end:
            hands.send(data[begin:end])
        await turns(step)
        if step in moves:
            await hands.move()
    assert await read_exactly(hands.client, len(expected)) == expected
    serving.cancel()
    hands.close()
    server.close()
