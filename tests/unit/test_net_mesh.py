"""Mesh connections on the loop: who gets requests, what becomes of them, and what is spoken
meanwhile. The far end is a state machine of our own on a plain socket.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import pytest

from proxy.core.mesh_calls import Origin
from proxy.core.message import Failure, MoaReply, Outcome, request_of_command
from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.core.routing import Router
from proxy.net import mesh_link
from proxy.net.forward import Forwarder, ForwardSettings
from proxy.net.mesh_pool import MeshPoolSettings
from proxy.net.served import Direction, Peer
from proxy.net.sockets import set_reset_on_close
from proxy.obs.metrics import Metrics
from proxy.wire.mesh import (
    Event,
    FrameType,
    GoAwayReceived,
    MeshConnection,
    Negotiated,
    RequestCancelled,
    RequestHeader,
    RequestReceived,
    ResponseHeader,
    ResponseReceived,
    Settings,
    encode_frame,
    joined,
)
from proxy.wire.moa import Ec, Route
from proxy.wire.resp import Command, RequestParser, bulk, encode_command
from tests.unit.net_support import (
    LIMITS,
    WITHIN_S,
    Connection,
    PacketConnection,
    Server,
    front_of,
    local_of,
    pool_settings,
    session_settings,
    tcp_pair,
    turns,
    until,
)

URI = "/service/demo"
BODY = b'{"action":"/service/demo","params":{"m":"echo","args":[1]}}'
OK = b'{"ec":200,"em":"","result":1}'
_E = TypeVar("_E", bound=Event)
WIRE = replace(Settings(), hello_timeout_s=0.2)


def command(body: bytes = BODY) -> Command:
    return RequestParser(LIMITS).feed(encode_command(b"GET", body))[0]


class Far:
    """The other end of a mesh connection, which does what the test says."""

    def __init__(self, sock: socket.socket, *, is_client: bool = False) -> None:
        self.sock = sock
        loop = asyncio.get_running_loop()
        make = MeshConnection.client if is_client else MeshConnection.server
        self.connection = make(Settings(), loop.time())
        self.events: list[Event] = []
        self.flush()

    def flush(self) -> None:
        while self.connection.wants_write:
            data = b"".join(self.connection.data_to_send())
            assert self.sock.send(data) == len(data)

    async def read(self) -> None:
        loop = asyncio.get_running_loop()
        data = await asyncio.wait_for(loop.sock_recv(self.sock, 1 << 20), WITHIN_S)
        assert data, "the connection was closed"
        self.events += self.connection.receive_data(data, loop.time())
        self.flush()

    async def next(self, kind: type[_E]) -> _E:
        """The next event of a kind; others are dropped."""
        while True:
            while self.events:
                event = self.events.pop(0)
                if isinstance(event, kind):
                    return event
            await self.read()

    def answer(self, request: RequestReceived, body: bytes = OK, load: int = 0) -> None:
        header = ResponseHeader(200, load=load)
        assert self.connection.send_response(request.request_id, header, body)
        self.flush()


def meshed(server: Server, retry_s: float = 60.0, size: int = 1) -> Forwarder:
    """A forwarder whose only instance says that it has an agent."""
    mesh = MeshPoolSettings(WIRE, Origin("app", "zone"), size, retry_s, 2.0, mark=0)
    made = Forwarder(
        asyncio.get_running_loop(),
        ForwardSettings(WITHIN_S, LIMITS.max_element, pool_settings(), mesh),
        Router(zone="", default_group="*", pre=False),
        Metrics(),
        random.Random(1),
        lambda _address: None,
    )
    instance = Instance(server.address, protocols=("resp", "mesh"))
    made.update(ServiceTable.build({ServiceKey(URI): [instance]}))
    return made


class Calls:
    """What the callers of a forwarder see."""

    def __init__(self, forwarder: Forwarder) -> None:
        self.forwarder = forwarder
        self.outcomes: list[Outcome] = []

    def start(self, body: bytes = BODY) -> Callable[[], None]:
        route = Route(URI, "", "echo", {})
        request = request_of_command(route, command(body))
        exchange = self.forwarder.prepare(request, self.outcomes.append)
        exchange.start()
        return exchange.cancel

    async def until_outcomes(self, count: int) -> None:
        await until(lambda: len(self.outcomes) == count, f"{count} outcomes")

    @property
    def bodies(self) -> list[bytes | None]:
        return [o.body if isinstance(o, MoaReply) else o.em.encode() for o in self.outcomes]


async def two_ways(server: Server) -> tuple[Connection, socket.socket]:
    """The connection that brings a request, and the one that says HELLO, in whatever order."""
    await server.connection(1)
    firsts = []
    for connection in server.connections[:2]:
        await until(lambda c=connection: c.has_more())  # type: ignore[misc]
        firsts.append(connection.sock.recv(1, socket.MSG_PEEK))
    at = firsts.index(b"*")
    return server.connections[at], server.connections[1 - at].sock


async def confirmed(server: Server, calls: Calls) -> tuple[Connection, Far]:
    """After a first request, over the instance's own protocol, and a HELLO."""
    calls.start()
    own, sock = await two_ways(server)
    far = Far(sock)
    await own.answer(bulk(OK))
    await calls.until_outcomes(1)
    calls.outcomes.clear()
    pool = next(iter(calls.forwarder.pools.mesh_pools))
    await until(lambda: pool.describe() == "confirmed")
    return own, far


