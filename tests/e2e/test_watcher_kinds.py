"""Three real watchers over a registry behind sentinels, and over a cluster: masters die, nodes
hang, slots move, and instances still go and come back exactly as they were.

What watchers do over one server is in test_watcher.py.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from proxy.core.model import ServiceKey
from proxy.registry import keys, scripts
from tests.support.agents import MOACTL
from tests.support.lab import REPO, Running, wait_until
from tests.support.redis import RedisServer
from tests.support.redis_kinds import Cluster, Sentinels

pytestmark = pytest.mark.e2e

SERVICES = [ServiceKey(f"/service/s{n}") for n in range(12)]
"""Enough to be on each node of a cluster."""
INSTANCES = 4
PARAMS = "weight=7&zone=z%20a&k=v"
WATCHERS = ("w1", "w2", "w3")
WITHIN_S = 40.0


@dataclass(slots=True)
class World:
    """Everything on loopback; `server_of` says where a key is now."""

    directory: Path
    url: str
    server_of: Callable[[str], RedisServer]
    stack: ExitStack
    watchers: dict[str, Running] = field(default_factory=dict)
    instances: list[Running] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    def start(self) -> None:
        for number in range(INSTANCES):
            process = self._start(
                f"instance{number}", str(REPO / "tests/samples/demo_service.py"),
                "--host", "127.0.0.1", "--port", "0", "--service", str(SERVICES[0]),
            )  # fmt: skip
            self.instances.append(process)
            self.addresses.append(process.wait_line("ready").split()[1])
        for key in SERVICES:
            self.command("SADD", keys.SERVICES, str(key), key=keys.SERVICES)
            for address in self.addresses:
                self.register(key, address)
        for name in WATCHERS:
            config = self.config(name)
            self.watchers[name] = self._start(name, "-I", "-m", "installer.watcher.main", config)

    def config(self, name: str) -> str:
        path = self.directory / f"{name}.toml"
        path.write_text(
            f'[node]\nname = "{name}"\n[agent]\nruntime_dir = "{self.directory}"\n'
            f'[registry]\nkind = "redis"\nurl = "{self.url}"\nsweep_s = 1\n'
            "[watcher]\ninterval_ms = 500\ntimeout_ms = 400\nlease_ms = 3000\n"
        )
        path.chmod(0o600)
        return str(path)

    def _start(self, name: str, *argv: str) -> Running:
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [sys.executable, *argv], cwd=REPO,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        process = Running(name, popen, log)
        self.stack.callback(process.kill)
        return process

    def command(self, *words: object, key: str) -> Any:
        """A command to the server that has this key; None while nobody says."""
        password = self.url.partition("s3cret")[1] or None
        client = redis.Redis(
            port=self.server_of(key).port, password=password, socket_timeout=2,
            decode_responses=True, protocol=2,
        )  # fmt: skip
        with closing(client):
            return client.execute_command(*words)  # type: ignore[no-untyped-call]

    def register(self, key: ServiceKey, address: str) -> None:
        names, member = keys.script_keys(key), f"{address}?{PARAMS}"
        self.command(
            "EVAL", scripts.CHANGE, len(names), *names, str(key), address, member, key=names[0]
        )

    def have(self, services: list[ServiceKey], *numbers: int) -> bool:
        """Whether these services have exactly these instances, each just as it registered."""
        wanted = {f"{self.addresses[n]}?{PARAMS}" for n in numbers}
        names = [keys.service_key(key) for key in services]
        with suppress(redis.RedisError):
            return all(set(self.command("SMEMBERS", n, key=n)) == wanted for n in names)
        return False

    def has_everywhere(self, *numbers: int) -> bool:
        return self.have(SERVICES, *numbers)

    def states(self) -> dict[str, str]:
        """What each watcher with a lease says of itself."""
        with suppress(redis.RedisError):
            seconds, _ = self.command("TIME", key=keys.WATCHERS)
            raw = self.command("HGETALL", keys.WATCHERS, key=keys.WATCHERS)
            return {
                name: json.loads(text)["state"]
                for name, (ends_ms, _, text) in ((n, v.partition(" ")) for n, v in raw.items())
                if int(ends_ms) >= int(seconds) * 1000
            }
        return {}

    def wait_for_watch(self) -> None:
        until(lambda: self.states() == dict.fromkeys(WATCHERS, "WATCHING"), "three that watch")

    def wait_line_anew(self, text: str) -> Callable[[], None]:
        """Wait for one more line with this text in the log of each watcher than there is now."""
        before = {name: w.output.count(text) for name, w in self.watchers.items()}

        def wait() -> None:
            for name, watcher in self.watchers.items():
                until(
                    lambda w=watcher, n=name: w.output.count(text) > before[n],  # type: ignore[misc]
                    f"{name}: {text}",
                )

        return wait

    def moactl(self, *argv: str) -> Any:
        done = subprocess.run(
            [MOACTL, "-c", self.config("operator"), *argv, "-o", "json"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "s3cret" not in done.stdout + done.stderr
        return json.loads(done.stdout)


def until(holds: Callable[[], Any], what: str) -> None:
    wait_until(holds, WITHIN_S, what)


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    with Sentinels(tmp_path_factory.mktemp("sentinels"), password="s3cret") as group:
        yield group


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as group:
        yield group


@pytest.fixture(scope="module")
def behind_sentinels(
    sentinels: Sentinels, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with ExitStack() as stack:
        directory = tmp_path_factory.mktemp("watchers")
        made = World(directory, sentinels.url, lambda _key: sentinels.master, stack)
        made.start()
        yield made


@pytest.fixture(scope="module")
def in_cluster(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        made = World(tmp_path_factory.mktemp("watchers"), cluster.url, cluster.owner, stack)
        made.start()
        yield made


@pytest.fixture
def world(request: pytest.FixtureRequest, kind: str) -> World:
    """Three watchers watch, and every instance answers and is registered."""
    made: World = request.getfixturevalue(kind)
    made.wait_for_watch()
    until(lambda: made.has_everywhere(*range(INSTANCES)), "all instances")
    return made


@pytest.mark.parametrize("kind", ["behind_sentinels", "in_cluster"])
def test_a_frozen_instance_goes_from_every_service_and_comes_back_as_it_was(
    world: World, kind: str
) -> None:
    world.instances[0].signal(signal.SIGSTOP)
    until(lambda: world.has_everywhere(1, 2, 3), "taken out of every service")
    status = world.moactl("watcher", "status")
    assert {e["address"] for e in status["offline"]} == {world.addresses[0]}
    assert {e["uri"] for e in status["offline"]} == {str(key) for key in SERVICES}
    assert {w["state"] for w in status["watchers"]} == {"WATCHING"}
    world.instances[0].signal(signal.SIGCONT)
    until(lambda: world.has_everywhere(0, 1, 2, 3), "put back everywhere")
    for key in SERVICES[:3]:
        log = world.moactl("watcher", "log", "--service", str(key), "-n", "100")["entries"]
        of_it = [line["what"] for line in log if line["address"] == world.addresses[0]]
        assert of_it[-2:] == ["taken-out", "put-back"]
        assert "2 votes of 3 watchers, 2 needed" in log[-1]["why"]


@pytest.mark.parametrize("kind", ["behind_sentinels", "in_cluster"])
def test_an_operators_words_are_heeded(world: World, kind: str) -> None:
    """Marks live beside each service's set, so on every node of a cluster."""
    held, others = SERVICES[:3], SERVICES[3:]
    for key in held:
        world.moactl("instance", "maint", str(key), world.addresses[1], "--why", "new disk")
    world.instances[1].signal(signal.SIGSTOP)
    world.instances[2].signal(signal.SIGSTOP)
    until(lambda: world.have(held, 0, 1, 3) and world.have(others, 0, 3), "one is held")
    for key in held:
        world.moactl("instance", "ready", str(key), world.addresses[1])
    until(lambda: world.has_everywhere(0, 3), "nobody holds it any more")
    for number in (1, 2):
        world.instances[number].signal(signal.SIGCONT)
    until(lambda: world.has_everywhere(0, 1, 2, 3), "both back")


