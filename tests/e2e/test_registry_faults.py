"""The registry behind sentinels, in a cluster, slow, and refusing writes: routes stay, and the
status says why they may be old.

What one server does when it dies, hangs or forgets is in test_registry_redis.py.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.core.model import Address, Instance, ServiceKey
from proxy.registry import keys
from proxy.registry.base import RegistryError, RegistryState
from proxy.registry.redis import RedisRegistry, RedisTimes
from tests.support.agents import MOACTL
from tests.support.redis import RedisServer
from tests.support.redis_kinds import Cluster, Sentinels
from tests.support.registries import in_state, routed, routes, running, synced
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

DEMO = ServiceKey("/service/demo")
SERVICES = [ServiceKey(f"/service/s{n}") for n in range(12)]
A, B, C = (Instance(Address(f"10.0.0.{n}", 80)) for n in (1, 2, 3))

TIMES = RedisTimes(
    answer=1.0, pipeline=1.5, ping_interval=0.5, sweep_interval=60.0, grace=2.0,
    first_backoff=0.05, longest_backoff=0.2, save_interval=0.01,
)  # fmt: skip
"""No sweep within a test: what is seen was heard as a message, or loaded after a reconnect."""

FAST_SWEEP = replace(TIMES, sweep_interval=0.3)


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    with Sentinels(tmp_path_factory.mktemp("sentinels"), password="s3cret") as running_ones:
        yield running_ones


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as running_one:
        yield running_one


async def registered(registry: RedisRegistry, key: ServiceKey, instance: Instance) -> None:
    """Repeat it as a heartbeat does, until it succeeds."""
    for _ in range(100):
        try:
            await registry.register(key, instance)
        except RegistryError:
            await asyncio.sleep(0.1)
        else:
            return
    await registry.register(key, instance)


async def test_sentinels_name_another_master_and_changes_go_on(sentinels: Sentinels) -> None:
    """The former master lives on and takes changes until the sentinels demote it: heartbeats
    bring to its successor what was lost that way, and no route goes meanwhile."""
    async with running(sentinels.url, TIMES) as registry:
        await registered(registry, DEMO, A)
        await registered(registry, DEMO, B)
        await routed(registry, DEMO, A, B)
        await asyncio.to_thread(sentinels.fail_over)
        with sentinels.master.client() as successor:
            for _ in range(300):
                await registered(registry, DEMO, C)
                assert {A.address, B.address} <= routes(registry, DEMO)
                if successor.sismember(keys.service_key(DEMO), "10.0.0.3:80"):
                    break
                await asyncio.sleep(0.1)
            assert successor.scard(keys.service_key(DEMO)) == 3
        await routed(registry, DEMO, A, B, C)
        await synced(registry)
        assert sentinels.password not in f"{registry.status()}"


async def test_a_master_that_dies_is_followed_to_its_successor(sentinels: Sentinels) -> None:
    await asyncio.to_thread(sentinels.wait_ready)
    async with running(sentinels.url, TIMES) as registry:
        await registered(registry, DEMO, A)
        await registered(registry, DEMO, B)
        await registry.deregister(DEMO, C.address)
        await routed(registry, DEMO, A, B)
        await synced(registry)
        dead = sentinels.master
        dead.kill()
        await in_state(registry, RegistryState.STALE)
        assert routes(registry, DEMO) == {A.address, B.address}
        await registered(registry, DEMO, C)
        await routed(registry, DEMO, A, B, C)
        await synced(registry)
        assert sentinels.master is not dead
        await asyncio.to_thread(dead.start)


async def test_a_sentinel_that_hangs_stands_before_nobody(sentinels: Sentinels) -> None:
    sentinels.freeze_sentinel(0)
    try:
        async with running(sentinels.url, TIMES) as registry:
            await synced(registry)
            await registered(registry, DEMO, A)
    finally:
        sentinels.thaw_sentinel(0)


async def test_a_cluster_is_one_registry(cluster: Cluster) -> None:
    owners = {cluster.owner(keys.service_key(key)).port for key in SERVICES}
    assert len(owners) == 3, "the services are on every node"
    async with running(cluster.url, TIMES) as writer, running(cluster.url, TIMES) as reader:
        async with asyncio.TaskGroup() as tasks:
            for key in SERVICES:
                tasks.create_task(writer.register(key, A))
                tasks.create_task(writer.register(key, B))
        for key in SERVICES:
            await routed(reader, key, A, B)
        await writer.deregister(SERVICES[0], A.address)
        await routed(reader, SERVICES[0], B)
        await synced(reader)


async def test_a_slot_moves_while_it_is_followed(cluster: Cluster) -> None:
    """Nothing looks lost amid the move; a change that Redis puts off (TRYAGAIN) comes after it."""
    key = ServiceKey("/service/moving")
    async with running(cluster.url, FAST_SWEEP) as registry:
        await registered(registry, key, A)
        await routed(registry, key, A)
        slot = cluster.slot(keys.service_key(key))
        source = cluster.owner(keys.service_key(key))
        target = next(s for s in cluster.servers if s is not source)
        seen: list[RegistryState] = []
        async with asyncio.TaskGroup() as tasks:
            await asyncio.to_thread(cluster.open_slot, slot, source, target)
            tasks.create_task(registered(registry, key, B))
            moving = tasks.create_task(
                asyncio.to_thread(cluster.move_keys, slot, source, target, each_s=0.4)
            )
            while not moving.done():
                await asyncio.sleep(0.01)
                seen.append(registry.status().state)
                assert A.address in routes(registry, key)
            assert moving.result() >= 3
            await asyncio.to_thread(cluster.close_slot, slot, target)
        await routed(registry, key, A, B)
        await registry.deregister(key, A.address)
        await routed(registry, key, B)
        assert set(seen) == {RegistryState.SYNCED}
        assert registry.status().detail == ""


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_routes_stay_while_a_node_of_the_cluster_is_away(
    cluster: Cluster, fault: str
) -> None:
    key = SERVICES[1]
    async with running(cluster.url, FAST_SWEEP) as registry:
        await registered(registry, key, A)
        await synced(registry)
        before = {k: routes(registry, k) for k in SERVICES}
        node = cluster.owner(keys.service_key(key))
        if fault == "killed":
            node.kill()
        else:
            node.freeze()
        try:
            await in_state(registry, RegistryState.STALE)
            assert {k: routes(registry, k) for k in SERVICES} == before
            with pytest.raises(RegistryError, match="may be repeated safely"):
                await registry.register(key, C)
        finally:
            if fault == "killed":
                await asyncio.to_thread(node.start)
            else:
                node.thaw()
        await asyncio.to_thread(cluster.wait_ok)
        await registered(registry, key, C)
        await eventually(lambda: C.address in routes(registry, key), "a change afterwards")
        await synced(registry)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as running_one:
        yield running_one


REFUSALS = {
    "too few replicas": (("min-replicas-to-write", "1"), ("min-replicas-to-write", "0")),
    "memory is full": (("maxmemory", "1"), ("maxmemory", "0")),
}


@pytest.mark.parametrize("why", [*REFUSALS, "a replica"])
async def test_a_redis_that_refuses_changes_is_degraded_and_says_why(
    server: RedisServer, why: str
) -> None:
    with server.client() as direct:
        async with running(server.url, FAST_SWEEP) as registry:
            await registry.register(DEMO, A)
            await routed(registry, DEMO, A)
            if why in REFUSALS:
                direct.config_set(*REFUSALS[why][0])
            else:
                direct.config_set("replica-serve-stale-data", "yes")
                direct.replicaof("127.0.0.1", 1)
            await in_state(registry, RegistryState.DEGRADED)
            assert "refuses changes" in registry.status().detail
            with pytest.raises(RegistryError, match=r"register 10\.0\.0\.2:80 for /service/demo"):
                await registry.register(DEMO, B)
            assert routes(registry, DEMO) == {A.address}
            if why in REFUSALS:
                direct.config_set(*REFUSALS[why][1])
            else:
                direct.replicaof("NO", "ONE")
            await synced(registry)
            await registry.register(DEMO, B)
            await routed(registry, DEMO, A, B)


@asynccontextmanager
async def slowed(port: int, delay_s: float) -> AsyncIterator[int]:
    """A port behind which every answer of a Redis comes late; everything arrives."""

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait_s: float
    ) -> None:
        try:
            while data := await reader.read(65536):
                await asyncio.sleep(wait_s)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, to = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, to, 0.0), pump(back, writer, delay_s))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_changes_of_a_slow_redis_arrive_late_but_arrive(server: RedisServer) -> None:
    async with (
        slowed(server.port, 0.3) as port,
        running(f"redis://127.0.0.1:{port}", TIMES) as registry,
    ):
        await synced(registry)
        await registry.register(DEMO, A)
        await routed(registry, DEMO, A)
        assert registry.status().state is RegistryState.SYNCED


async def test_a_redis_too_slow_to_be_followed_is_stale(server: RedisServer) -> None:
    async with running(server.url, TIMES) as quick:
        await quick.register(DEMO, A)
    async with (
        slowed(server.port, 1.3) as port,
        running(f"redis://127.0.0.1:{port}", TIMES) as registry,
    ):
        await eventually(lambda: "no answer" in registry.status().detail, "a reason")
        assert registry.status().state is RegistryState.STARTING


def _moactl(config: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [MOACTL, "-c", str(config), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("kind", ["sentinels", "cluster"])
def test_moactl_speaks_to_sentinels_and_clusters(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    group: Sentinels | Cluster = request.getfixturevalue(kind)
    config = tmp_path / "agent.toml"
    config.write_text(
        f'[agent]\nruntime_dir = "{tmp_path}"\n[registry]\nkind = "redis"\nurl = "{group.url}"\n'
    )
    config.chmod(0o600)
    done = _moactl(config, "service", "register", "/service/by-hand", "10.0.0.9:90")
    assert done.returncode == 0, done.stderr
    status = _moactl(config, "registry", "status", "-o", "json")
    assert "s3cret" not in done.stdout + done.stderr + status.stdout + status.stderr
    seen = json.loads(status.stdout)["registry"]
    assert seen["state"] == "SYNCED"
    assert seen["instances"] >= 1
