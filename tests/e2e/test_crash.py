"""kill -9 of an agent under load: no client loses its connection, and each request is answered
once, by its own answer or by one clean error."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.clients.raw import call, request
from tests.e2e.conftest import Measured
from tests.support.agents import Agent, static_registry
from tests.support.crashes import kill, start_frail, start_supervised, succeed
from tests.support.lab import Lab, LabNode, Running, wait_until

pytestmark = pytest.mark.e2e

PORT, RAW, URI = 5000, 6000, "/service/crash"
FAILOVER = '[failover]\nidempotent = ["get*"]\n[inbound]\nregistered = false\n'


@dataclass(slots=True)
class World:
    """Callers and an agent on `a`, the service and its agent on `b`, callers alone on `c`."""

    a: LabNode
    b: LabNode
    c: LabNode
    agents: dict[str, Agent]

    @property
    def executed(self) -> Counter[str]:
        return Counter((self.b.directory / "executed").read_text().splitlines())

    def load(self, where: LabNode, *kinds: str) -> Running:
        target = (self.b.ip4, str(PORT), str(RAW), URI)
        (self.b.directory / "executed").write_text("")
        process = where.python("load", "-m", "tests.e2e.clients.crash_load", *target, *kinds)
        process.wait_line("started")
        return process

    def wait_executions(self, count: int) -> None:
        """Until so many more requests were executed."""
        target = sum(self.executed.values()) + count
        wait_until(lambda: sum(self.executed.values()) >= target, 30, f"{count} executions")

    def crash(self, name: str) -> dict[str, Any]:
        """Kill an agent and start the next; what that one says of the adoption."""
        kill(self.agents[name])
        self.agents[name] = agent = succeed(self.agents[name])
        said: dict[str, Any] = json.loads(agent.process.wait_line('"adopted"'))
        return said


@pytest.fixture(scope="module")
def world(lab: Lab) -> Iterator[World]:
    a, b, c = lab.add_node("a"), lab.add_node("b"), lab.add_node("c")
    service = b.python(
        "service", "-m", "tests.e2e.clients.crash_service", b.ip4, str(PORT), str(RAW),
        str(b.directory / "executed"),
    )  # fmt: skip
    service.wait_line("ready")
    members = [f"{b.ip4}:{PORT}?proto=resp&proto=mesh"]
    registry = static_registry(lab.directory / "services.toml", {URI: members})
    agents = {
        "a": start_supervised(a, registry, FAILOVER),
        "b": start_supervised(b, registry, f"{FAILOVER}ports = [{PORT}, {RAW}]\n"),
    }
    for agent in agents.values():
        agent.mesh_on()
    made = World(a, b, c, agents)
    body = request("put", 0, 0, 0, uri=URI)
    wait_until(lambda: a.do(lambda: call(b.ip4, PORT, body))["ec"] == 200, 20, "a request goes")
    yield made
    for agent in made.agents.values():
        assert agent.process.stop() == 0


def report_of(load: Running) -> dict[str, Any]:
    load.stop(90)
    report: dict[str, Any] = json.loads(load.output.splitlines()[-1])
    return report


def check(world: World, report: dict[str, Any], crashes: int = 1) -> dict[str, int]:
    """One answer to each request, and no connection lost; how many failed, by kind."""
    executed = world.executed
    assert not report["lost"], report["lost"]
    for kind, sent in report["sent"].items():
        assert sum(report["answers"][kind].values()) == sent, kind
    for lines in report["failed"].values():
        for line in lines:
            wanted, _, why = line.partition(": ")
            assert why.startswith("303 "), line
            # Or it was never sent, as the service's agent was not there yet.
            assert executed[wanted] <= ("may have been executed" in why), line
    again = {line: count for line, count in executed.items() if count > 1}
    assert all(line.startswith("get ") for line in again), again
    assert max(again.values(), default=1) <= 1 + crashes, again
    return {kind: len(lines) for kind, lines in report["failed"].items()}


def check_none_idempotent(report: dict[str, Any]) -> None:
    """The next agent has sent those again, whatever the protocol."""
    failed = [line for lines in report["failed"].values() for line in lines]
    assert not [line for line in failed if line.startswith("get ")], failed


KINDS = {"resp": 8, "piped": 4, "halves": 8, "slow": 8, "turbo": 4, "turbo9": 2, "raw": 4,
         "large": 2, "bulky": 2, "idle": 50}  # fmt: skip


def kinds(**changes: int) -> list[str]:
    return [f"{kind}={count}" for kind, count in (KINDS | changes).items() if count]


def test_the_callers_agent_is_killed(world: World, measured: Measured) -> None:
    load = world.load(world.a, *kinds())
    world.wait_executions(200)
    said = world.crash("a")
    world.wait_executions(200)
    report = report_of(load)
    failed = check(world, report)
    check_none_idempotent(report)
    measured(
        "callers' agent killed", connections=sum(KINDS.values()), adopted=said["connections"],
        reset=said["reset"], sent=sum(report["sent"].values()), failed=failed,
    )  # fmt: skip
    assert said["connections"] >= sum(KINDS.values())
    assert said["reset"] == 0, said
    assert failed


def test_one_agent_after_the_other_is_killed(world: World, measured: Measured) -> None:
    """What has been adopted can be adopted again."""
    load = world.load(world.a, *kinds())
    reset = 0
    for _ in range(4):
        world.wait_executions(100)
        reset += world.crash("a")["reset"]
    world.wait_executions(100)
    report = report_of(load)
    failed = check(world, report, crashes=4)
    check_none_idempotent(report)
    measured("four in a row", sent=sum(report["sent"].values()), reset=reset, failed=failed)
    assert reset == 0


def test_the_services_agent_is_killed(world: World, measured: Measured) -> None:
    """Between two agents the mesh connection ends, and each request that was on it is told."""
    load = world.load(world.a, *kinds(large=0, bulky=0))
    world.wait_executions(200)
    said = world.crash("b")
    world.wait_executions(200)
    report = report_of(load)
    failed = check(world, report)
    measured(
        "service's agent killed", adopted=said["connections"], reset=said["reset"],
        reasons=said["reasons"], sent=sum(report["sent"].values()), failed=failed,
    )  # fmt: skip


def test_callers_without_an_agent(world: World, measured: Measured) -> None:
    """Their connections are the service's agent's, and so is each one that it has opened."""
    load = world.load(world.c, *kinds(turbo=0, turbo9=0))
    world.wait_executions(200)
    said = world.crash("b")
    world.wait_executions(200)
    report = report_of(load)
    failed = check(world, report)
    check_none_idempotent(report)
    measured(
        "inbound, from a node without an agent", adopted=said["connections"], reset=said["reset"],
        reasons=said["reasons"], sent=sum(report["sent"].values()), failed=failed,
    )  # fmt: skip
    assert said["reset"] == 0, said


def test_many_idle_connections(world: World, measured: Measured) -> None:
    load = world.load(world.a, "idle=500")
    begun_s = time.monotonic()
    said = world.crash("a")
    measured("idle connections", adopted=said["connections"], s=time.monotonic() - begun_s)
    report = report_of(load)
    assert check(world, report) == {}
    assert said["connections"] >= 500
    assert said["reset"] == 0


def test_an_agent_that_fails_by_itself(world: World) -> None:
    """An error that ends the agent is no worse for its clients than a kill."""
    config, trigger = world.agents["a"].config, world.a.directory / "fail"
    assert world.agents["a"].process.stop() == 0
    world.agents["a"] = frail = start_frail(world.a, config, trigger)
    load = world.load(world.a, *kinds(large=0, bulky=0))
    trigger.touch()
    assert frail.process.popen.wait(10) == 1
    assert "this agent is frail" in frail.process.output
    world.agents["a"] = agent = succeed(frail)
    said = json.loads(agent.process.wait_line('"adopted"'))
    check(world, report_of(load))
    assert said["reset"] == 0, said