async def test_the_first_request_does_not_wait_for_hello_and_the_next_uses_the_mesh() -> None:
    server = await Server.start()
    calls = Calls(meshed(server))
    own, far = await confirmed(server, calls)
    calls.start()
    request = await far.next(RequestReceived)
    assert (request.header.service, request.header.method) == (URI, "echo")
    assert (request.header.source_app, request.header.source_zone) == ("app", "zone")
    assert request.header.traceparent
    assert joined(request.body) == BODY
    assert 0 < (request.header.deadline_ms or 0) <= WITHIN_S * 1000
    far.answer(request, load=9)
    await calls.until_outcomes(1)
    assert calls.bodies == [OK]
    assert not own.has_more()
    assert calls.forwarder.pools.load_hint(server.address) == 9
    assert calls.forwarder.service(URI).node(server.address).others == 9
    assert calls.forwarder.load(server.address) == 0
    calls.forwarder.close()
    server.close()


@pytest.mark.parametrize("answer", [b"-ERR unknown command\r\n", b"", None])
async def test_who_says_no_hello_is_not_asked_again_soon(answer: bytes | None) -> None:
    """An error, a hang-up, silence: the requests go on in the instance's own protocol."""
    server = await Server.start()
    calls = Calls(meshed(server))
    calls.start()
    own, sock = await two_ways(server)
    await own.answer(bulk(OK))
    if answer:
        sock.send(answer)
    elif answer is not None:
        sock.close()
    pool = next(iter(calls.forwarder.pools.mesh_pools))
    await until(lambda: pool.describe() == "refused")
    for count in range(2, 5):
        calls.start()
        await own.answer(bulk(OK))
        await calls.until_outcomes(count)
    assert calls.bodies == [OK] * 4
    assert len(server.connections) == 2
    metrics = calls.forwarder.metrics
    assert (metrics.mesh_hello_failures, metrics.mesh_calls) == (1, 0)
    assert not calls.forwarder.service(URI).health.is_troubled
    calls.forwarder.close()
    server.close()


async def test_who_said_no_hello_is_asked_again_later() -> None:
    server = await Server.start()
    calls = Calls(meshed(server, retry_s=0.0))
    calls.start()
    own, sock = await two_ways(server)
    await own.answer(bulk(OK))
    sock.close()
    pool = next(iter(calls.forwarder.pools.mesh_pools))
    await until(lambda: pool.describe() == "refused")
    calls.start()
    await own.answer(bulk(OK))
    Far((await server.connection(2)).sock)
    await until(lambda: pool.describe() == "confirmed")
    calls.forwarder.close()
    server.close()


