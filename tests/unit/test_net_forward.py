"""Requests on their way: one reply each, never another's, and what was not sent is tried again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from proxy.core.deadline import TIMEOUT_PROP
from proxy.core.message import Wire, request_of_command
from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.core.translate import resp_reply
from proxy.net.exchange import Exchange
from proxy.net.forward import Forwarder
from proxy.wire import hessian
from proxy.wire.moa import Ec, Route
from proxy.wire.resp import Command, bulk, encode_command
from proxy.wire.turbo import EXT_HESSIAN, encode_pong
from tests.unit.net_support import (
    PacketConnection,
    Server,
    forwarder_of,
    pool_settings,
    read_end,
    table_of,
    turns,
    until,
)

URI = "/service/demo"
ROUTE = Route(URI, "", "echo", {})
OK = bulk(b'{"ec":200,"em":"","result":1}')


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    started = await Server.start()
    yield started
    started.close()


@pytest_asyncio.fixture
async def other() -> AsyncIterator[Server]:
    started = await Server.start()
    yield started
    started.close()


class Call:
    """One request, and every reply that it got."""

    def __init__(self, forwarder: Forwarder, body: bytes = b"{}", route: Route = ROUTE) -> None:
        self.replies: list[bytes] = []
        self.exchange: Exchange = forwarder.prepare(
            request_of_command(route, Command((b"GET", body), encode_command(b"GET", body))),
            lambda outcome: self.replies.append(resp_reply(outcome, 1 << 21)),
        )
        self.exchange.start()

    @property
    def ec(self) -> int:
        assert len(self.replies) == 1
        ec = json.loads(self.replies[0].split(b"\r\n")[1])["ec"]
        assert isinstance(ec, int)
        return ec

    @property
    def em(self) -> str:
        return str(json.loads(self.replies[0].split(b"\r\n")[1])["em"])


async def test_a_request_arrives_byte_for_byte_and_so_does_its_reply(server: Server) -> None:
    forwarder = forwarder_of(table_of(URI, server.address))
    call = Call(forwarder, b'{"x":1}')
    command = await (await server.connection()).answer(OK)
    assert command.raw == encode_command(b"GET", b'{"x":1}')
    await until(lambda: call.replies)
    assert call.replies == [OK]
    assert forwarder.metrics.ok == 1
    assert forwarder.metrics.in_flight == 0
    forwarder.close()


async def test_an_unknown_service_is_told_at_once() -> None:
    forwarder = forwarder_of(ServiceTable())
    assert Call(forwarder).ec == Ec.SERVICE_NOT_FOUND
    forwarder.close()


async def test_what_was_never_sent_goes_to_another_instance(server: Server, other: Server) -> None:
    server.stop_listening()
    forwarder = forwarder_of(table_of(URI, server.address, other.address))
    for number in range(4):
        call = Call(forwarder)
        await (await other.connection()).answer(OK)
        await until(lambda call=call: call.replies)  # type: ignore[misc]
        assert call.replies == [OK], number
    assert forwarder.metrics.failed == 0
    assert (
        forwarder.service(URI).health.describe(server.address, forwarder.loop.time())["state"]
        == "ejected"
    )
    forwarder.close()


async def test_when_nobody_listens_the_caller_is_told_who_refused(server: Server) -> None:
    server.stop_listening()
    forwarder = forwarder_of(table_of(URI, server.address))
    call = Call(forwarder)
    await until(lambda: call.replies)
    assert call.ec == Ec.REMOTING
    assert str(server.address) in call.em
    assert "Connection refused" in call.em
    forwarder.close()


async def test_what_was_sent_is_not_sent_again(server: Server, other: Server) -> None:
    forwarder = forwarder_of(table_of(URI, server.address, other.address))
    call = Call(forwarder)
    await until(lambda: server.connections or other.connections)
    chosen = server if server.connections else other
    connection = await chosen.connection()
    await connection.command()
    connection.reset()
    await until(lambda: call.replies)
    assert call.ec == Ec.REMOTING
    assert "may have been executed" in call.em
    unchosen = other if chosen is server else server
    assert unchosen.connections == []
    forwarder.close()


async def test_at_the_deadline_the_caller_is_told_and_the_connection_is_closed(
    server: Server,
) -> None:
    forwarder = forwarder_of(table_of(URI, server.address))
    first = Call(forwarder)
    connection = await server.connection()
    await connection.answer(OK)
    await until(lambda: first.replies)
    # Over a connection that stands a request is sent at once, whatever time it has.
    late = Call(forwarder, route=Route(URI, "", "echo", {TIMEOUT_PROP: "50"}))
    await connection.command()
    await until(lambda: late.replies)
    assert late.ec == Ec.TIMEOUT
    # The late reply has nowhere to go.
    assert await read_end(connection.sock) == b""
    connection.send(OK)
    second = Call(forwarder)
    await (await server.connection(1)).answer(bulk(b'{"ec":200,"result":2}'))
    await until(lambda: second.replies)
    assert b'"result":2' in second.replies[0]
    assert (len(first.replies), len(late.replies)) == (1, 1)
    forwarder.close()


async def test_a_deadline_in_the_queue_is_a_timeout_too(server: Server) -> None:
    forwarder = forwarder_of(
        table_of(URI, server.address), pool_settings(size=1, queue=5), timeout_s=0.05
    )
    calls = [Call(forwarder) for _ in range(3)]
    await until(lambda: all(c.replies for c in calls))
    assert [c.ec for c in calls] == [Ec.TIMEOUT] * 3
    assert forwarder.pools.get(server.address, Wire.RESP).load == 0
    forwarder.close()


async def test_a_full_queue_is_told_at_once(server: Server) -> None:
    forwarder = forwarder_of(table_of(URI, server.address), pool_settings(size=1, queue=1))
    calls = [Call(forwarder) for _ in range(3)]
    assert calls[2].ec == Ec.THREAD_POOL_IS_FULL
    assert forwarder.service(URI).health.describe(server.address, 0.0)["failures"] == 0
    forwarder.close()


@pytest.mark.parametrize("when", ["dialling", "waiting", "sent"])
async def test_a_cancelled_request_gets_no_reply_and_gives_back_its_place(
    server: Server, when: str
) -> None:
    forwarder = forwarder_of(table_of(URI, server.address), pool_settings(size=1))
    call = Call(forwarder)
    connection = None if when == "dialling" else await server.connection()
    if connection is not None:
        await connection.command()
    if connection is not None and when == "waiting":
        queued = Call(forwarder)
        queued.exchange.cancel()
        connection.send(OK)
        await until(lambda: call.replies)
        assert queued.replies == []
    else:
        call.exchange.cancel()
        call.exchange.cancel()
    pool = forwarder.pools.get(server.address, Wire.RESP)
    await until(lambda: pool.load == 0)
    last = Call(forwarder)
    number = 1 if when == "sent" else 0
    await (await server.connection(number)).answer(OK)
    await until(lambda: last.replies)
    if when != "waiting":
        assert call.replies == []
    assert forwarder.metrics.in_flight == 0
    forwarder.close()


async def test_each_of_many_callers_gets_its_own_reply(server: Server) -> None:
    """Invariant 3, with a third of them leaving in the middle."""
    forwarder = forwarder_of(table_of(URI, server.address), pool_settings(size=4, queue=500))
    answering = asyncio.create_task(_echo_everything(server))
    calls = {n: Call(forwarder, b'{"n":%d}' % n) for n in range(300)}
    left = set(range(0, 300, 3))
    for n in left:
        calls[n].exchange.cancel()
        await turns(1)
    await until(lambda: all(c.replies for n, c in calls.items() if n not in left))
    for n, call in calls.items():
        wanted = [] if n in left and not call.replies else [bulk(b'{"n":%d}' % n)]
        assert call.replies == wanted
    assert forwarder.pools.get(server.address, Wire.RESP).connections <= 4
    answering.cancel()
    forwarder.close()


async def _echo_everything(server: Server) -> None:
    async def serve(number: int) -> None:
        connection = await server.connection(number)
        while True:
            command = await connection.command()
            connection.send(bulk(command.args[1]))

    number = 0
    async with asyncio.TaskGroup() as group:
        while True:
            await until(lambda number=number: len(server.connections) > number)  # type: ignore[misc]
            group.create_task(_quietly(serve(number)))
            number += 1


async def _quietly(serving: object) -> None:
    try:
        await serving  # type: ignore[misc]
    except (AssertionError, ConnectionError):
        return


async def test_an_instance_taken_off_the_list_finishes_what_it_has(
    server: Server, other: Server
) -> None:
    forwarder = forwarder_of(table_of(URI, server.address), pool_settings(size=1))
    running = Call(forwarder)
    connection = await server.connection()
    await connection.command()
    waiting = Call(forwarder)
    forwarder.update(table_of(URI, other.address))
    # Who only waited goes to the instance that is listed now.
    await (await other.connection()).answer(OK)
    await until(lambda: waiting.replies)
    assert waiting.replies == [OK]
    connection.send(OK)
    await until(lambda: running.replies)
    assert running.replies == [OK]
    assert [pool.address for pool in forwarder.pools] == [other.address]
    assert await read_end(connection.sock) == b""
    forwarder.close()


async def test_close_fails_everybody_and_starts_nothing(server: Server, other: Server) -> None:
    forwarder = forwarder_of(table_of(URI, server.address, other.address), pool_settings(size=1))
    calls = [Call(forwarder) for _ in range(6)]
    forwarder.close()
    assert list(forwarder.pools) == []
    await turns()
    assert list(forwarder.pools) == []
    # Those that were sent nothing know; those under way end with their connection.
    assert all(len(c.replies) <= 1 for c in calls)


async def test_a_transport_failure_in_a_reply_is_passed_on_and_counts(server: Server) -> None:
    forwarder = forwarder_of(table_of(URI, server.address))
    reply = bulk(b'{"ec":304,"em":"timeout","result":null}')
    call = Call(forwarder)
    await (await server.connection()).answer(reply)
    await until(lambda: call.replies)
    assert call.replies == [reply]
    assert forwarder.service(URI).health.describe(server.address, 0.0)["failures"] == 1
    metrics = forwarder.metrics
    assert (metrics.ok, metrics.failed, metrics.transport_errors) == (0, 0, 1)
    forwarder.close()


async def test_an_address_of_our_own_host_is_dialled_from_the_guard_address() -> None:
    guarded = await Server.start()
    forwarder = forwarder_of(table_of(URI, guarded.address))
    forwarder.pools._source_for = lambda _address: "127.0.0.6"
    call = Call(forwarder)
    connection = await guarded.connection()
    assert connection.sock.getpeername()[0] == "127.0.0.6"
    await connection.answer(OK)
    await until(lambda: call.replies)
    forwarder.close()
    guarded.close()


def test_addresses_are_told_as_text() -> None:
    assert str(Address("::1", 5)) == "[::1]:5"


# Instances that speak binary packets


def turbo_table(*servers: Server) -> ServiceTable:
    instances = [Instance(s.address, protocols=("turbo",)) for s in servers]
    return ServiceTable.build({ServiceKey(URI): instances})


async def test_many_requests_share_a_connection_to_a_server_of_packets(server: Server) -> None:
    forwarder = forwarder_of(turbo_table(server), pool_settings(queue=200))
    calls = [Call(forwarder, b'{"n":%d}' % n) for n in range(100)]
    far = PacketConnection((await server.connection()).sock)
    packets = [await far.packet() for _ in calls]
    assert forwarder.load(server.address) == 100
    for packet in reversed(packets):
        far.answer(packet, b'{"ec":200,"em":"","result":%s}' % packet.body)
    await until(lambda: all(call.replies for call in calls))
    for n, call in enumerate(calls):
        assert call.replies == [bulk(b'{"ec":200,"em":"","result":{"n":%d}}' % n)]
    assert forwarder.load(server.address) == 0
    assert sum(pool.connections for pool in forwarder.pools) <= 2
    forwarder.close()


async def test_one_that_expires_does_not_cost_the_others_their_connection(server: Server) -> None:
    forwarder = forwarder_of(turbo_table(server), timeout_s=0.1)
    expired = Call(forwarder)
    far = PacketConnection((await server.connection()).sock)
    late = await far.packet()
    await until(lambda: expired.replies)
    assert expired.ec == Ec.TIMEOUT
    far.send(encode_pong(await far.packet()))
    far.answer(late, b'{"ec":200,"result":"late"}')
    second = Call(forwarder)
    far.answer(await far.packet(), b'{"ec":200,"result":"second"}')
    await until(lambda: second.replies)
    assert b"second" in second.replies[0]
    assert len(expired.replies) == 1
    assert forwarder.metrics.late_replies == 1
    assert len(server.connections) == 1
    forwarder.close()


async def test_a_lost_connection_fails_each_request_once(server: Server) -> None:
    forwarder = forwarder_of(turbo_table(server))
    calls = [Call(forwarder) for _ in range(6)]
    far = PacketConnection((await server.connection()).sock)
    for _ in calls:
        await far.packet()
    (await server.connection()).reset()
    await until(lambda: all(call.replies for call in calls))
    assert [call.ec for call in calls] == [Ec.REMOTING] * 6
    assert forwarder.load(server.address) == 0
    forwarder.close()


async def test_more_than_a_connection_takes_waits_and_the_queue_is_bounded(server: Server) -> None:
    forwarder = forwarder_of(
        turbo_table(server), pool_settings(queue=5, shared_size=1, shared_requests=20)
    )
    calls = [Call(forwarder, b'{"n":%d}' % n) for n in range(5)]
    far = PacketConnection((await server.connection()).sock)
    calls += [Call(forwarder, b'{"n":%d}' % n) for n in range(5, 26)]
    assert calls[-1].ec == Ec.THREAD_POOL_IS_FULL
    packets = [await far.packet() for _ in range(20)]
    await turns()
    for packet in packets:
        far.answer(packet, b'{"ec":200}')
    for _ in range(5):
        far.answer(await far.packet(), b'{"ec":200}')
    await until(lambda: all(call.replies for call in calls))
    forwarder.close()


async def test_a_closed_pool_lets_what_is_under_way_end(server: Server) -> None:
    forwarder = forwarder_of(turbo_table(server))
    calls = [Call(forwarder) for _ in range(3)]
    far = PacketConnection((await server.connection()).sock)
    packets = [await far.packet() for _ in calls]
    forwarder.update(ServiceTable())
    for packet in packets:
        far.answer(packet, b'{"ec":200}')
    await until(lambda: all(call.replies for call in calls))
    assert await read_end(far.sock) == b""
    forwarder.close()


async def test_what_cannot_be_translated_is_not_sent(server: Server) -> None:
    instance = Instance(server.address, protocols=("turbo",), codec="hessian2")
    forwarder = forwarder_of(ServiceTable.build({ServiceKey(URI): [instance]}))
    call = Call(forwarder, b'{"params":{"args":[123456789012345678901]}}')
    await until(lambda: call.replies)
    assert call.ec == Ec.SERIALIZATION
    assert "$.params.args[0]" in call.em
    assert forwarder.load(server.address) == 0
    second = Call(forwarder)
    far = PacketConnection((await server.connection()).sock)
    packet = await far.packet()
    assert packet.extension == EXT_HESSIAN
    far.answer(packet, hessian.json_to_hessian(b'{"ec":503,"em":"x"}'), EXT_HESSIAN)
    await until(lambda: second.replies)
    assert second.ec == 503
    assert forwarder.service(URI).health.describe(server.address, 0.0)["failures"] == 0
    forwarder.close()
