"""One client's connection from its first byte to its end, told as a dialogue."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio

from proxy.core.dispatch import Dialled, judge_inbound, judge_outbound
from proxy.core.model import Address, ServiceTable
from proxy.net.forward import Forwarder
from proxy.net.served import Direction, Mode, Peer
from proxy.net.session import Session
from proxy.wire.redis_server import Counters, SessionState
from proxy.wire.resp import bulk, encode_command
from tests.unit.net_support import (
    Server,
    forwarder_of,
    is_open,
    pool_settings,
    read_end,
    read_exactly,
    reset,
    session_settings,
    table_of,
    tcp_pair,
    turns,
    until,
)

URI = "/service/demo"
PING = encode_command(b"PING")


def get(n: int = 0, action: str = URI) -> bytes:
    body = {"action": action, "params": {"m": "echo", "args": [n]}}
    return encode_command(b"GET", json.dumps(body).encode())


def ok(n: int) -> bytes:
    return bulk(b'{"ec":200,"em":"","result":%d}' % n)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    """An instance of the service."""
    started = await Server.start()
    yield started
    started.close()


@pytest_asyncio.fixture
async def dialled() -> AsyncIterator[Server]:
    """What the client dialled, when that is not an instance."""
    started = await Server.start()
    yield started
    started.close()


class Client:
    """A client's end of a session."""

    def __init__(
        self,
        forwarder: Forwarder,
        original: Address | None,
        *,
        inbound: bool = False,
        **settings: float,
    ) -> None:
        self.sock, near = tcp_pair()
        self.ends = 0
        is_instance = original in forwarder.table.addresses
        peer = Peer(
            direction=Direction.INBOUND if inbound else Direction.OUTBOUND,
            client=Address("127.0.0.1", 1),
            original=original,
            original_is_instance=is_instance,
            source=None,
        )
        self.session = Session(
            near,
            peer,
            session_settings(**settings),
            forwarder,
            (lambda command, _session: judge_inbound(command))
            if inbound
            else lambda command, session: judge_outbound(
                command,
                forwarder.table,
                Dialled(original is not None, is_instance),
                spoke_moa=session.spoke_moa,
                state=session.state,
            ),
            SessionState(1, Counters()),
            self._on_end,
            lambda taken: pytest.fail(f"no packets were sent: {taken}"),
        )
        self.session.start()

    def _on_end(self, _session: Session) -> None:
        self.ends += 1

    def send(self, data: bytes) -> None:
        assert self.sock.send(data) == len(data)

    async def reads(self, expected: bytes) -> None:
        assert await read_exactly(self.sock, len(expected)) == expected

    async def end(self) -> None:
        """The session is over, once, and has given everything back."""
        await until(lambda: self.ends, "the end of the session")
        await turns()
        assert self.ends == 1
        assert not is_open(self.session.client.sock)
        assert not self.session._lane.is_open
        if is_open(self.sock):
            self.sock.close()


# MOA


async def test_requests_are_answered_in_order_whatever_kind_they_are(server: Server) -> None:
    forwarder = forwarder_of(table_of(URI, server.address))
    client = Client(forwarder, server.address, pipeline_depth=8)
    client.send(get(1) + PING + get(2) + b"*1\r\n$4\r\nECHO\r\n")
    one, two = await server.connection(0), await server.connection(1)
    await one.command()
    await two.answer(ok(2))
    await turns()
    one.send(ok(1))
    await client.reads(ok(1) + b"+PONG\r\n" + ok(2) + b"-ERR wrong number of arguments")
    client.sock.close()
    await client.end()
    forwarder.close()


async def test_a_pipeline_of_a_thousand_keeps_its_order(server: Server) -> None:
    forwarder = forwarder_of(table_of(URI, server.address))
    client = Client(forwarder, server.address)

    async def serve() -> None:
        connection = await server.connection()
        for n in range(1000):
            await connection.answer(ok(n))

    serving = asyncio.create_task(serve())
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client.sock, b"".join(get(n) for n in range(1000)))
    await client.reads(b"".join(ok(n) for n in range(1000)))
    await serving
    assert len(server.connections) == 1
    client.sock.close()
    await client.end()
    forwarder.close()