async def test_what_goaway_leaves_out_goes_to_the_same_instance_at_once() -> None:
    server = await Server.start()
    calls = Calls(meshed(server))
    own, far = await confirmed(server, calls)
    calls.start()
    open_one = await far.next(RequestReceived)
    far.connection.close("leaving")
    calls.start()
    far.flush()
    # Not over the idle connection, which the same agent is about to close.
    assert await asyncio.get_running_loop().sock_recv(own.sock, 10) == b""
    await (await server.connection(2)).answer(bulk(b'{"ec":200,"em":"","result":2}'))
    await calls.until_outcomes(1)
    far.answer(open_one)
    await calls.until_outcomes(2)
    assert calls.bodies == [b'{"ec":200,"em":"","result":2}', OK]
    metrics = calls.forwarder.metrics
    assert (metrics.mesh_fallbacks, metrics.failed) == (1, 0)
    calls.forwarder.close()
    server.close()


async def test_the_end_of_a_connection_fails_what_was_sent_and_nothing_else() -> None:
    server = await Server.start()
    calls = Calls(meshed(server))
    own, far = await confirmed(server, calls)
    calls.start()
    await far.next(RequestReceived)
    # Too large to have been sent as a whole before there is credit for it.
    large = BODY[:-3] + b'"' + b"x" * 1_000_000 + b'"]}}'
    calls.start(large)
    await turns(20)
    set_reset_on_close(far.sock)
    far.sock.close()
    assert await asyncio.get_running_loop().sock_recv(own.sock, 10) == b""
    assert (await (await server.connection(2)).answer(bulk(OK))).args[1] == large
    await calls.until_outcomes(2)
    failures = [o for o in calls.outcomes if isinstance(o, Failure)]
    assert [failure.ec for failure in failures] == [Ec.REMOTING]
    assert "may have been executed" in failures[0].em
    assert not calls.forwarder.service(URI).health.is_troubled
    calls.forwarder.close()
    server.close()


async def test_a_caller_that_has_gone_is_told_to_the_peer() -> None:
    server = await Server.start()
    calls = Calls(meshed(server))
    _, far = await confirmed(server, calls)
    cancel = calls.start()
    request = await far.next(RequestReceived)
    cancel()
    assert (await far.next(RequestCancelled)).request_id == request.request_id
    assert calls.forwarder.load(server.address) == 0
    calls.forwarder.close()
    server.close()


async def test_a_small_request_is_not_behind_all_of_a_large_one() -> None:
    server = await Server.start()
    calls = Calls(meshed(server))
    _, far = await confirmed(server, calls)
    calls.start(BODY[:-3] + b'"' + b"x" * 2_000_000 + b'"]}}')
    calls.start()
    small = await far.next(RequestReceived)
    assert joined(small.body) == BODY
    far.answer(small)
    far.answer(await far.next(RequestReceived))
    await calls.until_outcomes(2)
    calls.forwarder.close()
    server.close()


async def test_closing_the_pools_says_goaway() -> None:
    server = await Server.start()
    calls = Calls(meshed(server))
    _, far = await confirmed(server, calls)
    calls.forwarder.close()
    await far.next(GoAwayReceived)
    server.close()


# The serving side


