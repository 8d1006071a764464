"""A session's own connection: one command at a time, in order, and given up whole."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from proxy.core.model import Address
from proxy.net.lane import Lane, LaneSettings
from proxy.net.resp_upstream import RespUpstream
from tests.unit.net_support import LIMITS, Server, read_end, turns, until

PING = b"*1\r\n$4\r\nPING\r\n"


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    started = await Server.start()
    yield started
    started.close()


class Driven:
    """A lane and everything that it called back, in order."""

    def __init__(self, target: Address | None, patience_s: float = 2.0) -> None:
        self.events: list[object] = []
        self.lane = Lane(
            asyncio.get_running_loop(),
            target,
            None,
            LaneSettings(LIMITS, connect_timeout_s=2.0, patience_s=patience_s, mark=0),
            lambda data: self.events.append(("server first", data)),
            lambda was_reset: self.events.append(("hung up", was_reset)),
        )

    def request(self, name: str) -> None:
        self.lane.request(
            PING,
            lambda reply: self.events.append((name, reply.raw)),
            lambda why: self.events.append((name, why)),
            lambda: self.events.append((name, "unreachable")),
        )


async def test_commands_go_one_at_a_time_and_in_order(server: Server) -> None:
    driven = Driven(server.address)
    for name in ("a", "b", "c"):
        driven.request(name)
    connection = await server.connection()
    for reply in (b"+1\r\n", b"+2\r\n", b"+3\r\n"):
        await connection.command()
        await turns()
        assert not connection.has_more()
        connection.send(reply)
    await until(lambda: len(driven.events) == 3)
    assert driven.events == [("a", b"+1\r\n"), ("b", b"+2\r\n"), ("c", b"+3\r\n")]
    assert len(server.connections) == 1
    driven.lane.close()


async def test_unreachable_tells_each_and_waits_before_it_tries_again(server: Server) -> None:
    server.stop_listening()
    driven = Driven(server.address)
    driven.request("a")
    driven.request("b")
    await until(lambda: len(driven.events) == 2)
    assert driven.events == [("a", "unreachable"), ("b", "unreachable")]
    driven.request("c")
    assert driven.events[2:] == [("c", "unreachable")]  # at once: it was tried just now
    driven.lane.close()


async def test_no_target_is_unreachable_at_once() -> None:
    driven = Driven(None)
    driven.request("a")
    assert driven.events == [("a", "unreachable")]


async def test_a_loss_fails_one_command_and_the_next_gets_a_new_connection(
    server: Server,
) -> None:
    driven = Driven(server.address)
    driven.request("a")
    driven.request("b")
    connection = await server.connection()
    await connection.command()
    connection.reset()
    await (await server.connection(1)).answer(b"+2\r\n")
    await until(lambda: len(driven.events) == 2)
    assert "ended the connection" in str(driven.events[0])
    assert driven.events[1] == ("b", b"+2\r\n")
    driven.lane.close()


@pytest.mark.parametrize("was_reset", [True, False])
async def test_an_idle_end_is_told_with_its_kind(server: Server, was_reset: bool) -> None:
    driven = Driven(server.address)
    driven.lane.use(lambda _upstream: None)
    connection = await server.connection()
    await until(lambda: driven.lane.is_open)
    if was_reset:
        connection.reset()
    else:
        connection.close()
    await until(lambda: driven.events)
    assert driven.events == [("hung up", was_reset)]
    assert not driven.lane.is_open
    driven.lane.close()


async def test_what_a_server_says_first_is_heard(server: Server) -> None:
    driven = Driven(server.address)
    driven.lane.use(lambda _upstream: None)
    (await server.connection()).send(b"220 ready\r\n")
    await until(lambda: driven.events)
    assert driven.events == [("server first", b"220 ready\r\n")]
    driven.lane.close()


async def test_held_bytes_leave_with_the_connection(server: Server) -> None:
    driven = Driven(server.address)
    driven.lane.use(lambda _upstream: None)
    connection = await server.connection()
    await until(lambda: driven.lane.is_open)
    driven.lane.hold()
    connection.send(b"held")
    await turns()
    assert driven.events == []
    taken: list[RespUpstream | None] = []
    driven.lane.take(taken.append)
    assert not driven.lane.is_open
    assert taken[0] is not None
    stream, pending = taken[0].take_stream()
    assert pending == b""
    heard: list[bytes] = []
    stream.on_data = heard.append
    stream.resume_reading()
    await until(lambda: heard == [b"held"])
    stream.abort()
    await until(lambda: stream.is_closed)
    driven.lane.close()


async def test_take_waits_for_the_command_before_it(server: Server) -> None:
    driven = Driven(server.address)
    driven.request("a")
    driven.lane.hold()
    driven.lane.take(lambda upstream: driven.events.append(("taken", upstream is not None)))
    await (await server.connection()).answer(b"+1\r\n")
    await until(lambda: len(driven.events) == 2)
    assert driven.events == [("a", b"+1\r\n"), ("taken", True)]


@pytest.mark.parametrize("phase", ["dialling", "idle", "busy"])
async def test_close_gives_everything_back_and_calls_nobody(server: Server, phase: str) -> None:
    driven = Driven(server.address)
    driven.request("a")
    driven.request("b")
    connection = None if phase == "dialling" else await server.connection()
    if connection is not None:
        await connection.command()
    if connection is not None and phase == "idle":
        connection.send(b"+1\r\n")
        await connection.answer(b"+2\r\n")
        await until(lambda: len(driven.events) == 2)
    seen = list(driven.events)
    driven.lane.close()
    if connection is not None:
        assert await read_end(connection.sock) == b""
    await turns()
    assert driven.events == seen
    assert not driven.lane.is_open


@pytest.fixture
def deaf() -> Iterator[Address]:
    """An address that drops every SYN: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield Address(*listener.getsockname())


async def test_a_command_does_not_wait_for_a_connect_that_takes_long(deaf: Address) -> None:
    driven = Driven(deaf, patience_s=0.05)
    driven.request("a")
    await until(lambda: driven.events == [("a", "unreachable")])
    taken: list[RespUpstream | None] = []
    driven.lane.take(taken.append)
    await until(lambda: taken == [None])
    assert driven.events == [("a", "unreachable")]
    driven.lane.close()