async def test_quit_is_answered_after_what_was_asked_before_and_then_closes(
    server: Server,
) -> None:
    forwarder = forwarder_of(table_of(URI, server.address))
    client = Client(forwarder, server.address, pipeline_depth=4)
    client.send(get(1) + encode_command(b"QUIT") + get(2))
    connection = await server.connection()
    await connection.command()
    assert not connection.has_more()
    connection.send(ok(1))
    await client.reads(ok(1) + b"+OK\r\n")
    assert await read_end(client.sock) in (b"", ConnectionResetError)
    await client.end()
    forwarder.close()


async def test_a_client_that_has_said_all_still_gets_its_replies(server: Server) -> None:
    forwarder = forwarder_of(table_of(URI, server.address))
    client = Client(forwarder, server.address)
    client.send(get(1) + get(2))
    client.sock.shutdown(socket.SHUT_WR)
    connection = await server.connection()
    await connection.answer(ok(1))
    await connection.answer(ok(2))
    assert await read_end(client.sock) == ok(1) + ok(2)
    await client.end()
    forwarder.close()


async def test_a_client_that_leaves_cancels_what_it_asked(server: Server) -> None:
    forwarder = forwarder_of(table_of(URI, server.address))
    client = Client(forwarder, server.address)
    client.send(get(1))
    connection = await server.connection()
    await connection.command()
    reset(client.sock)
    await client.end()
    assert await read_end(connection.sock) == b""
    assert forwarder.metrics.in_flight == 0
    assert forwarder.metrics.clients_cancelled == 1
    forwarder.close()


async def test_broken_resp_is_told_after_the_replies_before_it_and_closes(server: Server) -> None:
    forwarder = forwarder_of(table_of(URI, server.address))
    client = Client(forwarder, server.address)
    client.send(get(1) + b"*1\r\n$x\r\n")
    connection = await server.connection()
    await connection.command()
    client.send(b"more")
    connection.send(ok(1))
    await client.reads(ok(1) + b"-ERR Protocol error: invalid bulk length")
    await client.end()
    assert forwarder.metrics.protocol_errors == 1
    forwarder.close()


async def test_a_declared_length_over_the_limit_is_refused_at_once(server: Server) -> None:
    forwarder = forwarder_of(table_of(URI, server.address))
    client = Client(forwarder, server.address)
    client.send(b"*2\r\n$3\r\nGET\r\n$3000000000\r\n")
    answer = await read_end(client.sock)
    assert isinstance(answer, bytes)
    assert answer.startswith(b"-ERR Protocol error: invalid bulk length: 3000000000 ")
    await client.end()
    forwarder.close()


async def test_a_request_that_never_ends_is_ended(server: Server) -> None:
    forwarder = forwarder_of(table_of(URI, server.address))
    client = Client(forwarder, server.address)
    client.send(get(1)[:20])
    answer = await read_end(client.sock)
    assert isinstance(answer, bytes)
    assert answer.startswith(b"-ERR Protocol error: the request did not arrive in time")
    await client.end()
    assert forwarder.metrics.slow_requests == 1
    forwarder.close()


async def test_a_client_that_never_speaks_to_an_instance_is_left_alone(server: Server) -> None:
    forwarder = forwarder_of(table_of(URI, server.address))
    client = Client(forwarder, server.address, detect_wait_s=0.001, request_read_timeout_s=0.001)
    other = Client(forwarder, server.address, request_read_timeout_s=0.05)
    other.send(b"*")
    await read_end(other.sock)  # the time of the silent one has long passed
    assert client.ends == 0
    assert server.connections == []
    client.sock.close()
    await client.end()
    await other.end()
    forwarder.close()


async def test_a_client_that_does_not_read_is_not_served_ahead(server: Server) -> None:
    """Replies are far larger than requests: memory stays bounded, and nothing is lost."""
    forwarder = forwarder_of(table_of(URI, server.address))
    client = Client(forwarder, server.address)
    big = bulk(b"x" * 1_000_000)
    answered = 0

    async def serve() -> None:
        nonlocal answered
        connection = await server.connection()
        loop = asyncio.get_running_loop()
        while True:
            await connection.command()
            await loop.sock_sendall(connection.sock, big)
            answered += 1

    serving = asyncio.create_task(serve())
    client.send(b"".join(get(n) for n in range(40)))
    await until(lambda: client.session.client.is_congested)
    stalled_at = answered
    await turns(50)
    assert answered <= stalled_at + 1 < 40
    assert client.session.client._buffered < 3 * len(big)
    await client.reads(big * 40)
    serving.cancel()
    client.sock.close()
    await client.end()
    forwarder.close()


