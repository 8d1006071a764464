"""The connections to one instance: bounds, order, fairness, and nothing that waits for ever."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from proxy.core.model import Address
from proxy.net import pool as pool_module
from proxy.net.pool import Pool
from proxy.net.pool_types import Unavailable, Waiter
from proxy.net.resp_upstream import RespUpstream
from proxy.net.upstream import Upstream
from tests.unit.net_support import LIMITS, Server, pool_settings, read_end, turns, until

REQUEST = b"*1\r\n$4\r\nPING\r\n"


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    started = await Server.start()
    yield started
    started.close()


class User:
    """Somebody who waits for a connection, and what they were told."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.upstreams: list[Upstream] = []
        self.refusals: list[Unavailable] = []
        self.replies: list[bytes] = []
        self.waiter = Waiter(self.upstreams.append, self.refusals.append)
        pool.acquire(self.waiter)

    @property
    def upstream(self) -> Upstream:
        assert len(self.upstreams) == 1
        return self.upstreams[0]

    def give_back(self) -> None:
        self.pool.release(self.upstream)

    def told(self) -> int:
        return len(self.upstreams) + len(self.refusals)


def make(server: Server, **settings: float) -> Pool:
    return pool_of(server.address, None, **settings)


def pool_of(address: Address, source: str | None, **settings: float) -> Pool:
    loop, chosen = asyncio.get_running_loop(), pool_settings(**settings)
    return Pool(
        loop,
        address,
        chosen,
        lambda sock: RespUpstream(loop, sock, address, LIMITS),
        chosen.size,
        source,
    )


async def test_a_connection_is_used_again(server: Server) -> None:
    pool = make(server)
    first = User(pool)
    await until(first.told)
    first.give_back()
    second = User(pool)
    assert second.upstream is first.upstream
    assert pool.connections == 1
    second.give_back()
    pool.close()


async def test_never_more_connections_than_allowed_and_first_come_first_served(
    server: Server,
) -> None:
    pool = make(server, size=2, queue=10)
    users = [User(pool) for _ in range(8)]
    await until(lambda: sum(u.told() for u in users) == 2)
    served = [u for u in users if u.told()]
    assert served == users[:2]
    for index in range(6):
        users[index].give_back()
        assert pool.connections == 2
        assert users[index + 2].told() == 1
    await until(lambda: len(server.connections) == 2)
    assert all(not u.refusals for u in users)
    pool.close()


async def test_over_the_queue_is_told_at_once(server: Server) -> None:
    pool = make(server, size=1, queue=1)
    waiting = [User(pool), User(pool)]
    over = User(pool)
    assert over.refusals[0].is_overload
    assert str(server.address) in over.refusals[0].why
    await until(waiting[0].told)
    waiting[0].give_back()
    assert waiting[1].told() == 1
    pool.close()


async def test_who_left_takes_no_place_in_the_queue(server: Server) -> None:
    pool = make(server, size=1, queue=2)
    first = User(pool)
    await until(first.told)
    left = [User(pool), User(pool)]
    for user in left:
        pool.leave(user.waiter)
        pool.leave(user.waiter)
    assert pool.load == 1
    later = User(pool)
    assert later.told() == 0
    first.give_back()
    assert later.told() == 1
    assert all(u.told() == 0 for u in left)
    pool.close()


async def test_refused_tells_everybody_when_there_is_no_connection(server: Server) -> None:
    server.stop_listening()
    pool = make(server, size=2, queue=10)
    users = [User(pool) for _ in range(5)]
    await until(lambda: all(u.told() for u in users))
    assert all(u.refusals[0].is_refused and not u.refusals[0].is_overload for u in users)
    assert "Connection refused" in users[0].refusals[0].why
    assert pool.load == 0
    pool.close()


async def test_a_lost_connection_is_replaced_for_who_waits(server: Server) -> None:
    pool = make(server, size=1)
    first, second = User(pool), User(pool)
    await until(first.told)
    pool.discard(first.upstream)
    await until(second.told)
    assert second.upstream is not first.upstream
    assert pool.connections == 1
    pool.close()


async def test_a_failed_dial_fails_one_and_the_others_are_served(server: Server) -> None:
    pool = make(server, size=2)
    first = User(pool)
    await until(first.told)
    server.stop_listening()
    second, third = User(pool), User(pool)
    await until(second.told)
    assert second.refusals
    assert third.told() == 0
    first.give_back()
    assert third.told() == 1
    pool.close()


