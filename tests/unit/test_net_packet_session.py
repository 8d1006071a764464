"""A client that sends binary packets, from its first byte to its end, told as a dialogue."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from proxy.core.deadline import TIMEOUT_PROP
from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.net.forward import Forwarder
from proxy.net.served import Direction, Mode, Peer, Served
from proxy.wire.resp import bulk
from proxy.wire.turbo import (
    EXT_SNAPPY,
    Cmd,
    Form,
    Packet,
    compress,
    encode,
    encode9,
    encode_ping,
    encode_pong,
)
from tests.unit.net_support import (
    PacketConnection,
    Server,
    forwarder_of,
    front_of,
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


def asked(n: int = 0, action: str = URI, timeout_ms: int = 0) -> bytes:
    body = {"action": action, "params": {"m": "echo", "args": [n]}}
    props = {"props": {TIMEOUT_PROP: str(timeout_ms)}} if timeout_ms else {}
    return json.dumps(body | props).encode()


def ok(n: int) -> bytes:
    return b'{"ec":200,"em":"","result":%d}' % n


def turbo(*servers: Server) -> ServiceTable:
    listed = [Instance(server.address, protocols=("turbo",)) for server in servers]
    return ServiceTable.build({ServiceKey(URI): listed})


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
    """A client's end of a connection that the front serves."""

    def __init__(
        self,
        forwarder: Forwarder,
        original: Address | None,
        *,
        inbound: bool = False,
        form: Form = Form.PACKET19,
        **settings: float,
    ) -> None:
        self.sock, near = tcp_pair()
        self.far = PacketConnection(self.sock, form)
        self.ends = 0
        peer = Peer(
            direction=Direction.INBOUND if inbound else Direction.OUTBOUND,
            client=Address("127.0.0.1", 1),
            original=original,
            original_is_instance=original in forwarder.table.addresses,
            source=None,
        )
        self.front = front_of(forwarder, session_settings(**settings), self._on_end)
        self.front.serve(near, peer)

    def _on_end(self) -> None:
        self.ends += 1

    @property
    def session(self) -> Served:
        (session,) = self.front.sessions.values()
        return session

    def send(self, data: bytes) -> None:
        self.far.send(data)

    async def reply(self) -> Packet:
        packet = await self.far.packet()
        assert packet.cmd is Cmd.RESP
        return packet

    async def ec(self, opaque: int) -> int:
        packet = await self.reply()
        assert packet.opaque == opaque
        ec = json.loads(packet.body)["ec"]
        assert isinstance(ec, int)
        return ec

    async def end(self) -> None:
        """The session is over, once."""
        await until(lambda: self.ends, "the end of the session")
        await turns()
        assert self.ends == 1
        assert not self.front.sessions
        if is_open(self.sock):
            self.sock.close()


async def test_replies_in_any_order_each_under_its_clients_number(server: Server) -> None:
    forwarder = forwarder_of(turbo(server))
    client = Client(forwarder, server.address)
    client.send(b"".join(encode(Cmd.REQ, 0xFFFFFFF0 + n, asked(n)) for n in range(3)))
    far = PacketConnection((await server.connection()).sock)
    packets = [await far.packet() for _ in range(3)]
    assert [packet.body for packet in packets] == [asked(n) for n in range(3)]
    for n in (2, 0, 1):
        far.answer(packets[n], ok(n))
        reply = await client.reply()
        assert (reply.opaque, reply.body) == (0xFFFFFFF0 + n, ok(n))
    assert client.session.requests == 3
    assert client.session.is_idle
    client.sock.close()
    await client.end()
    forwarder.close()


@pytest.mark.parametrize("form", list(Form))
async def test_a_client_of_packets_calls_a_server_of_resp(server: Server, form: Form) -> None:
    forwarder = forwarder_of(table_of(URI, server.address))
    client = Client(forwarder, server.address, form=form)
    request = (encode if form is Form.PACKET19 else encode9)(Cmd.REQ, 5, asked())
    for byte in request:
        client.send(bytes((byte,)))
    command = await (await server.connection()).answer(bulk(ok(1)))
    assert command.args == (b"GET", asked())
    assert (await client.reply()).body == ok(1)
    client.sock.close()
    await client.end()
    forwarder.close()