async def test_a_client_that_is_far_ahead_is_not_read(server: Server) -> None:
    forwarder = forwarder_of(table_of(URI, server.address), timeout_s=60)
    client = Client(forwarder, server.address, max_pending_bytes=64 * 1024)
    batch = get(1) * 400
    with suppress(BlockingIOError):
        while True:
            client.sock.send(batch)
            await asyncio.sleep(0)
    assert client.session.client.is_paused
    assert client.session._queued_bytes < 64 * 1024 + 5 * 65536
    reset(client.sock)
    await (await server.connection()).command()
    forwarder.close()
    client.session.close()
    await client.end()


async def test_two_services_on_one_connection(server: Server, dialled: Server) -> None:
    table = ServiceTable.build(
        {
            **table_of(URI, server.address).instances_by_key,
            **table_of("/service/two", dialled.address).instances_by_key,
        }
    )
    forwarder = forwarder_of(table)
    client = Client(forwarder, None)
    for n in range(3):
        client.send(get(n))
        await (await server.connection()).answer(ok(n))
        await client.reads(ok(n))
        client.send(get(n, "/service/two"))
        await (await dialled.connection()).answer(ok(n + 10))
        await client.reads(ok(n + 10))
    client.sock.close()
    await client.end()
    forwarder.close()


async def test_a_session_that_is_closed_resets_its_client(server: Server) -> None:
    forwarder = forwarder_of(table_of(URI, server.address))
    client = Client(forwarder, server.address)
    client.send(get(1))
    connection = await server.connection()
    await connection.command()
    client.session.close()
    forwarder.close()
    assert await read_end(client.sock) is ConnectionResetError
    await client.end()


# The dialled address: commands one by one


async def test_connecting_to_an_unknown_address_is_its_own_to_answer(dialled: Server) -> None:
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address)
    client.send(PING + encode_command(b"SELECT", b"1") + get(1, "/service/none"))
    connection = await dialled.connection()
    for reply in (b"+PONG\r\n", b"+OK\r\n", b"$-1\r\n"):
        await connection.answer(reply)
        await client.reads(reply)
    assert client.session.mode is Mode.MOA
    assert client.session.requests == 3
    client.sock.close()
    assert await read_end(connection.sock) == b""
    connection.close()
    await client.end()


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_the_dialled_server_ends_and_so_does_its_client(dialled: Server, how: str) -> None:
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address)
    client.send(PING)
    connection = await dialled.connection()
    await connection.answer(b"+PONG\r\n")
    await client.reads(b"+PONG\r\n")
    if how == "fin":
        connection.close()
        assert await read_end(client.sock) == b""
    else:
        connection.reset()
        assert await read_end(client.sock) is ConnectionResetError
    await client.end()


async def test_more_replies_than_commands_make_it_raw_and_lose_nothing(dialled: Server) -> None:
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address)
    client.send(encode_command(b"HELLO", b"3") + PING)
    connection = await dialled.connection()
    await connection.command()
    connection.send(b"%0\r\n>2\r\n+invalidate\r\n*0\r\n")
    await client.reads(b"%0\r\n>2\r\n+invalidate\r\n*0\r\n")
    await connection.answer(b"+PONG\r\n")
    await client.reads(b"+PONG\r\n")
    await until(lambda: client.session.mode is Mode.RAW)
    client.send(b"anything")
    assert await read_exactly(connection.sock, 8) == b"anything"
    client.session.close()
    await client.end()


async def test_a_request_in_flight_at_a_reset_is_not_answered_with_a_fin(dialled: Server) -> None:
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address)
    client.send(PING)
    connection = await dialled.connection()
    await connection.command()
    connection.close()
    assert await read_end(client.sock) is ConnectionResetError
    await client.end()