async def test_a_server_that_closes_behind_its_reply_gets_a_new_connection(
    server: Server,
) -> None:
    """Who waits must not be given a connection that the kernel knows to be ended."""
    pool = make(server, size=1)
    first, second = User(pool), User(pool)
    await until(first.told)
    connection = await server.connection(0)
    replied = asyncio.Event()

    def on_reply(_reply: object) -> None:
        # The FIN is here already, and the loop has not told anybody.
        first.give_back()
        replied.set()

    first.upstream.send(REQUEST, on_reply, lambda why: pytest.fail(why))
    await connection.command()
    connection.send(b"+PONG\r\n")
    connection.sock.shutdown(socket.SHUT_WR)
    await replied.wait()
    await until(second.told)
    assert second.upstream is not first.upstream
    pool.close()


async def test_a_connection_that_is_dead_on_arrival_is_a_refusal(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RespUpstream, "looks_alive", lambda _self: False)
    pool = make(server, size=1)
    user = User(pool)
    await until(user.told)
    assert "closed at once" in user.refusals[0].why
    assert pool.connections == 0
    await turns()
    assert len(server.connections) <= 1  # it does not dial for ever
    pool.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EADDRNOTAVAIL])
async def test_our_own_want_of_descriptors_is_not_the_instances_fault(
    server: Server, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_args: object, **_kwargs: object) -> socket.socket:
        raise OSError(number, "ours")

    monkeypatch.setattr(pool_module, "open_client", fail)
    pool = make(server)
    user = User(pool)
    await until(user.told)
    assert user.refusals[0].is_overload
    assert not user.refusals[0].is_refused
    pool.close()


# Idle connections


async def _idle_pool(server: Server, **settings: float) -> tuple[Pool, RespUpstream]:
    pool = make(server, **{"size": 1, **settings})
    user = User(pool)
    await until(user.told)
    user.give_back()
    assert isinstance(user.upstream, RespUpstream)
    return pool, user.upstream


async def test_an_idle_connection_is_pinged_and_stays(server: Server) -> None:
    pool, upstream = await _idle_pool(server, idle_ping_s=0.01)
    connection = await server.connection()
    assert (await connection.answer(b"+PONG\r\n")).name == b"PING"
    await until(lambda: pool.connections == 1 and not upstream.is_busy)
    user = User(pool)
    assert user.upstream is upstream
    pool.close()


async def test_who_comes_during_a_ping_gets_the_connection_after_it(server: Server) -> None:
    pool, upstream = await _idle_pool(server, idle_ping_s=0.01)
    connection = await server.connection()
    await connection.command()
    user = User(pool)
    assert user.told() == 0
    connection.send(b"+PONG\r\n")
    await until(user.told)
    assert user.upstream is upstream
    pool.close()


@pytest.mark.parametrize("answer", [b"", b"-ERR no\r\n", b"garbage\r\n", None])
async def test_who_comes_during_a_ping_that_fails_gets_another_connection(
    server: Server, monkeypatch: pytest.MonkeyPatch, answer: bytes | None
) -> None:
    monkeypatch.setattr(pool_module, "PING_TIMEOUT_S", 0.05)
    pool, upstream = await _idle_pool(server, idle_ping_s=0.01)
    connection = await server.connection()
    await connection.command()
    user = User(pool)
    if answer:
        connection.send(answer)
    elif answer is None:
        connection.reset()
    await until(user.told, "the waiter served")
    assert user.upstream is not upstream
    assert pool.connections == 1
    pool.close()


async def test_an_idle_connection_is_closed_in_the_end(server: Server) -> None:
    pool, upstream = await _idle_pool(server, idle_ping_s=0.01, idle_close_s=0.01)
    await until(lambda: pool.connections == 0)
    await until(lambda: upstream.stream.is_closed)
    pool.close()


async def test_an_idle_connection_that_the_server_ends_is_forgotten(server: Server) -> None:
    pool, _ = await _idle_pool(server)
    (await server.connection()).close()
    await until(lambda: pool.connections == 0)
    pool.close()


# The end of a pool


async def test_close_fails_who_waits_and_closes_what_comes_back(server: Server) -> None:
    pool = make(server, size=1)
    first, second = User(pool), User(pool)
    await until(first.told)
    pool.close()
    assert second.refusals[0].is_overload
    assert first.refusals == []
    assert not first.upstream.is_lost
    first.give_back()
    assert pool.connections == 0
    assert await read_end((await server.connection()).sock) == b""


async def test_close_cancels_a_dial(server: Server) -> None:
    pool = make(server)
    user = User(pool)
    pool.close()
    assert user.refusals
    await turns()
    assert user.told() == 1
    assert pool.connections == 0


async def test_an_address_that_cannot_be_dialled_at_all() -> None:
    pool = pool_of(Address("127.0.0.1", 9), source="203.0.113.9")
    user = User(pool)
    await until(user.told)
    assert user.refusals
    pool.close()