async def test_a_compressed_body_is_read_and_forwarded_as_it_came(server: Server) -> None:
    forwarder = forwarder_of(turbo(server))
    client = Client(forwarder, None)
    client.send(encode(Cmd.REQ, 5, compress(asked(7)), version=2, extension=EXT_SNAPPY))
    far = PacketConnection((await server.connection()).sock)
    packet = await far.packet()
    assert (packet.body, packet.version, packet.extension) == (compress(asked(7)), 2, EXT_SNAPPY)
    far.answer(packet, compress(ok(7)), EXT_SNAPPY)
    reply = await client.reply()
    assert (reply.body, reply.extension) == (compress(ok(7)), EXT_SNAPPY)
    client.sock.close()
    await client.end()
    forwarder.close()


async def test_an_expired_request_is_answered_and_the_late_reply_is_not(server: Server) -> None:
    forwarder = forwarder_of(turbo(server))
    client = Client(forwarder, server.address)
    client.send(encode(Cmd.REQ, 4, asked()))
    far = PacketConnection((await server.connection()).sock)
    far.answer(await far.packet(), ok(0))
    assert (await client.reply()).body == ok(0)
    # Over a connection that stands a request is sent at once, whatever time it has.
    client.send(encode(Cmd.REQ, 5, asked(timeout_ms=50)))
    late = await far.packet()
    assert await client.ec(5) == 304
    far.answer(late, ok(1))
    far.send(encode_pong(await far.packet()))
    client.send(encode(Cmd.REQ, 6, asked()))
    far.answer(await far.packet(), ok(2))
    assert (await client.reply()).body == ok(2)
    client.sock.close()
    await client.end()
    forwarder.close()


async def test_a_client_that_leaves_cancels_what_it_asked(server: Server) -> None:
    forwarder = forwarder_of(turbo(server))
    client = Client(forwarder, server.address)
    client.send(encode(Cmd.REQ, 5, asked()) * 3)
    await until(lambda: forwarder.load(server.address) == 3)
    reset(client.sock)
    await client.end()
    assert forwarder.metrics.clients_cancelled == 3
    assert forwarder.load(server.address) == 0
    forwarder.close()


async def test_half_close_what_was_asked_is_still_answered(server: Server) -> None:
    forwarder = forwarder_of(turbo(server))
    client = Client(forwarder, server.address)
    client.send(encode(Cmd.REQ, 5, asked()))
    client.sock.shutdown(socket.SHUT_WR)
    far = PacketConnection((await server.connection()).sock)
    far.answer(await far.packet(), ok(1))
    assert (await client.reply()).body == ok(1)
    assert await read_end(client.sock) == b""
    await client.end()
    forwarder.close()


async def test_no_more_than_so_many_at_once(server: Server) -> None:
    forwarder = forwarder_of(turbo(server), pool_settings(shared_size=1))
    client = Client(forwarder, server.address, packets_at_once=4)
    client.send(b"".join(encode(Cmd.REQ, n, asked(n)) for n in range(10)))
    await until(lambda: forwarder.load(server.address) == 4)
    far = PacketConnection((await server.connection()).sock)
    for n in range(10):
        assert forwarder.load(server.address) <= 4
        far.answer(await far.packet(), ok(n))
    assert sorted([(await client.reply()).opaque for _ in range(10)]) == list(range(10))
    client.sock.close()
    await client.end()
    forwarder.close()


async def test_ping_and_info_are_answered_for_an_instance(server: Server) -> None:
    forwarder = forwarder_of(turbo(server))
    client = Client(forwarder, server.address)
    client.send(encode_ping(9, 1234))
    pong = await client.far.packet()
    assert (pong.cmd, pong.opaque, pong.body) == (Cmd.PONG, 9, b'{"timestamp":1234}')
    client.send(encode(Cmd.INFO, 10))
    info = await client.far.packet()
    assert (info.cmd, info.opaque) == (Cmd.INFO, 10)
    assert json.loads(info.body)["network"]["connections"] == 1
    assert server.connections == []
    client.sock.close()
    await client.end()
    forwarder.close()


async def test_an_unknown_service_belongs_to_the_dialled_address(
    server: Server, dialled: Server
) -> None:
    forwarder = forwarder_of(turbo(server))
    client = Client(forwarder, dialled.address)
    unknown = encode(Cmd.REQ, 77, asked(action="/service/other"), version=9)
    client.send(unknown + encode(Cmd.REQ, 78, asked()))
    far = PacketConnection((await dialled.connection()).sock)
    packet = await far.packet()
    assert packet.raw == unknown
    known = PacketConnection((await server.connection()).sock)
    known.answer(await known.packet(), ok(1))
    assert (await client.reply()).opaque == 78
    raw = far.answer(packet, b"whatever it says")
    assert (await client.reply()).raw == raw
    client.sock.close()
    await client.end()
    forwarder.close()