# Not MOA


async def test_what_is_no_command_is_spliced_from_its_first_byte(dialled: Server) -> None:
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address)
    client.send(b"SSH-2.0-x\r\n")
    connection = await dialled.connection()
    assert await read_exactly(connection.sock, 11) == b"SSH-2.0-x\r\n"
    assert client.session.mode is Mode.RAW
    connection.send(b"hello")
    await client.reads(b"hello")
    client.sock.close()
    assert await read_end(connection.sock) == b""
    connection.close()
    await client.end()
    assert forwarder.metrics.spliced == 1


async def test_a_moa_request_is_routed_before_the_connection_turns_raw(
    server: Server, dialled: Server
) -> None:
    forwarder = forwarder_of(table_of(URI, server.address))
    client = Client(forwarder, dialled.address)
    raw = encode_command(b"SET", b"a", b"b")
    client.send(get(1) + raw + b"*3\r\n$3\r\nSE")
    await (await server.connection()).answer(ok(1))
    await client.reads(ok(1))
    connection = await dialled.connection()
    assert await read_exactly(connection.sock, len(raw) + 10) == raw + b"*3\r\n$3\r\nSE"
    client.send(b"T\r\n")
    assert await read_exactly(connection.sock, 3) == b"T\r\n"
    client.session.close()
    await client.end()
    forwarder.close()


@pytest.mark.parametrize("size", range(1, 12))
async def test_broken_resp_for_an_unknown_address_arrives_byte_for_byte(
    dialled: Server, size: int
) -> None:
    stream = PING + b"\r\n\r\n*1\r\n$4\r\nPING\r\n*1\r\n$zz\r\nbinary\0rest" * 2
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address)

    async def send() -> None:
        for at in range(0, len(stream), size):
            client.send(stream[at : at + size])
            await asyncio.sleep(0)

    sending = asyncio.create_task(send())
    connection = await dialled.connection()
    assert await read_exactly(connection.sock, len(PING)) == PING
    connection.send(b"+PONG\r\n")
    await client.reads(b"+PONG\r\n")
    # The empty lines mean nothing to Redis and may come with the command or before the rest.
    second = await read_exactly(connection.sock, len(PING))
    extra = b""
    if second != PING:
        extra = await read_exactly(connection.sock, 4)
    assert (second + extra).replace(b"\r\n\r\n*1", b"*1") == PING
    connection.send(b"+PONG\r\n")
    await client.reads(b"+PONG\r\n")
    rest = stream[stream.index(b"*1\r\n$zz") :]
    assert await read_exactly(connection.sock, len(rest)) == rest
    await sending
    client.session.close()
    await client.end()


async def test_half_a_command_and_a_fin_arrive_at_an_unknown_address(dialled: Server) -> None:
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address)
    client.send(b"INFO who")
    client.sock.shutdown(socket.SHUT_WR)
    connection = await dialled.connection()
    assert await read_end(connection.sock) == b"INFO who"
    connection.send(b"answer")
    connection.close()
    assert await read_end(client.sock) == b"answer"
    await client.end()


async def test_a_fin_after_commands_is_the_servers_to_answer(dialled: Server) -> None:
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address)
    client.send(PING)
    client.sock.shutdown(socket.SHUT_WR)
    connection = await dialled.connection()
    await connection.answer(b"+PONG\r\n")
    assert await read_end(connection.sock) == b""
    connection.send(b"and more")
    connection.close()
    assert await read_end(client.sock) == b"+PONG\r\nand more"
    await client.end()


async def test_a_few_bytes_and_a_wait_are_passed_on_soon(dialled: Server) -> None:
    """A protocol that opens with one byte, which MOA could open with too."""
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address, request_read_timeout_s=60)
    client.send(b"*")
    connection = await dialled.connection()
    assert await read_exactly(connection.sock, 1) == b"*"
    connection.send(b"*")
    await client.reads(b"*")
    client.session.close()
    await client.end()


async def test_half_a_line_that_only_begins_like_a_command_is_passed_on_soon(
    dialled: Server,
) -> None:
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address, request_read_timeout_s=60)
    client.send(b"hello, who is there?")
    client.send(b" Info please")
    connection = await dialled.connection()
    assert await read_exactly(connection.sock, 32) == b"hello, who is there? Info please"
    client.session.close()
    await client.end()


