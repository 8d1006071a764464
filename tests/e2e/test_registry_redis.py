"""The Redis registry against a real redis-server: changes, faults, and what stays routed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from proxy.core.model import Address, Instance, ServiceKey
from proxy.registry import keys
from proxy.registry.base import RegistryError, RegistryState
from proxy.registry.endpoint import RedisEndpoint
from proxy.registry.redis import RedisRegistry, RedisTimes
from tests.support.redis import RedisServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

DEMO = ServiceKey("/service/demo")
A, B, C = (Instance(Address(f"10.0.0.{n}", 80)) for n in (1, 2, 3))

SLOW_SWEEP = RedisTimes(
    answer=0.5, pipeline=0.8, ping_interval=0.3, sweep_interval=60.0, grace=2.0,
    first_backoff=0.05, longest_backoff=0.2, save_interval=0.01,
)  # fmt: skip
"""No sweep within a test: what is seen was heard as a message, or loaded after a reconnect."""

FAST_SWEEP = replace(SLOW_SWEEP, sweep_interval=0.2)

SILENCE_S = SLOW_SWEEP.ping_interval + SLOW_SWEEP.answer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as running:
        yield running


@pytest.fixture
def direct(server: RedisServer) -> Iterator[redis.Redis]:
    client = server.client()
    yield client
    client.close()


@asynccontextmanager
async def running(
    url: str, times: RedisTimes = SLOW_SWEEP, last_known: Path | None = None
) -> AsyncIterator[RedisRegistry]:
    registry = RedisRegistry(RedisEndpoint.parse(url), last_known, times)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(registry.run())
        try:
            yield registry
        finally:
            task.cancel()
            await registry.aclose()


async def synced(registry: RedisRegistry) -> None:
    await in_state(registry, RegistryState.SYNCED)


async def in_state(registry: RedisRegistry, state: RegistryState) -> float:
    return await eventually(lambda: registry.status().state is state, state)


def routes(registry: RedisRegistry, key: ServiceKey = DEMO) -> set[Address]:
    return {instance.address for instance in registry.table.instances(key)}


async def routed(registry: RedisRegistry, *instances: Instance) -> float:
    wanted = {instance.address for instance in instances}
    return await eventually(lambda: routes(registry) == wanted, f"routes {wanted}")


async def persisted(path: Path, text: str) -> None:
    await eventually(lambda: path.exists() and text in path.read_text(), f"{text} in {path}")


async def test_register_replace_heartbeat_and_deregister_reach_another_agent(
    server: RedisServer, direct: redis.Redis
) -> None:
    async with running(server.url) as writer, running(server.url) as reader:
        await synced(writer)
        await synced(reader)
        await writer.register(DEMO, A)
        await writer.register(DEMO, B)
        await routed(reader, A, B)
        version = direct.get(keys.version_key(DEMO))
        await writer.heartbeat(DEMO, A)
        assert direct.get(keys.version_key(DEMO)) == version
        heavier = replace(A, weight=7, zone="bj", extra=(("k", "v"),))
        await writer.register(DEMO, heavier)
        await eventually(lambda: heavier in reader.table.instances(DEMO), "the new weight")
        assert len(routes(reader)) == 2
        assert direct.zcard(keys.heartbeat_key(DEMO)) == 2
        await writer.deregister(DEMO, A.address)
        await routed(reader, B)
        await writer.deregister(DEMO, B.address)
        await routed(reader)
        assert reader.status().state is RegistryState.SYNCED


def marks(registry: RedisRegistry, instance: Instance) -> set[str]:
    found = [i for i in registry.table.instances(DEMO) if i.address == instance.address]
    return set(found[0].marks) if found else set()


async def marked(registry: RedisRegistry, instance: Instance, *wanted: str) -> None:
    await eventually(lambda: marks(registry, instance) == set(wanted), f"the marks {wanted}")


async def test_marks_reach_another_agent_and_go_with_the_instance(
    server: RedisServer, direct: redis.Redis
) -> None:
    async with running(server.url) as writer, running(server.url) as reader:
        await synced(reader)
        await writer.register(DEMO, A)
        await writer.register(DEMO, B)
        assert await writer.mark(DEMO, A.address, "drain", "root@a", "new kernel")
        assert await writer.mark(DEMO, A.address, "mesh", "agent@a", "")
        assert await writer.mark(DEMO, B.address, "later", "x", "")
        await marked(reader, A, "drain", "mesh")
        await marked(reader, B, "later")
        assert [i.protocols for i in reader.table.instances(DEMO)] == [("resp", "mesh"), ("resp",)]
        value = direct.hget(keys.marks_key(DEMO), "10.0.0.1:80 drain")
        assert isinstance(value, bytes)
        assert value.split(b" ", 1)[1] == b"root@a new kernel"

        version = direct.get(keys.version_key(DEMO))
        assert not await writer.mark(DEMO, A.address, "drain", "root@a", "again")
        await writer.heartbeat(DEMO, A)
        assert not await writer.unmark(DEMO, A.address, "maint")
        assert direct.get(keys.version_key(DEMO)) == version, "nothing has changed"

        await writer.register(DEMO, replace(A, weight=7))
        await eventually(lambda: reader.table.instances(DEMO)[0].weight == 7, "the weight")
        await marked(reader, A, "drain", "mesh")
        assert await writer.unmark(DEMO, A.address, "drain")
        await marked(reader, A, "mesh")
        await writer.deregister(DEMO, A.address)
        await routed(reader, B)
        assert direct.hkeys(keys.marks_key(DEMO)) == [b"10.0.0.2:80 later"]
        await writer.register(DEMO, A)
        await routed(reader, A, B)
        await marked(reader, A)


async def test_marks_of_what_is_not_there_are_refused_and_empty_nothing(
    server: RedisServer, direct: redis.Redis
) -> None:
    async with running(server.url) as registry:
        await registry.register(DEMO, A)
        await registry.mark(DEMO, A.address, "drain", "x", "")
        await routed(registry, A)
        with pytest.raises(RegistryError, match="no such instance"):
            await registry.mark(DEMO, B.address, "drain", "x", "")
        for mark, who, reason in (("Drain", "x", "expected a mark"), ("drain", "a b", "who")):
            with pytest.raises(RegistryError, match=reason):
                await registry.mark(DEMO, A.address, mark, who, "")
        version = direct.get(keys.version_key(DEMO))
        direct.delete(keys.service_key(DEMO))
        assert await registry.unmark(DEMO, A.address, "drain")
        assert direct.get(keys.version_key(DEMO)) == version, "no order to empty the service"


async def test_the_scripts_stay_within_one_slot_of_a_cluster(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", options=("--cluster-enabled", "yes")) as node:
        direct = node.client()
        direct.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]
        await eventually(lambda: b"cluster_state:ok" in _cluster_info(direct), "the cluster")
        async with running(node.url) as registry:
            await registry.register(DEMO, A)
            await registry.mark(DEMO, A.address, "drain", "x", "")
            await marked(registry, A, "drain")
            await registry.deregister(DEMO, A.address)
            await routed(registry)
        direct.close()


def _cluster_info(direct: redis.Redis) -> bytes:
    return bytes(direct.execute_command("CLUSTER", "INFO"))  # type: ignore[no-untyped-call]


async def test_groups_are_sets_of_their_own(server: RedisServer) -> None:
    group = ServiceKey("/service/demo", "g")
    async with running(server.url) as registry:
        await registry.register(DEMO, A)
        await registry.register(group, B)
        await eventually(lambda: routes(registry, group) == {B.address}, "the group")
        await routed(registry, A)


async def test_concurrent_registers_all_arrive(server: RedisServer, direct: redis.Redis) -> None:
    many = [Instance(Address(f"10.1.{n // 200}.{n % 200 + 1}", 80)) for n in range(400)]
    # 800 changes wait for 16 connections; on a busy machine the last ones wait long.
    patient = replace(SLOW_SWEEP, answer=20.0, pipeline=20.0)
    async with running(server.url, patient) as one, running(server.url, patient) as two:
        async with asyncio.TaskGroup() as tasks:
            for number, instance in enumerate(many):
                tasks.create_task((one, two)[number % 2].register(DEMO, instance))
                tasks.create_task((two, one)[number % 2].register(DEMO, instance))
        await routed(one, *many)
        await routed(two, *many)
    version = direct.get(keys.version_key(DEMO))
    assert isinstance(version, bytes)
    assert version.endswith(b"-400")


async def test_a_version_lost_with_the_script_cache_is_no_obstacle(
    server: RedisServer, direct: redis.Redis
) -> None:
    async with running(server.url) as registry:
        await registry.register(DEMO, A)
        direct.script_flush()
        await registry.register(DEMO, B)
        await routed(registry, A, B)


@pytest.mark.parametrize("verb", ["register", "deregister"])
async def test_a_change_without_redis_fails_in_bounded_time(server: RedisServer, verb: str) -> None:
    async with running(server.url) as registry:
        await synced(registry)
        change: Callable[[], Awaitable[None]] = (
            (lambda: registry.register(DEMO, A))
            if verb == "register"
            else (lambda: registry.deregister(DEMO, A.address))
        )
        server.freeze()
        start_s = time.monotonic()
        with pytest.raises(RegistryError, match=f"{verb} 10.0.0.1:80 for /service/demo"):
            await change()
        assert time.monotonic() - start_s < 4 * SLOW_SWEEP.answer
        server.kill()
        with pytest.raises(RegistryError, match="may be repeated safely"):
            await change()


async def test_names_that_cannot_be_keys_are_refused(server: RedisServer) -> None:
    async with running(server.url) as registry:
        with pytest.raises(RegistryError, match="white space"):
            await registry.register(ServiceKey("/a b"), A)
        with pytest.raises(RegistryError, match="is a name"):
            await registry.register(DEMO, Instance(Address("db.example", 80)))


async def test_a_write_without_a_message_is_found_by_the_sweep(
    server: RedisServer, direct: redis.Redis
) -> None:
    async with running(server.url, FAST_SWEEP) as registry:
        await registry.register(DEMO, A)
        await routed(registry, A)
        direct.sadd(keys.service_key(DEMO), "10.0.0.2:80")
        await routed(registry, A, B)
        direct.sadd(keys.SERVICES, "/service/new")
        direct.sadd(keys.service_key(ServiceKey("/service/new")), "10.0.0.3:80")
        new = ServiceKey("/service/new")
        await eventually(lambda: routes(registry, new) == {C.address}, "the new service")


async def test_a_new_version_without_a_message_is_found_by_the_sweep(
    server: RedisServer, direct: redis.Redis
) -> None:
    async with running(server.url, FAST_SWEEP) as registry:
        await registry.register(DEMO, A)
        await routed(registry, A)
        pipe = direct.pipeline()
        pipe.srem(keys.service_key(DEMO), "10.0.0.1:80")
        pipe.sadd(keys.service_key(DEMO), "10.0.0.2:80")
        pipe.set(keys.version_key(DEMO), _bumped(direct.get(keys.version_key(DEMO))))
        pipe.execute()
        await routed(registry, B)


def _bumped(version: object) -> str:
    assert isinstance(version, bytes)
    incarnation, counter = version.decode().split("-")
    return f"{incarnation}-{int(counter) + 1}"


async def test_routes_stay_while_redis_is_dead_and_follow_when_it_is_back(
    server: RedisServer, direct: redis.Redis
) -> None:
    async with running(server.url) as registry:
        await registry.register(DEMO, A)
        await registry.register(DEMO, B)
        await routed(registry, A, B)
        server.kill()
        took_s = await in_state(registry, RegistryState.STALE)
        assert took_s < SILENCE_S
        assert routes(registry) == {A.address, B.address}
        assert str(server.port) in registry.status().detail
        server.restart()
        await synced(registry)
        assert routes(registry) == {A.address, B.address}
        await registry.deregister(DEMO, B.address)
        await routed(registry, A)


async def test_routes_stay_when_redis_comes_back_empty(server: RedisServer) -> None:
    async with running(server.url) as registry:
        for instance in (A, B, C):
            await registry.register(DEMO, instance)
        await routed(registry, A, B, C)
        server.kill()
        await in_state(registry, RegistryState.STALE)
        server.restart_empty()
        await in_state(registry, RegistryState.DEGRADED)
        assert routes(registry) == {A.address, B.address, C.address}
        assert "lost 3 instances of 1 services" in registry.status().detail


async def test_after_a_loss_those_that_do_not_return_go_after_the_grace(
    server: RedisServer, direct: redis.Redis
) -> None:
    async with running(server.url, FAST_SWEEP) as registry:
        for instance in (A, B, C):
            await registry.register(DEMO, instance)
        await routed(registry, A, B, C)
        direct.flushall()
        await in_state(registry, RegistryState.DEGRADED)
        await registry.heartbeat(DEMO, A)
        await eventually(lambda: "lost 2" in registry.status().detail, "one has returned")
        assert routes(registry) == {A.address, B.address, C.address}
        await registry.heartbeat(DEMO, B)
        took_s = await routed(registry, A, B)
        assert took_s > FAST_SWEEP.grace / 2
        await synced(registry)


async def test_a_deleted_set_keeps_its_routes(server: RedisServer, direct: redis.Redis) -> None:
    async with running(server.url, FAST_SWEEP) as registry:
        await registry.register(DEMO, A)
        await routed(registry, A)
        direct.delete(keys.service_key(DEMO))
        await in_state(registry, RegistryState.DEGRADED)
        assert routes(registry) == {A.address}


async def test_a_frozen_redis_is_stale_within_the_promised_time(server: RedisServer) -> None:
    async with running(server.url) as registry:
        await registry.register(DEMO, A)
        await routed(registry, A)
        server.freeze()
        took_s = await in_state(registry, RegistryState.STALE)
        assert took_s < SILENCE_S + 0.3
        assert routes(registry) == {A.address}
        server.thaw()
        await synced(registry)
        await registry.register(DEMO, B)
        await routed(registry, A, B)


async def test_redis_that_comes_later_is_found(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:
        server.kill()
        async with running(server.url) as registry:
            await eventually(lambda: str(server.port) in registry.status().detail, "a refusal")
            assert registry.status().state is RegistryState.STARTING
            server.start()
            await synced(registry)


async def test_broken_members_are_skipped_counted_and_named(
    server: RedisServer, direct: redis.Redis
) -> None:
    direct.sadd(keys.SERVICES, "/service/demo", "a b", b"\xff")
    direct.sadd(
        keys.service_key(DEMO),
        "10.0.0.1:80", "nonsense", b"\xff\xfe:80", "db.example:80", "10.0.0.9:80?weight=x", "",
    )  # fmt: skip
    async with running(server.url) as registry:
        await synced(registry)
        assert routes(registry) == {A.address}
        status = registry.status()
        assert status.broken_members == 7
        assert len(status.broken_examples) == 5
        assert any("a b" in text for text in status.broken_examples)


async def test_a_key_of_another_type_harms_only_its_service(
    server: RedisServer, direct: redis.Redis
) -> None:
    odd, versionless = ServiceKey("/service/odd"), ServiceKey("/service/odd2")
    async with running(server.url, FAST_SWEEP) as registry:
        await registry.register(odd, B)
        await registry.register(DEMO, A)
        await routed(registry, A)
        direct.delete(keys.service_key(odd))
        direct.set(keys.service_key(odd), "text")
        direct.sadd(keys.SERVICES, str(versionless))
        direct.lpush(keys.version_key(versionless), "list")
        await eventually(lambda: registry.status().broken_members == 2, "both are named")
        unmarked = ServiceKey("/service/odd3")
        direct.set(keys.marks_key(unmarked), "text")
        direct.sadd(keys.service_key(unmarked), "10.0.0.9:80")
        direct.sadd(keys.SERVICES, str(unmarked))
        await eventually(lambda: registry.status().broken_members == 3, "the third is named")
        await registry.register(DEMO, C)
        await routed(registry, A, C)
        assert routes(registry, odd) == {B.address}
        assert registry.status().state is RegistryState.SYNCED


async def test_nonsense_on_the_channel_is_passed_over(
    server: RedisServer, direct: redis.Redis
) -> None:
    async with running(server.url) as registry:
        await synced(registry)
        for message in (b"", b"\xff\xff 1", b"/a b c", b"x" * 100_000, b"/service/none 5-5"):
            direct.publish(keys.CHANGED, message)
        await registry.register(DEMO, A)
        await routed(registry, A)
        assert registry.status().state is RegistryState.SYNCED


async def test_an_agent_that_starts_without_redis_routes_by_the_copy_on_disk(
    server: RedisServer, tmp_path: Path
) -> None:
    copy = tmp_path / "services.json"
    async with running(server.url, last_known=copy) as registry:
        await registry.register(DEMO, A)
        await registry.register(DEMO, B)
        await registry.mark(DEMO, B.address, "maint", "x", "")
        await routed(registry, A, B)
        await persisted(copy, "10.0.0.2:80 maint")
    server.kill()
    async with running(server.url, last_known=copy) as registry:
        await routed(registry, A, B)
        await marked(registry, B, "maint")
        assert registry.status().state is RegistryState.STALE
        server.restart_empty()
        await in_state(registry, RegistryState.DEGRADED)
        assert routes(registry) == {A.address, B.address}


async def test_a_corrupt_copy_on_disk_is_passed_over_and_replaced(
    server: RedisServer, tmp_path: Path
) -> None:
    copy = tmp_path / "services.json"
    copy.write_bytes(b'{"format": 1, "servi')
    async with running(server.url, last_known=copy) as registry:
        await registry.register(DEMO, A)
        await routed(registry, A)
        await persisted(copy, "10.0.0.1:80")


async def test_a_copy_that_cannot_be_written_is_not_fatal(
    server: RedisServer, tmp_path: Path
) -> None:
    async with running(server.url, last_known=tmp_path / "nowhere" / "x.json") as registry:
        await registry.register(DEMO, A)
        await routed(registry, A)
        await registry.register(DEMO, B)
        await routed(registry, A, B)


async def test_a_password_is_used_and_never_shown(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", password="s3cret") as server:
        async with running(server.url) as registry:
            await registry.register(DEMO, A)
            await routed(registry, A)
        wrong = server.url.replace("s3cret", "wr0ng")
        async with running(wrong) as registry:
            await eventually(
                lambda: "invalid username-password" in registry.status().detail, "the refusal"
            )
            with pytest.raises(RegistryError) as caught:
                await registry.register(DEMO, B)
            for text in (registry.status().detail, str(caught.value)):
                assert "wr0ng" not in text


@pytest.mark.parametrize(
    "answer",
    [b":not a number\r\n", b"+OK\r\n", b"*-1\r\n", b"*1\r\n" * 2000, b"$999999999999\r\n", b""],
)
async def test_a_peer_that_is_no_redis_is_no_crash(answer: bytes) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while seen := await reader.read(4096):
            writer.write(b"+OK\r\n" * seen.count(b"CLIENT"))
            if b"SUBSCRIBE" in seen:
                writer.write(b"*3\r\n$9\r\nsubscribe\r\n$11\r\nmoa:changed\r\n:1\r\n")
            elif b"CLIENT" not in seen:
                writer.write(answer)
        writer.close()

    other = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    async with other, running(f"redis://127.0.0.1:{port}") as registry:
        await eventually(lambda: str(port) in registry.status().detail, "a reason")
        assert registry.status().state is RegistryState.STARTING


async def test_a_cancelled_registry_ends_at_once_wherever_it_is(
    server: RedisServer, direct: redis.Redis
) -> None:
    for n in range(300):
        direct.sadd(keys.SERVICES, f"/service/s{n}")
    busy = replace(SLOW_SWEEP, sweep_interval=0.0, ping_interval=0.001, answer=2.0)
    for round_ in range(40):
        async with asyncio.timeout(2.0), running(server.url, busy) as registry:
            await synced(registry)
            for _ in range(round_):
                await asyncio.sleep(0)


async def test_never_keys_or_scan(server: RedisServer, direct: redis.Redis) -> None:
    async with running(server.url, FAST_SWEEP) as registry:
        await registry.register(DEMO, A)
        await routed(registry, A)
        direct.sadd(keys.service_key(DEMO), "10.0.0.2:80")
        await routed(registry, A, B)
    calls = direct.info("commandstats")
    assert "cmdstat_smembers" in calls
    assert not {name for name in calls if name in ("cmdstat_keys", "cmdstat_scan")}


async def test_two_thousand_services_load_and_change_quickly(
    server: RedisServer, direct: redis.Redis, record_property: Callable[[str, object], None]
) -> None:
    services = [ServiceKey(f"/service/s{n}") for n in range(2000)]
    pipe = direct.pipeline(transaction=False)
    for n, key in enumerate(services):
        pipe.sadd(keys.SERVICES, str(key))
        members = [f"10.{n // 256}.{n % 256}.{i + 1}:5000?weight=50&zone=z{i}" for i in range(10)]
        pipe.sadd(keys.service_key(key), *members)
        pipe.set(keys.version_key(key), "1700000000000000-10")
    pipe.execute()
    async with running(server.url, FAST_SWEEP) as registry:
        load_s = await eventually(lambda: registry.status().instances == 20_000, "20 000")
        longest_s = await _longest_pause_s(
            registry, lambda: registry.register(services[1999], Instance(Address("10.9.9.9", 1)))
        )
        record_property("load_s", load_s)
        record_property("longest_pause_s", longest_s)
        print(f"load {load_s:.2f} s, longest pause of the loop {longest_s * 1000:.0f} ms")
        assert load_s < 8.0


async def _longest_pause_s(registry: RedisRegistry, change: Callable[[], Awaitable[None]]) -> float:
    """How long the event loop stood still at most while changes and sweeps were worked off."""
    loop = asyncio.get_running_loop()
    await change()
    longest_s, until_s = 0.0, loop.time() + 1.5
    while (before_s := loop.time()) < until_s:
        await asyncio.sleep(0.001)
        longest_s = max(longest_s, loop.time() - before_s)
    assert registry.status().instances == 20_001
    return longest_s