@pytest.mark.parametrize("kind", ["behind_sentinels"])
def test_a_master_dies_and_what_was_out_comes_back_from_its_successor(
    world: World, kind: str, sentinels: Sentinels
) -> None:
    world.instances[3].signal(signal.SIGSTOP)
    until(lambda: world.has_everywhere(0, 1, 2), "taken out")
    dead = sentinels.master
    with dead.client() as client:
        assert client.wait(1, 10_000) == 1, "the replica has it all"
    is_blind = world.wait_line_anew("BLIND")
    dead.kill()
    is_blind()
    until(lambda: sentinels.master is not dead, "a successor")
    world.wait_for_watch()
    assert world.has_everywhere(0, 1, 2), "nobody else was lost on the way"
    world.instances[3].signal(signal.SIGCONT)
    until(lambda: world.has_everywhere(0, 1, 2, 3), "put back at the successor")
    world.instances[0].signal(signal.SIGSTOP)
    until(lambda: world.has_everywhere(1, 2, 3), "and the next one is taken out")
    world.instances[0].signal(signal.SIGCONT)
    until(lambda: world.has_everywhere(0, 1, 2, 3), "and put back")
    dead.start()
    sentinels.wait_ready()


@pytest.mark.parametrize("kind", ["in_cluster"])
def test_a_node_of_the_cluster_hangs_and_nothing_changes_until_it_is_back(
    world: World, kind: str, cluster: Cluster
) -> None:
    node = cluster.owner(keys.service_key(SERVICES[0]))
    is_blind = world.wait_line_anew("BLIND")
    node.freeze()
    try:
        is_blind()
        world.instances[2].signal(signal.SIGSTOP)
    finally:
        node.thaw()
    cluster.wait_ok()
    until(lambda: world.has_everywhere(0, 1, 3), "taken out when all of it answers")
    world.wait_for_watch()
    world.instances[2].signal(signal.SIGCONT)
    until(lambda: world.has_everywhere(0, 1, 2, 3), "put back")


@pytest.mark.parametrize("kind", ["in_cluster"])
def test_a_slot_moves_while_watchers_vote(world: World, kind: str, cluster: Cluster) -> None:
    name = keys.service_key(SERVICES[1])
    slot, source = cluster.slot(name), cluster.owner(name)
    target = next(server for server in cluster.servers if server is not source)
    world.instances[1].signal(signal.SIGSTOP)
    cluster.open_slot(slot, source, target)
    assert cluster.move_keys(slot, source, target, 0.3) >= 2
    cluster.close_slot(slot, target)
    assert cluster.owner(name) is target
    until(lambda: world.has_everywhere(0, 2, 3), "taken out, also where the slot has moved")
    world.instances[1].signal(signal.SIGCONT)
    until(lambda: world.has_everywhere(0, 1, 2, 3), "put back")