async def test_an_unknown_service_at_a_dead_address(server: Server, dialled: Server) -> None:
    forwarder = forwarder_of(turbo(server))
    dialled.stop_listening()
    for original in (None, dialled.address):
        client = Client(forwarder, original)
        client.send(encode(Cmd.REQ, 77, asked(action="/service/other")))
        assert await client.ec(77) == 501
        client.sock.close()
        await client.end()
    forwarder.close()


@pytest.mark.parametrize("inbound", [False, True])
async def test_a_first_packet_that_is_not_moa_is_spliced(dialled: Server, inbound: bool) -> None:
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address, inbound=inbound)
    first = encode(Cmd.REQ, 1, b"\x00 something else \xff")
    client.send(first)
    connection = await dialled.connection()
    assert await read_exactly(connection.sock, len(first)) == first
    assert client.session.mode is Mode.RAW
    connection.send(b"no packet at all")
    assert await read_exactly(client.sock, 16) == b"no packet at all"
    client.sock.close()
    assert await read_end(connection.sock) == b""
    connection.close()
    await client.end()
    forwarder.close()


async def test_what_only_begins_like_a_packet_is_spliced_soon(dialled: Server) -> None:
    forwarder = forwarder_of(ServiceTable())
    client = Client(forwarder, dialled.address, request_read_timeout_s=30)
    begun = encode(Cmd.REQ, 1, b"x" * 100)[:40]
    client.send(begun)
    connection = await dialled.connection()
    assert await read_exactly(connection.sock, len(begun)) == begun
    reset(client.sock)
    await client.end()
    forwarder.close()


async def test_a_slow_request_to_an_instance_is_hung_up_on(server: Server) -> None:
    forwarder = forwarder_of(turbo(server))
    client = Client(forwarder, server.address)
    client.send(encode(Cmd.REQ, 1, asked())[:30])
    assert await read_end(client.sock) == b""
    assert forwarder.metrics.slow_requests == 1
    await client.end()
    forwarder.close()


async def test_a_packet_over_the_limit_is_refused_by_its_number(server: Server) -> None:
    forwarder = forwarder_of(turbo(server))
    client = Client(forwarder, server.address)
    client.send(encode(Cmd.REQ, 42, b"x" * (2**21 + 1))[:19])
    assert await client.ec(42) == 302
    assert await read_end(client.sock) == b""
    await client.end()
    forwarder.close()


# Inbound: the local service decides about everything


async def test_the_local_service_gets_every_packet_as_it_was_sent(dialled: Server) -> None:
    forwarder = forwarder_of(turbo(dialled))
    client = Client(forwarder, dialled.address, inbound=True)
    sent = encode(Cmd.REQ, 5, asked(), version=1) + encode_ping(6, 1) + encode(Cmd.INFO, 7)
    client.send(sent)
    connection = await dialled.connection()
    assert await read_exactly(connection.sock, len(sent)) == sent
    answers = encode_ping(6, 1) + encode(Cmd.RESP, 5, ok(1))
    connection.send(answers)
    assert await read_exactly(client.sock, len(answers)) == answers
    assert client.session.service == URI
    client.sock.close()
    await client.end()
    forwarder.close()


async def test_a_local_service_that_is_down_was_sent_nothing(dialled: Server) -> None:
    forwarder = forwarder_of(turbo(dialled))
    dialled.stop_listening()
    client = Client(forwarder, dialled.address, inbound=True)
    client.send(encode(Cmd.REQ, 5, asked()))
    packet = await client.reply()
    assert packet.body.startswith(b'{"ec":303,"em":"not sent: ')
    client.sock.close()
    await client.end()
    forwarder.close()


async def test_a_local_service_that_dies_within_a_request_may_have_executed_it(
    dialled: Server,
) -> None:
    forwarder = forwarder_of(turbo(dialled))
    client = Client(forwarder, dialled.address, inbound=True)
    client.send(encode(Cmd.REQ, 5, asked()))
    connection = await dialled.connection()
    await PacketConnection(connection.sock).packet()
    connection.reset()
    packet = await client.reply()
    assert (packet.opaque, json.loads(packet.body)["ec"]) == (5, 303)
    assert b"may have been executed" in packet.body
    client.sock.close()
    await client.end()
    forwarder.close()
