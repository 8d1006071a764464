"""The registry in a TOML file: what it reads, what it refuses, and how it follows changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.registry.base import ReadOnlyRegistry, Registry, RegistryError, RegistryState
from proxy.registry.static import StaticRegistry, load
from tests.support.waiting import eventually

ONE = """
[[service]]
uri = "/service/demo"
instances = ["10.0.0.1:5000?weight=50", "[::1]:5000"]
[[service]]
uri = "/service/demo"
group = "g"
instances = ["10.0.0.3:5000"]
"""
TWO = '[[service]]\nuri = "/service/demo"\ninstances = ["10.0.0.2:5000"]\n'
DEMO = ServiceKey("/service/demo")


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[StaticRegistry]:
    registry = StaticRegistry(path, poll_interval_s=0.02)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(registry.run())
        await eventually(
            lambda: registry.status().state is not RegistryState.STARTING, "the first read"
        )
        yield registry
        task.cancel()


def hosts(registry: Registry) -> set[str]:
    return {address.host for address in registry.table.addresses}


def test_a_file_gives_services_groups_and_parameters(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    path.write_text(ONE)
    services = load(path)
    assert services[DEMO] == (
        Instance(Address("10.0.0.1", 5000), weight=50),
        Instance(Address("::1", 5000)),
    )
    assert services[ServiceKey("/service/demo", "g")] == (Instance(Address("10.0.0.3", 5000)),)


def test_members_of_a_file_may_be_marked(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    path.write_text(
        '[[service]]\nuri = "/service/demo"\n'
        'instances = ["10.0.0.1:80?mark=drain&k=v&mark=mesh", "10.0.0.2:80"]\n'
    )
    first, second = load(path)[DEMO]
    assert first.marks == frozenset({"drain", "mesh"})
    assert first.protocols == ("resp", "mesh")
    assert first.extra == (("k", "v"),)
    assert second.marks == frozenset()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[[service]]\nuri = "/a"\ninstances = ["10.0.0.1:80?mark=Drain"]', "expected a mark"),
        ("[[service]", "Expected"),
        ("[service]\nuri='/a'", "expected [[service]]"),
        ("services = []", "unknown key 'services'"),
        ("[[service]]\nuri='/a'\ninstance=[]", "unknown key 'instance'"),
        ("[[service]]\ninstances=[]", "expected uri"),
        ("[[service]]\nuri=3\ninstances=[]", "expected uri"),
        ("[[service]]\nuri='/a'", "expected instances"),
        ("[[service]]\nuri='/a'\ninstances=[1]", "expected instances"),
        ("[[service]]\nuri='/a'\ninstances=['db:80']", "is a name"),
        ("[[service]]\nuri='/a b'\ninstances=[]", "white space"),
        ("[[service]]\nuri='/a'\ninstances=['10.0.0.1:1','10.0.0.1:1?weight=1']", "there twice"),
        ("[[service]]\nuri='/a'\ninstances=[]\n" * 2, "there twice"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_reason(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "registry.toml"
    path.write_text(text)
    with pytest.raises(RegistryError) as caught:
        load(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_text_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    with pytest.raises(RegistryError, match="No such file"):
        load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(RegistryError, match="utf-8"):
        load(path)


async def test_a_change_of_the_file_becomes_a_new_table(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    path.write_text(ONE)
    tables: list[ServiceTable] = []
    async with running(path) as registry:
        unsubscribe = registry.subscribe(tables.append)
        assert registry.status().services == 1
        assert registry.status().instances == 3
        path.write_text(TWO)
        await eventually(lambda: hosts(registry) == {"10.0.0.2"}, "the new file")
        assert tables == [registry.table]
        unsubscribe()
        (tmp_path / "next").write_text(ONE)
        (tmp_path / "next").rename(path)
        await eventually(lambda: len(hosts(registry)) == 3, "the renamed file")
        assert len(tables) == 1


@pytest.mark.parametrize("bad", ["[[service]", "", "# all gone\n", None])
async def test_a_bad_empty_or_missing_file_keeps_the_last_good_table(
    tmp_path: Path, bad: str | None
) -> None:
    path = tmp_path / "registry.toml"
    path.write_text(ONE)
    async with running(path) as registry:
        path.unlink() if bad is None else path.write_text(bad)
        await eventually(lambda: registry.status().state is RegistryState.DEGRADED, "DEGRADED")
        assert len(hosts(registry)) == 3
        assert registry.status().detail.startswith(f"last good table kept: {path}")
        path.write_text(TWO)
        await eventually(lambda: registry.status().state is RegistryState.SYNCED, "SYNCED")
        assert hosts(registry) == {"10.0.0.2"}


async def test_a_service_is_emptied_on_purpose(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    path.write_text(ONE)
    async with running(path) as registry:
        path.write_text('[[service]]\nuri = "/service/demo"\ninstances = []\n')
        await eventually(lambda: not hosts(registry), "the empty service")
        assert registry.status().state is RegistryState.SYNCED


async def test_a_file_that_comes_later_is_found(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    async with running(path) as registry:
        assert registry.status().state is RegistryState.DEGRADED
        assert registry.status().detail.startswith("no services yet: ")
        path.write_text(TWO)
        await eventually(lambda: hosts(registry) == {"10.0.0.2"}, "the file")


async def test_a_failing_subscriber_does_not_stop_the_others(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    path.write_text(ONE)
    tables: list[ServiceTable] = []

    def fail(_: ServiceTable) -> None:
        raise RuntimeError("subscriber")

    async with running(path) as registry:
        registry.subscribe(fail)
        registry.subscribe(tables.append)
        path.write_text(TWO)
        await eventually(lambda: len(tables) == 1, "the second subscriber")


async def test_changes_are_refused_with_what_to_do(tmp_path: Path) -> None:
    registry = StaticRegistry(tmp_path / "registry.toml")
    instance = Instance(Address("10.0.0.1", 80))
    with pytest.raises(ReadOnlyRegistry, match=r"registry\.toml is a file"):
        await registry.register(DEMO, instance)
    with pytest.raises(ReadOnlyRegistry, match=r"registry\.toml is a file"):
        await registry.deregister(DEMO, instance.address)
    await registry.heartbeat(DEMO, instance)


async def test_a_large_file_is_read_in_many_turns_of_the_loop(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    members = ", ".join(f'"10.0.{n // 250}.{n % 250}:80"' for n in range(20_000))
    path.write_text(f'[[service]]\nuri = "/service/demo"\ninstances = [{members}]\n')
    registry, turns = StaticRegistry(path), 0
    task = asyncio.create_task(registry.run())
    while registry.status().state is RegistryState.STARTING:
        turns += 1
        await asyncio.sleep(0)
    task.cancel()
    assert registry.status().state is RegistryState.SYNCED
    assert len(registry.table.addresses) == 20_000
    assert turns > 400


async def test_a_large_file_that_is_no_toml_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    path.write_text(ONE * 200 + "\n[[service]")
    async with running(path) as registry:
        assert registry.status().state is RegistryState.DEGRADED
        assert "Expected ']]'" in registry.status().detail