class Asking:
    """An agent that asks a front for a local service."""

    def __init__(
        self, original: Address, *, is_inbound: bool = True, timeout_s: float = 5.0
    ) -> None:
        near, far = tcp_pair()
        direction = Direction.INBOUND if is_inbound else Direction.OUTBOUND
        peer = Peer(direction, Address("127.0.0.1", 1), original, True, None)
        settings = ForwardSettings(timeout_s, LIMITS.max_element, pool_settings(size=64))
        self.forwarder = Forwarder(
            asyncio.get_running_loop(),
            settings,
            Router(zone="", default_group="*", pre=False),
            Metrics(),
            random.Random(1),
            lambda _address: None,
        )
        self.local = local_of(self.forwarder)
        self.front = front_of(self.forwarder, session_settings(), local=self.local)
        self.front.serve(near, peer)
        self.far = Far(far, is_client=True)
        self._met = False

    async def ask(self, body: bytes = BODY, deadline_ms: int = 5000, codec: int = 1) -> int:
        if not self._met:
            self._met = await self.far.next(Negotiated) is not None
        header = RequestHeader(URI, "echo", codec=codec, deadline_ms=deadline_ms)
        number = self.far.connection.send_request(header, body)
        self.far.flush()
        return number

    async def response(self) -> ResponseReceived:
        return await self.far.next(ResponseReceived)

    async def end(self) -> None:
        for session in list(self.front.sessions.values()):
            session.close()
        await turns()
        self.far.sock.close()
        self.forwarder.close()


async def test_requests_reach_the_local_service_with_the_very_body() -> None:
    service = await Server.start()
    asking = Asking(service.address)
    await asking.ask(b'  {"any": "bytes"} ')
    assert (await (await service.connection()).answer(bulk(OK))).args == (
        b"GET",
        b'  {"any": "bytes"} ',
    )
    response = await asking.response()
    assert (response.header.ec, response.header.load, joined(response.body)) == (200, 0, OK)
    await asking.end()
    service.close()


async def test_a_connection_follows_what_the_registry_says_of_its_service() -> None:
    service = await Server.start()
    asking = Asking(service.address)
    await asking.ask()
    await (await service.connection()).answer(bulk(OK))
    await asking.response()
    said = Instance(service.address, protocols=("turbo",))
    asking.local.update(ServiceTable.build({ServiceKey(URI): [said]}))
    await asking.ask()
    spoken = PacketConnection((await service.connection(1)).sock)
    packet = await spoken.packet()
    assert packet.body == BODY
    spoken.answer(packet, OK)
    assert joined((await asking.response()).body) == OK
    await asking.end()
    service.close()


async def test_several_at_once_each_on_a_connection_of_its_own() -> None:
    service = await Server.start()
    asking = Asking(service.address)
    numbers = [await asking.ask(b'{"n":%d}' % n) for n in range(5)]
    connections = [await service.connection(n) for n in range(5)]
    for connection in reversed(connections):
        sent = await connection.command()
        connection.send(bulk(b'{"ec":200,"sent":' + sent.args[1] + b"}"))
    seen = {}
    for _ in numbers:
        response = await asking.response()
        seen[response.request_id] = joined(response.body)
    assert seen == {n: b'{"ec":200,"sent":{"n":%d}}' % (n - 1) for n in numbers}
    await asking.end()
    service.close()


async def test_a_reply_that_is_no_moa_passes_as_it_is() -> None:
    service = await Server.start()
    asking = Asking(service.address)
    await asking.ask()
    await (await service.connection()).answer(b"-LOADING wait\r\n")
    response = await asking.response()
    assert (response.header.ec, response.header.codec) == (0, 0)
    assert joined(response.body) == b"-LOADING wait\r\n"
    await asking.end()
    service.close()


async def test_a_service_that_cannot_be_reached_has_not_seen_the_request() -> None:
    service = await Server.start()
    service.stop_listening()
    asking = Asking(service.address)
    await asking.ask()
    header = (await asking.response()).header
    assert (header.ec, header.retryable) == (303, True)
    await asking.end()


async def test_deadlines_are_kept_here_too() -> None:
    service = await Server.start()
    asking = Asking(service.address)
    await asking.ask(deadline_ms=0)
    assert (await asking.response()).header.ec == 304
    assert service.connections == []
    await asking.ask(deadline_ms=50)
    connection = await service.connection()
    await connection.command()
    assert (await asking.response()).header.ec == 304
    loop = asyncio.get_running_loop()
    assert await asyncio.wait_for(loop.sock_recv(connection.sock, 10), WITHIN_S) == b""
    await asking.end()
    service.close()


