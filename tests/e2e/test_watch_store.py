"""Votes against a real Redis in cluster mode: what they change, and what they must not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from proxy.core.model import Address, ServiceKey
from proxy.registry import keys, watch_log
from proxy.registry.endpoint import RedisEndpoint
from proxy.registry.member import parse_member
from proxy.registry.watch import Offline, Outcome, Vote, WatchStore
from proxy.registry.watch_log import Entry
from proxy.registry.writer import RedisWriter
from tests.support.redis import RedisServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

KEY = ServiceKey("/service/demo")
A, B = Address("10.0.0.1", 80), Address("10.0.0.2", 80)
MEMBER_A = "10.0.0.1:80?weight=7&zone=z%20a&k=v"
LEASE_MS, FRESH_MS = 60_000, 300


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    directory = tmp_path_factory.mktemp("watch") / "redis"
    with RedisServer(directory, options=("--cluster-enabled", "yes")) as node:
        client = node.client()
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]
        yield node
        client.close()


@dataclass(slots=True)
class Scene:
    """Two instances of one service, and three watchers."""

    direct: redis.Redis
    writer: RedisWriter
    w1: WatchStore
    w2: WatchStore
    w3: WatchStore

    def members(self) -> set[Any]:
        return set(self.direct.smembers(keys.service_key(KEY)))

    def version(self) -> object:
        return self.direct.get(keys.version_key(KEY))

    async def offline(self) -> list[Offline]:
        return await self.w1.offline([KEY, ServiceKey("/service/other")])


@asynccontextmanager
async def scene(server: RedisServer) -> AsyncIterator[Scene]:
    endpoint = RedisEndpoint.parse(server.url)
    direct = server.client()
    await eventually(lambda: _writable(direct), "a cluster that works")
    direct.flushall()
    stores = [WatchStore(endpoint, f"w{n}", LEASE_MS, FRESH_MS, 5.0) for n in (1, 2, 3)]
    async with (
        aclosing(RedisWriter(endpoint, 5.0)) as writer,
        aclosing(stores[0]) as w1,
        aclosing(stores[1]) as w2,
        aclosing(stores[2]) as w3,
    ):
        await writer.register(KEY, parse_member(MEMBER_A))
        await writer.register(KEY, parse_member(str(B)))
        yield Scene(direct, writer, w1, w2, w3)
    direct.close()


def _writable(direct: redis.Redis) -> bool:
    try:
        return bool(direct.set("x", "1"))
    except redis.ResponseError:
        return False


def down(address: Address, *, may_empty: bool = False) -> Vote:
    return Vote(KEY, address, True, "no answer", may_empty)


def up(address: Address) -> Vote:
    return Vote(KEY, address, False, "answers")


async def vote(store: WatchStore, what: Vote, needed: int = 2) -> Outcome:
    (voted,) = await store.cast([what], needed)
    return voted.outcome


async def test_enough_votes_take_out_and_put_back_exactly(server: RedisServer) -> None:
    async with scene(server) as it:
        before, beat = it.version(), it.direct.zscore(keys.heartbeat_key(KEY), MEMBER_A)
        assert await vote(it.w1, down(A)) is Outcome.WAITING
        assert await vote(it.w1, down(A)) is Outcome.WAITING, "twice the same is one vote"
        assert it.version() == before
        assert await vote(it.w2, down(A)) is Outcome.DONE
        assert it.members() == {b"10.0.0.2:80"}
        assert it.version() != before
        (entry,) = await it.offline()
        assert (entry.address, entry.member, entry.who) == (A, MEMBER_A, "w2")
        assert await vote(it.w3, down(A)) is Outcome.ABSENT
        assert await vote(it.w3, up(A)) is Outcome.WAITING
        assert await vote(it.w1, up(A)) is Outcome.DONE
        assert it.members() == {MEMBER_A.encode(), b"10.0.0.2:80"}
        assert it.direct.zscore(keys.heartbeat_key(KEY), MEMBER_A) == beat
        assert await it.offline() == []


async def test_withdrawn_and_ended_votes_do_not_count(server: RedisServer) -> None:
    async with scene(server) as it:
        await vote(it.w1, down(A))
        await it.w1.withdraw([down(A)])
        assert await vote(it.w2, down(A)) is Outcome.WAITING
        it.direct.zadd(keys.votes_key(KEY), {f"down {A} w2": 1.0})
        assert await vote(it.w3, down(A)) is Outcome.WAITING
        assert await vote(it.w1, down(A)) is Outcome.DONE


async def test_the_last_one_stays_unless_it_may_go(server: RedisServer) -> None:
    async with scene(server) as it:
        assert await vote(it.w1, down(A), 1) is Outcome.DONE
        assert await vote(it.w1, down(B), 1) is Outcome.LAST
        assert await vote(it.w1, down(B, may_empty=True), 1) is Outcome.DONE
        assert it.members() == set()


async def test_one_in_maintenance_is_left_alone_and_counts_as_no_other(server: RedisServer) -> None:
    async with scene(server) as it:
        await it.writer.mark(KEY, A, "maint", "root@x", "disk")
        assert await vote(it.w1, down(A), 1) is Outcome.MAINT
        assert await vote(it.w1, down(B), 1) is Outcome.LAST
        await it.writer.unmark(KEY, A, "maint")
        assert await vote(it.w1, down(A), 1) is Outcome.DONE
        await it.writer.mark(KEY, A, "maint", "root@x", "")
        assert await vote(it.w1, up(A), 1) is Outcome.MAINT
        await it.writer.unmark(KEY, A, "maint")
        assert await vote(it.w1, up(A), 1) is Outcome.DONE


async def test_what_enters_itself_is_not_offline_and_is_not_taken_out_at_once(
    server: RedisServer,
) -> None:
    async with scene(server) as it:
        assert await vote(it.w1, down(A), 1) is Outcome.DONE
        await it.writer.register(KEY, parse_member(str(A)))
        assert await it.offline() == []
        assert await vote(it.w2, up(A), 1) is Outcome.ABSENT
        assert await vote(it.w2, down(A), 1) is Outcome.FRESH
        async with asyncio.timeout(10):
            while (outcome := await vote(it.w2, down(A), 1)) is Outcome.FRESH:
                await asyncio.sleep(0.02)
        assert outcome is Outcome.DONE


async def test_taking_it_out_by_hand_forgets_it_with_its_marks(server: RedisServer) -> None:
    async with scene(server) as it:
        await it.writer.mark(KEY, A, "drain", "root@x", "")
        assert await vote(it.w1, down(A), 1) is Outcome.DONE
        assert it.direct.hkeys(keys.marks_key(KEY)) == [b"10.0.0.1:80 drain"]
        await it.writer.deregister(KEY, A)
        assert await it.offline() == []
        assert it.direct.hkeys(keys.marks_key(KEY)) == []
        assert await vote(it.w1, up(A), 1) is Outcome.ABSENT


async def test_an_entry_is_forgotten_only_as_it_was_read(server: RedisServer) -> None:
    async with scene(server) as it:
        await vote(it.w1, down(A), 1)
        (entry,) = await it.offline()
        it.direct.hset(keys.offline_key(KEY), str(A), json.dumps({"member": "other"}))
        assert not await it.w1.forget(entry)
        it.direct.hset(keys.offline_key(KEY), str(A), entry.raw)
        assert await it.w1.forget(entry)
        assert await it.offline() == []


async def test_a_key_of_another_type_harms_its_service_only(server: RedisServer) -> None:
    async with scene(server) as it:
        other = ServiceKey("/service/other")
        it.direct.set(keys.offline_key(other), "text")
        it.direct.set(keys.service_key(other), "text")
        votes = [Vote(other, A, True, ""), down(A)]
        assert [v.vote for v in await it.w1.cast(votes, 1)] == [down(A)]
        assert [entry.key for entry in await it.offline()] == [KEY]


async def test_a_lease_says_who_lives_and_whether_it_was_held(server: RedisServer) -> None:
    async with scene(server) as it:
        assert not (await it.w1.renew({"state": "SETTLING"})).was_held
        assert (await it.w1.renew({"state": "WATCHING"})).was_held
        it.direct.hset(keys.WATCHERS, "gone", '1 {"state": "WATCHING"}')
        lease = await it.w2.renew({})
        assert set(lease.live) == {"w1", "w2"}
        assert lease.live["w1"]["state"] == "WATCHING"
        await it.w1.resign()
        assert set((await it.w2.renew({})).live) == {"w2"}


async def test_the_log_is_read_newest_last_and_by_service(server: RedisServer) -> None:
    async with scene(server) as it:
        lines = [Entry("w1", "taken-out", f"/service/{n % 2}", why=str(n)) for n in range(2500)]
        await it.w1.log(lines)
        client = RedisEndpoint.parse(server.url).client(5.0, 1)
        async with aclosing(client):
            assert [e.why for e in await watch_log.read(client, 3)] == ["2497", "2498", "2499"]
            found = await watch_log.read(client, 1200, "/service/1")
        assert len(found) == 1200
        assert {e.service for e in found} == {"/service/1"}
        assert (found[-1].why, found[0].why) == ("2499", "101")
