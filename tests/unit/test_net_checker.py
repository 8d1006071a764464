"""Active checks over real connections: fall, rise, silence, and packets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest_asyncio

from proxy.core.model import Instance, ServiceKey, ServiceTable
from proxy.core.policy import PingPolicy, ServicePolicy
from proxy.net.checker import Checker
from proxy.net.forward import Forwarder
from proxy.wire.turbo import Cmd, encode_pong
from tests.unit.net_support import PacketConnection, Server, forwarder_of, table_of, until
from tests.unit.test_net_forward import OK, URI, Call

QUICK = replace(ServicePolicy(), ping=PingPolicy(interval_s=0.1, timeout_s=0.2))


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    started = await Server.start()
    yield started
    started.close()


def state_of(forwarder: Forwarder, server: Server) -> str:
    health = forwarder.service(URI).health
    return str(health.describe(server.address, forwarder.loop.time())["state"])


def checked(table: ServiceTable) -> tuple[Forwarder, Checker]:
    forwarder = forwarder_of(table, policy=QUICK)
    forwarder.service(URI)
    checker = Checker(forwarder, random.Random(1))
    checker.start()
    return forwarder, checker


async def test_idle_instance_that_went_is_ejected_and_one_that_is_back_is_readmitted() -> None:
    server = await Server.start()
    forwarder, checker = checked(table_of(URI, server.address))
    await (await server.connection()).answer(b"+PONG\r\n")
    server.close()
    await until(lambda: state_of(forwarder, server) == "ejected")
    assert forwarder.metrics.requests == 0
    back = await Server.start(port=server.address.port)
    answering = asyncio.create_task(answer_pings(back))
    await until(lambda: state_of(forwarder, server) == "slow-start")
    answering.cancel()
    checker.close()
    forwarder.close()
    back.close()


async def answer_pings(server: Server) -> None:
    connection = await server.connection()
    while True:
        assert (await connection.answer(b"+PONG\r\n")).name == b"PING"


async def test_silent_instance_is_ejected(server: Server) -> None:
    forwarder, checker = checked(table_of(URI, server.address))
    await until(lambda: state_of(forwarder, server) == "ejected")
    assert "PING" in forwarder.service(URI).health.describe(server.address, 0.0)["why"]
    assert forwarder.metrics.pings_failed >= 3
    checker.close()
    assert sum(pool.load for pool in forwarder.pools) == 0
    forwarder.close()


async def test_an_error_is_an_answer(server: Server) -> None:
    forwarder, checker = checked(table_of(URI, server.address))
    connection = await server.connection()
    for _ in range(4):
        await connection.answer(b"-ERR unknown command\r\n")
    assert state_of(forwarder, server) == "healthy"
    checker.close()
    forwarder.close()


async def test_a_request_shares_the_pool_with_its_check(server: Server) -> None:
    """A PING under way does not get a request's reply, nor the other way round."""
    forwarder, checker = checked(table_of(URI, server.address))
    first = await server.connection()
    assert (await first.command()).name == b"PING"
    call = Call(forwarder)
    second = await server.connection(1)
    await second.answer(OK)
    first.send(b"+PONG\r\n")
    await until(lambda: call.replies)
    assert call.replies == [OK]
    checker.close()
    forwarder.close()


async def test_instance_of_packets_gets_a_packet(server: Server) -> None:
    instance = Instance(server.address, protocols=("turbo",))
    forwarder, checker = checked(ServiceTable.build({ServiceKey(URI): [instance]}))
    far = PacketConnection((await server.connection()).sock)
    for _ in range(3):
        packet = await far.packet()
        assert packet.cmd is Cmd.PING
        far.send(encode_pong(packet))
    await until(lambda: forwarder.metrics.pings >= 3)
    assert forwarder.metrics.pings_failed == 0
    checker.close()
    forwarder.close()