@pytest.mark.parametrize("how", ["cancel", "hang up"])
async def test_the_service_is_hung_up_on_when_nobody_waits(how: str) -> None:
    service = await Server.start()
    asking = Asking(service.address)
    number = await asking.ask()
    connection = await service.connection()
    await connection.command()
    if how == "cancel":
        asking.far.connection.cancel(number)
        asking.far.flush()
    else:
        asking.far.sock.close()
    loop = asyncio.get_running_loop()
    assert await asyncio.wait_for(loop.sock_recv(connection.sock, 10), WITHIN_S) == b""
    await asking.end()
    service.close()


async def test_going_away_serves_what_is_open_and_ends() -> None:
    service = await Server.start()
    asking = Asking(service.address)
    await asking.ask()
    connection = await service.connection()
    await connection.command()
    asking.front.go_away()
    await asking.far.next(GoAwayReceived)
    assert not next(iter(asking.front.sessions.values())).is_idle
    connection.send(bulk(OK))
    assert (await asking.response()).header.ec == 200
    asking.far.sock.shutdown(socket.SHUT_WR)
    await until(lambda: not asking.front.sessions)
    await asking.end()
    service.close()


async def test_an_unknown_body_codec_is_refused_by_its_number() -> None:
    service = await Server.start()
    asking = Asking(service.address)
    await asking.ask(codec=77)
    header = (await asking.response()).header
    assert header.ec == 302
    assert "77" in header.em
    await asking.end()
    service.close()


async def test_who_breaks_the_protocol_is_told_and_hung_up_on() -> None:
    asking = Asking(Address("127.0.0.1", 9))
    asking.far.sock.send(b"nonsense, not a frame of the protocol")
    await asking.far.next(GoAwayReceived)
    asking.far.sock.shutdown(socket.SHUT_WR)
    await until(lambda: not asking.front.sessions)
    await asking.end()


async def test_who_takes_nothing_is_given_up_however_much_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PINGs show that it lives; but what waits for it would wait for ever."""
    monkeypatch.setattr(mesh_link, "STALL_S", 0.2)
    service = await Server.start()
    asking = Asking(service.address)
    (session,) = asking.front.sessions.values()
    session.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    asking.far.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    numbers = [await asking.ask() for _ in range(8)]
    for number in range(len(numbers)):
        connection = await service.connection(number)
        await connection.command()
        connection.send(bulk(OK[:-2] + b"1" * 60_000 + b"}"))
    loop = asyncio.get_running_loop()
    for number in range(1000):
        if not asking.front.sessions:
            break
        with suppress(OSError):
            await loop.sock_sendall(asking.far.sock, encode_frame(FrameType.PING, number))
        await asyncio.sleep(0.05)  # the pace of a peer that is well
    assert not asking.front.sessions
    await asking.end()
    service.close()


async def test_who_takes_a_little_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_link, "STALL_S", 0.1)
    service = await Server.start()
    asking = Asking(service.address)
    (session,) = asking.front.sessions.values()
    session.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    asking.far.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asking.ask()
    connection = await service.connection()
    await connection.command()
    body = OK[:-2] + b"1" * 60_000 + b"}"
    connection.send(bulk(body))
    seen: list[Event] = []
    loop = asyncio.get_running_loop()
    while not any(isinstance(event, ResponseReceived) for event in seen):
        data = await asyncio.wait_for(loop.sock_recv(asking.far.sock, 1000), WITHIN_S)
        assert data, "it was given up"
        seen += asking.far.connection.receive_data(data, loop.time())
        await asyncio.sleep(0.02)  # slow
    assert joined(seen[-1].body) == body  # type: ignore[union-attr]  # it is the response
    await asking.end()
    service.close()