async def test_a_reset_before_the_splice_is_a_reset(dialled: Server) -> None:
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address)
    client.send(b"\1abc")
    await until(lambda: client.session.client.bytes_in)
    reset(client.sock)
    await client.end()
    if dialled.connections:
        assert await read_end(dialled.connections[0].sock) is ConnectionResetError


async def test_a_reset_with_a_command_under_way_is_a_reset(dialled: Server) -> None:
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address)
    client.send(PING)
    connection = await dialled.connection()
    await connection.command()
    reset(client.sock)
    assert await read_end(connection.sock) is ConnectionResetError
    await client.end()


async def test_a_slow_command_for_an_unknown_address_is_passed_on(dialled: Server) -> None:
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address)
    client.send(b"*2\r\n$3\r\nGET\r\n$5\r\nhe")
    connection = await dialled.connection()
    assert await read_exactly(connection.sock, 19) == b"*2\r\n$3\r\nGET\r\n$5\r\nhe"
    client.session.close()
    await client.end()


async def test_a_server_that_speaks_first_is_heard(dialled: Server) -> None:
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address)
    connection = await dialled.connection()
    connection.send(b"220 mail\r\n")
    await client.reads(b"220 mail\r\n")
    client.send(b"HELO\r\n")
    assert await read_exactly(connection.sock, 6) == b"HELO\r\n"
    client.session.close()
    await client.end()


async def test_a_silent_client_of_a_dead_address_is_reset(dialled: Server) -> None:
    dialled.stop_listening()
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address)
    assert await read_end(client.sock) is ConnectionResetError
    await client.end()


async def test_a_dead_address_is_a_reset_for_what_is_not_moa(dialled: Server) -> None:
    dialled.stop_listening()
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address)
    client.send(b"\x16\x03\x01")
    assert await read_end(client.sock) is ConnectionResetError
    await client.end()


async def test_a_client_that_leaves_while_the_address_is_dialled_keeps_nothing() -> None:
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, Address("192.0.2.1", 9))
    client.send(b"\x16\x03\x01")
    await turns()
    reset(client.sock)
    await client.end()


async def test_much_before_the_splice_is_bounded_and_complete(dialled: Server) -> None:
    """The client sends megabytes while replies before them are still owed."""
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address)
    loop = asyncio.get_running_loop()
    body = b"r" * 5_000_000
    client.send(PING)
    connection = await dialled.connection()
    await connection.command()
    client.send(encode_command(b"SUBSCRIBE", b"a"))
    sending = asyncio.create_task(loop.sock_sendall(client.sock, body))
    await until(lambda: client.session.client.is_paused)
    assert len(client.session._unread) + client.session._queued_bytes < 256 * 1024 + 5 * 65536
    connection.send(b"+PONG\r\n")
    wanted = len(encode_command(b"SUBSCRIBE", b"a")) + len(body)
    assert len(await read_exactly(connection.sock, wanted)) == wanted
    await sending
    client.session.close()
    await client.end()


# Inbound


async def test_inbound_plain_redis_traffic_is_spliced_and_health_checks_are_not(
    dialled: Server,
) -> None:
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address, inbound=True)
    client.send(PING)
    connection = await dialled.connection()
    await connection.answer(b"+PONG\r\n")
    await client.reads(b"+PONG\r\n")
    raw = encode_command(b"SUBSCRIBE", b"a", b"b")
    client.send(raw)
    assert await read_exactly(connection.sock, len(raw)) == raw
    two = b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n"
    connection.send(two)
    await client.reads(two)
    client.session.close()
    await client.end()


async def test_inbound_a_service_that_is_down_is_an_error_reply(server: Server) -> None:
    forwarder = forwarder_of(table_of(URI, server.address), pool_settings())
    server.stop_listening()
    client = Client(forwarder, server.address, inbound=True)
    client.send(get(1))
    answer = await read_exactly(client.sock, 20)
    assert b'"ec":303' in answer
    client.sock.close()
    await client.end()
    forwarder.close()
