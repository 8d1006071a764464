"""What is sent twice and what never is: retries after a failure, hedges, budgets, caps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from proxy.core.deadline import TIMEOUT_PROP
from proxy.core.latency import QUANTILE_SAMPLES
from proxy.core.model import ServiceTable
from proxy.core.policy import ServicePolicy
from proxy.net.forward import Forwarder
from proxy.wire.moa import Ec, Route
from proxy.wire.resp import bulk
from tests.unit.net_support import Connection, Server, forwarder_of, pool_settings, table_of, until
from tests.unit.test_net_forward import OK, ROUTE, URI, Call

IDEMPOTENT = ServicePolicy(idempotent=("echo", "get*"))
HEDGED = replace(IDEMPOTENT, hedge=True)
BUSY = bulk(b'{"ec":504,"em":"full","result":null}')


@pytest_asyncio.fixture
async def servers() -> AsyncIterator[list[Server]]:
    started = [await Server.start() for _ in range(3)]
    yield started
    for server in started:
        server.close()


def forwarder_with(policy: ServicePolicy, servers: list[Server]) -> Forwarder:
    return forwarder_of(table_of(URI, *(s.address for s in servers)), policy=policy)


async def next_connection(servers: list[Server], seen: set[Connection]) -> Connection:
    """The next connection to any of them."""

    def fresh() -> list[Connection]:
        return [c for s in servers for c in s.connections if c not in seen]

    await until(fresh, "a connection")
    connection = fresh()[0]
    seen.add(connection)
    return connection


async def test_idempotent_request_that_was_lost_is_sent_once_more_elsewhere(
    servers: list[Server],
) -> None:
    forwarder = forwarder_with(IDEMPOTENT, servers)
    call, seen = Call(forwarder), set[Connection]()
    first = await next_connection(servers, seen)
    await first.command()
    first.reset()
    second = await next_connection(servers, seen)
    await second.answer(OK)
    await until(lambda: call.replies)
    assert call.replies == [OK]
    counts = forwarder.metrics.service(URI)
    assert (counts.resent, counts.failed, forwarder.metrics.ok) == (1, 0, 1)
    forwarder.close()


@pytest.mark.parametrize("how", ["reset", "ec 504"])
async def test_it_is_sent_twice_and_no_more(servers: list[Server], how: str) -> None:
    forwarder = forwarder_with(IDEMPOTENT, servers)
    call, seen = Call(forwarder), set[Connection]()
    for _ in range(2):
        connection = await next_connection(servers, seen)
        await connection.command()
        if how == "reset":
            connection.reset()
        else:
            connection.send(BUSY)
    await until(lambda: call.replies)
    if how == "reset":
        assert call.ec == Ec.REMOTING
        assert "may have been executed" in call.em
    else:
        assert call.replies == [BUSY]
    assert sum(len(server.connections) for server in servers) == 2
    assert forwarder.metrics.in_flight == 0
    assert all(node.in_flight == 0 for node in forwarder.service(URI).nodes())
    forwarder.close()


@pytest.mark.parametrize("method", ["set", "echoed"])
async def test_what_is_not_idempotent_is_sent_once(servers: list[Server], method: str) -> None:
    forwarder = forwarder_with(IDEMPOTENT, servers)
    call = Call(forwarder, route=Route(URI, "", method, {}))
    connection = await next_connection(servers, set())
    await connection.command()
    connection.reset()
    await until(lambda: call.replies)
    assert call.ec == Ec.REMOTING
    assert sum(len(server.connections) for server in servers) == 1
    forwarder.close()


async def test_a_retry_that_finds_nobody_says_that_the_first_may_have_been_executed(
    servers: list[Server],
) -> None:
    forwarder = forwarder_with(IDEMPOTENT, servers)
    call = Call(forwarder)
    first = await next_connection(servers, set())
    await first.command()
    for server in servers:
        server.stop_listening()
    first.reset()
    await until(lambda: call.replies)
    assert "may have been executed" in call.em
    forwarder.close()


async def test_without_budget_nothing_is_sent_again(servers: list[Server]) -> None:
    forwarder = forwarder_with(replace(IDEMPOTENT, retry_share=0.0, retry_per_s=0.0), servers)
    call = Call(forwarder)
    connection = await next_connection(servers, set())
    await connection.command()
    connection.reset()
    await until(lambda: call.replies)
    assert call.ec == Ec.REMOTING
    assert forwarder.metrics.service(URI).budget_exhausted == 1
    forwarder.close()


# Hedging


def know_latency(forwarder: Forwarder, latency_s: float) -> None:
    p95 = forwarder.service(URI).p95
    assert p95 is not None
    for _ in range(QUANTILE_SAMPLES):
        p95.observe(latency_s)


async def test_slow_request_is_hedged_and_the_first_reply_wins(servers: list[Server]) -> None:
    forwarder = forwarder_with(HEDGED, servers)
    know_latency(forwarder, 0.02)
    call, seen = Call(forwarder), set[Connection]()
    first = await next_connection(servers, seen)
    await first.command()
    second = await next_connection(servers, seen)
    await second.answer(OK)
    await until(lambda: call.replies)
    assert call.replies == [OK]
    counts = forwarder.metrics.service(URI)
    assert (counts.hedges, counts.hedges_won, forwarder.metrics.ok) == (1, 1, 1)
    assert all(node.in_flight == 0 for node in forwarder.service(URI).nodes())
    assert sum(pool.load for pool in forwarder.pools) == 0
    forwarder.close()


@pytest.mark.parametrize("loser", ["hedge", "both"])
async def test_hedge_that_fails_costs_nothing(servers: list[Server], loser: str) -> None:
    forwarder = forwarder_with(HEDGED, servers)
    know_latency(forwarder, 0.02)
    call, seen = Call(forwarder), set[Connection]()
    first = await next_connection(servers, seen)
    await first.command()
    second = await next_connection(servers, seen)
    await second.command()
    if loser == "both":
        first.reset()
        await until(lambda: forwarder.metrics.service(URI).transport_failures == 1)
        assert call.replies == [], "the other may still answer"
    second.reset()
    if loser == "hedge":
        await until(lambda: forwarder.service(URI).health.is_troubled)
        first.send(OK)
    await until(lambda: call.replies)
    if loser == "hedge":
        assert call.replies == [OK]
    else:
        assert "may have been executed" in call.em
    assert sum(len(server.connections) for server in servers) == 2, "never a third"
    assert all(node.in_flight == 0 for node in forwarder.service(URI).nodes())
    forwarder.close()


async def test_a_request_that_was_cancelled_takes_its_hedge_along(servers: list[Server]) -> None:
    forwarder = forwarder_with(HEDGED, servers)
    know_latency(forwarder, 0.02)
    call, seen = Call(forwarder), set[Connection]()
    for _ in range(2):
        await (await next_connection(servers, seen)).command()
    call.exchange.cancel()
    assert sum(pool.load for pool in forwarder.pools) == 0
    assert all(node.in_flight == 0 for node in forwarder.service(URI).nodes())
    assert call.replies == []
    forwarder.close()


@pytest.mark.parametrize("method", ["set", "echo"])
async def test_not_hedged_unless_asked_for_and_idempotent(
    servers: list[Server], method: str
) -> None:
    forwarder = forwarder_with(HEDGED if method == "set" else IDEMPOTENT, servers)
    if method == "set":
        know_latency(forwarder, 0.001)
    call = Call(forwarder, route=Route(URI, "", method, {}))
    connection = await next_connection(servers, set())
    await connection.command()
    await asyncio.sleep(0.05)  # Nothing may happen: there is no event to wait for.
    assert sum(len(server.connections) for server in servers) == 1
    connection.send(OK)
    await until(lambda: call.replies)
    forwarder.close()


# Caps and deadlines


async def test_over_the_cap_of_a_service_is_told_at_once(servers: list[Server]) -> None:
    policy = ServicePolicy(max_in_flight=2)
    forwarder = forwarder_of(
        table_of(URI, servers[0].address), pool_settings(queue=50), policy=policy
    )
    calls = [Call(forwarder) for _ in range(3)]
    assert calls[2].ec == Ec.THREAD_POOL_IS_FULL
    assert "not sent" in calls[2].em
    assert not calls[0].replies
    assert forwarder.metrics.service(URI).capped == 1
    calls[0].exchange.cancel()
    assert not Call(forwarder).replies, "there is room again"
    forwarder.close()


async def test_instances_over_their_cap_are_passed_by(servers: list[Server]) -> None:
    forwarder = forwarder_of(
        table_of(URI, *(server.address for server in servers)),
        pool_settings(queue=50),
        policy=ServicePolicy(max_in_flight_instance=2),
    )
    calls = [Call(forwarder) for _ in range(7)]
    assert [node.in_flight for node in forwarder.service(URI).nodes()] == [2, 2, 2]
    assert calls[6].ec == Ec.THREAD_POOL_IS_FULL
    assert forwarder.metrics.service(URI).capped == 1
    forwarder.close()


@pytest.mark.parametrize(
    ("props", "timeout_ms"), [({"moa.timeout": "40"}, 5000), ({}, 40), ({"moa.timeout": "x"}, 40)]
)
async def test_deadline_is_the_request_s_then_the_service_s(
    servers: list[Server], props: dict[str, str], timeout_ms: int
) -> None:
    forwarder = forwarder_with(ServicePolicy(timeout_ms=timeout_ms), servers)
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    call = Call(forwarder, route=Route(URI, "", "echo", props))
    await until(lambda: call.replies)
    assert call.ec == Ec.TIMEOUT
    assert 0.03 < loop.time() - begun_s < 4
    forwarder.close()


async def test_every_count_is_back_to_nothing_when_the_table_goes(servers: list[Server]) -> None:
    forwarder = forwarder_with(IDEMPOTENT, servers)
    service = forwarder.service(ROUTE.uri)
    call = Call(forwarder)
    await (await next_connection(servers, set())).command()
    nodes = list(service.nodes())
    forwarder.update(ServiceTable())
    call.exchange.cancel()
    assert service.in_flight == 0
    assert all(node.in_flight == 0 for node in nodes)
    forwarder.close()


async def test_a_loop_that_stood_still_blames_no_instance(servers: list[Server]) -> None:
    forwarder = forwarder_of(table_of(URI, servers[0].address))
    first = Call(forwarder)
    await (await next_connection(servers, set())).answer(OK)
    await until(lambda: first.replies)
    # Sent at once over the connection that stands: its time passes while nothing turns.
    call = Call(forwarder, route=Route(URI, "", "echo", {TIMEOUT_PROP: "50"}))
    time.sleep(0.7)
    await until(lambda: call.replies)
    assert call.ec == Ec.TIMEOUT
    assert not forwarder.service(URI).health.is_troubled
    forwarder.close()
