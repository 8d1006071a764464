"""Three real watchers, real instances that die and freeze, and what becomes of the registry."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from installer.client import AgentClient
from proxy.core.model import Address, ServiceKey
from proxy.registry import keys, scripts
from tests.e2e.conftest import Measured
from tests.support.agents import Agent, start_agent, write_config
from tests.support.documented import assert_as_documented
from tests.support.lab import REPO, Lab, LabNode, Running, wait_until

pytestmark = pytest.mark.e2e

REDIS_PORT = 6379
DEMO, LONELY, BATCH = (ServiceKey(f"/service/{name}") for name in ("demo", "lonely", "batch"))
PORTS = {DEMO: (5001, 5002, 5003, 5004), LONELY: (5005,), BATCH: (5006,)}
PARAMS = "weight=7&zone=z%20a&k=v"

INTERVAL_MS, FALL, LEASE_MS = 500, 3, 3000
WATCHER = f"""
[watcher]
interval_ms = {INTERVAL_MS}
timeout_ms = 400
fall = {FALL}
lease_ms = {LEASE_MS}
may_empty = ["/service/batch"]
"""


@dataclass(slots=True)
class World:
    """Redis on `r`, watchers on `w1` to `w3`, instances on `s`, an agent on `a`."""

    lab: Lab
    r: LabNode
    s: LabNode
    watchers: dict[str, LabNode]
    redis: Running = field(init=False)
    agent: Agent = field(init=False)
    running: dict[str, Running] = field(default_factory=dict)
    services: dict[int, Running] = field(default_factory=dict)

    @property
    def registry(self) -> str:
        return f'kind = "redis"\nurl = "redis://{self.r.ip4}:{REDIS_PORT}/0"'

    @property
    def socket(self) -> str:
        return str(self.r.directory / "redis.sock")

    def start_redis(self) -> None:
        data = self.r.directory / "redis"
        data.mkdir(exist_ok=True)
        self.redis = self.r.start(
            "redis", "redis-server", "--bind", self.r.ip4, "--port", str(REDIS_PORT),
            "--dir", str(data), "--appendonly", "yes", "--appendfsync", "always", "--save", "",
            "--protected-mode", "no", "--unixsocket", self.socket,
        )  # fmt: skip
        self.redis.wait_line("Ready to accept connections")

    def start_watcher(self, name: str) -> None:
        node = self.watchers[name]
        config = write_config(node, self.registry, WATCHER)
        self.running[name] = node.start(
            "moa-watcher", sys.executable, "-I", "-m", "installer.watcher.main", str(config)
        )

    def serve(self, key: ServiceKey, port: int) -> None:
        self.services[port] = self.s.python(
            f"service-{port}", str(REPO / "tests/samples/demo_service.py"),
            "--host", self.s.ip4, "--port", str(port), "--service", str(key),
        )  # fmt: skip

    def command(self, *words: object) -> Any:
        """A command of Redis, over its Unix socket: that is on no node."""
        client = redis.Redis(
            unix_socket_path=self.socket, socket_timeout=5, decode_responses=True, protocol=2
        )
        with closing(client):
            return client.execute_command(*words)  # type: ignore[no-untyped-call]

    def register(self, key: ServiceKey, port: int) -> None:
        self.command("SADD", keys.SERVICES, str(key))
        names = keys.script_keys(key)
        address = self.address(port)
        member = f"{address}?{PARAMS}"
        self.command("EVAL", scripts.CHANGE, len(names), *names, str(key), address, member)

    def address(self, port: int) -> str:
        return str(Address(self.s.ip4, port))

    def members(self, key: ServiceKey) -> set[str]:
        return set(self.command("SMEMBERS", keys.service_key(key)))

    def registered(self, key: ServiceKey) -> set[int]:
        """Ports of the instances that are in the set, each exactly as it was registered."""
        members = self.members(key)
        assert all(member.endswith(f"?{PARAMS}") for member in members), members
        return {int(member.partition("?")[0].rpartition(":")[2]) for member in members}

    def offline(self, key: ServiceKey, port: int) -> dict[str, Any]:
        entry = self.command("HGET", keys.offline_key(key), self.address(port))
        found: dict[str, Any] = json.loads(entry) if entry else {}
        return found

    def moactl(self, *argv: str) -> Any:
        return self.agent.moactl(*argv)

    def log(self, what: str, port: int = 0) -> list[dict[str, Any]]:
        """The lines of the audit trail with this word, and about this instance."""
        entries = [fields for _, fields in self.command("XRANGE", keys.WATCH_LOG, "-", "+")]
        wanted = self.address(port) if port else ""
        return [e for e in entries if e["what"] == what and wanted in ("", e.get("address"))]

    def states(self) -> dict[str, str]:
        """What each watcher that holds a lease says."""
        return {name: facts["state"] for name, facts in self.facts().items()}

    def facts(self) -> dict[str, dict[str, Any]]:
        seconds, _ = self.command("TIME")
        live = {}
        for name, value in self.command("HGETALL", keys.WATCHERS).items():
            ends_ms, _, text = value.partition(" ")
            if int(ends_ms) >= int(seconds) * 1000:
                live[name] = json.loads(text)
        return live

    def known(self, key: ServiceKey) -> dict[int, list[str]]:
        """What the agent routes to: ports with their marks."""
        services = AgentClient.of(self.agent.node.directory / "run").services()["services"]
        instances = [i for s in services if s["uri"] == key.uri for i in s["instances"]]
        return {int(i["address"].rpartition(":")[2]): i["marks"] for i in instances}

    def seen_by_agent(self, key: ServiceKey) -> set[int]:
        return set(self.known(key))

    def cut_off(self, name: str, *, cut: bool) -> None:
        """Drop everything between a watcher and the instances; Redis stays reachable."""
        rules = (
            f"table ip cut {{ chain out {{ type filter hook output priority 0; "
            f"ip daddr {self.s.ip4} drop; }}; }}"
            if cut
            else "delete table ip cut"
        )
        done = self.watchers[name].call("nft", rules)
        assert done.returncode == 0, done.stderr


def until(holds: Callable[[], Any], what: str) -> float:
    start_s = time.monotonic()
    wait_until(holds, 20, what)
    return time.monotonic() - start_s


@pytest.fixture(scope="module")
def module_world(lab: Lab) -> World:
    made = World(
        lab,
        lab.add_node("r"),
        lab.add_node("s"),
        {name: lab.add_node(name) for name in ("w1", "w2", "w3")},
    )
    made.start_redis()
    for key, ports in PORTS.items():
        for port in ports:
            made.serve(key, port)
            made.register(key, port)
    for service in made.services.values():
        service.wait_line("ready")
    for name in made.watchers:
        made.start_watcher(name)
    made.agent = start_agent(lab.add_node("a"), made.registry)
    return made


@pytest.fixture
def world(module_world: World) -> World:
    """Three watchers watch, and every instance is registered and answers."""
    healed(module_world)
    return module_world


def healed(world: World) -> None:
    until(lambda: world.states() == dict.fromkeys(world.watchers, "WATCHING"), "three that watch")
    for key, ports in PORTS.items():
        until(lambda key=key, ports=ports: world.registered(key) == set(ports), f"{key} whole")  # type: ignore[misc]


def test_a_frozen_instance_goes_and_comes_back_exactly_as_it_was(
    world: World, measured: Measured
) -> None:
    before = world.members(DEMO)
    world.services[5001].signal(signal.SIGSTOP)
    out_s = until(lambda: world.registered(DEMO) == {5002, 5003, 5004}, "5001 taken out")
    until(lambda: world.seen_by_agent(DEMO) == {5002, 5003, 5004}, "the agent knows")
    entry = world.offline(DEMO, 5001)
    assert entry["member"] in before
    status = world.moactl("watcher", "status")
    assert [e["address"] for e in status["offline"]] == [world.address(5001)]
    assert {w["state"] for w in status["watchers"]} == {"WATCHING"}
    assert_as_documented("watcher status", status)
    log = world.moactl("watcher", "log", "--service", "/service/demo", "-n", "5")
    assert_as_documented("watcher log", log)
    (line,) = log["entries"]
    assert line["what"] == "taken-out"
    assert line["who"] in world.watchers
    assert "no answer in time; 2 votes of 3 watchers, 2 needed" in line["why"]
    world.services[5001].signal(signal.SIGCONT)
    back_s = until(lambda: world.members(DEMO) == before, "5001 put back")
    until(lambda: world.seen_by_agent(DEMO) == set(PORTS[DEMO]), "the agent knows")
    assert len(world.log("put-back", 5001)) == 1
    measured("watcher: frozen instance", taken_out_s=out_s, put_back_s=back_s)


def test_what_registers_itself_while_it_is_out_has_to_fail_anew(world: World) -> None:
    world.services[5002].kill()
    until(lambda: world.offline(DEMO, 5002), "5002 taken out")
    world.register(DEMO, 5002)
    assert world.offline(DEMO, 5002) == {}
    assert 5002 in world.registered(DEMO)
    until(lambda: world.offline(DEMO, 5002), "5002 taken out again")
    entry = world.offline(DEMO, 5002)
    stayed_ms = int(entry["at_ms"]) - int(entry["heartbeat_ms"])
    assert stayed_ms >= (FALL - 1) * INTERVAL_MS
    world.serve(DEMO, 5002)
    healed(world)


def test_the_last_instance_stays_unless_it_may_go(world: World) -> None:
    world.services[5005].kill()
    world.services[5006].kill()
    until(lambda: world.registered(BATCH) == set(), "the batch service is empty")
    until(lambda: world.seen_by_agent(BATCH) == set(), "and so says the agent")
    until(lambda: world.log("kept-last", 5005), "the lonely one is kept, and said so")
    assert world.registered(LONELY) == {5005}
    world.serve(LONELY, 5005)
    world.serve(BATCH, 5006)
    healed(world)
    until(lambda: world.seen_by_agent(BATCH) == {5006}, "the agent has it back")


def test_an_instance_in_maintenance_is_left_alone(world: World) -> None:
    instance = ("/service/demo", world.address(5003))
    assert_as_documented("instance drain", world.moactl("instance", "drain", *instance))
    until(lambda: world.known(DEMO)[5003] == ["drain"], "the agent knows that it drains")
    done = world.moactl("instance", "maint", *instance, "--why", "new disk")
    assert done["changed"]
    assert_as_documented("instance maint", done)
    until(lambda: world.known(DEMO)[5003] == ["maint"], "the agent knows the mark")
    world.services[5003].kill()
    world.services[5004].signal(signal.SIGSTOP)
    until(lambda: world.offline(DEMO, 5004), "another one is taken out meanwhile")
    assert world.registered(DEMO) == {5001, 5002, 5003}
    assert_as_documented("instance ready", world.moactl("instance", "ready", *instance))
    until(lambda: world.offline(DEMO, 5003), "taken out when it is nobody's")
    (line,) = world.log("maint", 5003)
    assert line["why"] == "new disk"
    assert "@" in line["who"]
    assert len(world.log("ready", 5003)) == 1
    world.services[5004].signal(signal.SIGCONT)
    world.serve(DEMO, 5003)
    healed(world)


def test_a_watcher_that_is_cut_off_doubts_itself_and_the_others_go_on(world: World) -> None:
    taken_out = len(world.log("taken-out"))
    world.cut_off("w1", cut=True)
    until(lambda: world.states()["w1"] == "DOUBT", "w1 doubts itself")
    world.services[5001].signal(signal.SIGSTOP)
    until(lambda: world.registered(DEMO) == {5002, 5003, 5004}, "taken out by the others")
    lines = world.log("taken-out")[taken_out:]
    assert [line["address"] for line in lines] == [world.address(5001)]
    assert lines[0]["who"] in ("w2", "w3")
    world.cut_off("w1", cut=False)
    world.services[5001].signal(signal.SIGCONT)
    healed(world)
    assert [line["who"] for line in world.log("doubt")] == ["w1"]
    assert [line["who"] for line in world.log("trust")] == ["w1"]


def test_while_redis_is_away_nothing_changes_and_then_it_goes_on(world: World) -> None:
    world.redis.kill()
    for name in world.watchers:
        world.running[name].wait_line("BLIND")
    world.services[5004].signal(signal.SIGSTOP)
    world.start_redis()
    assert world.registered(DEMO) == set(PORTS[DEMO])
    until(lambda: world.registered(DEMO) == {5001, 5002, 5003}, "taken out once all are back")
    world.services[5004].signal(signal.SIGCONT)
    healed(world)


def test_one_watcher_alone_acts_and_cut_off_it_does_not(world: World) -> None:
    for name in ("w2", "w3"):
        assert world.running[name].stop() == 0
    assert set(world.states()) == {"w1"}
    world.services[5001].signal(signal.SIGSTOP)
    until(lambda: world.registered(DEMO) == {5002, 5003, 5004}, "taken out by one")
    assert "1 votes of 1 watchers, 1 needed" in world.log("taken-out", 5001)[-1]["why"]
    world.services[5001].signal(signal.SIGCONT)
    until(lambda: world.registered(DEMO) == set(PORTS[DEMO]), "put back by one")
    taken_out = len(world.log("taken-out"))
    world.cut_off("w1", cut=True)
    until(lambda: world.states()["w1"] == "DOUBT", "w1 doubts itself")
    until(lambda: world.facts()["w1"]["failing"] == 6, "nothing answers it any more")
    assert world.registered(DEMO) == set(PORTS[DEMO])
    assert len(world.log("taken-out")) == taken_out
    world.cut_off("w1", cut=False)
    until(lambda: world.states()["w1"] == "WATCHING", "w1 trusts itself")
