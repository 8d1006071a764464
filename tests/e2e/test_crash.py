"""kill -9 of an agent under load: no client loses its connection, and each request is answered
once, by its own answer or by one clean error."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.e2e.conftest import Measured
from tests.support.agents import Agent, static_registry
from tests.support.crashes import kill, start_supervised, succeed
from tests.support.lab import Lab, LabNode, Running, wait_until

pytestmark = pytest.mark.e2e

PORT, RAW, URI = 5000, 6000, "/service/crash"
FAILOVER = '[failover]\nidempotent = ["get*"]\n[inbound]\nregistered = false\n'


@dataclass(slots=True)
class World:
    """Callers and an agent on `a`, the service on `b`."""

    a: LabNode
    b: LabNode
    agent: Agent
    agents: list[Agent] = field(default_factory=list)

    @property
    def executed(self) -> Counter[str]:
        return Counter((self.b.directory / "executed").read_text().splitlines())

    def load(self, *kinds: str) -> Running:
        target = (self.b.ip4, str(PORT), str(RAW), URI)
        process = self.a.python("load", "-m", "tests.e2e.clients.crash_load", *target, *kinds)
        process.wait_line("started")
        return process

    def wait_executions(self, count: int) -> None:
        """Until so many more requests were executed."""
        target = sum(self.executed.values()) + count
        wait_until(lambda: sum(self.executed.values()) >= target, 30, f"{count} executions")

    def crash(self) -> dict[str, Any]:
        """Kill the agent and start the next; what that one says of the adoption."""
        kill(self.agent)
        self.agent = succeed(self.agent)
        said: dict[str, Any] = json.loads(self.agent.process.wait_line('"adopted"'))
        return said


@pytest.fixture(scope="module")
def world(lab: Lab) -> Iterator[World]:
    a, b = lab.add_node("a"), lab.add_node("b")
    service = b.python(
        "service", "-m", "tests.e2e.clients.crash_service", b.ip4, str(PORT), str(RAW),
        str(b.directory / "executed"),
    )  # fmt: skip
    service.wait_line("ready")
    registry = static_registry(lab.directory / "services.toml", {URI: [f"{b.ip4}:{PORT}"]})
    agent = start_supervised(a, registry, FAILOVER)
    agent.mesh_on()
    made = World(a, b, agent)
    yield made
    assert made.agent.process.stop() == 0


def report_of(load: Running) -> dict[str, Any]:
    load.stop(60)
    report: dict[str, Any] = json.loads(load.output.splitlines()[-1])
    return report


def check(world: World, report: dict[str, Any]) -> int:
    """One answer to each request, and no connection lost; how many failed."""
    assert not report["lost"], report["lost"]
    failed = [line for lines in report["failed"].values() for line in lines]
    executed = world.executed
    for kind, sent in report["sent"].items():
        assert sum(report["answers"][kind].values()) == sent, kind
    for line in failed:
        wanted, _, why = line.partition(": ")
        assert why.startswith("303 "), line
        assert "may have been executed" in why, line
        assert executed[wanted] <= 1, line
    twice = {line for line, count in executed.items() if count > 1}
    assert all(line.startswith("get ") and executed[line] == 2 for line in twice), twice
    return len(failed)


def test_kill_under_load_of_every_kind(world: World, measured: Measured) -> None:
    kinds = {"resp": 8, "piped": 4, "halves": 8, "slow": 8, "turbo": 4, "turbo9": 2, "raw": 4,
             "large": 2, "bulky": 2, "idle": 50}  # fmt: skip
    load = world.load(*(f"{kind}={count}" for kind, count in kinds.items()))
    world.wait_executions(200)
    said = world.crash()
    world.wait_executions(200)
    report = report_of(load)
    measured(
        "kill -9 under load", connections=sum(kinds.values()), adopted=said["connections"],
        reset=said["reset"], sent=sum(report["sent"].values()),
        failed={kind: len(lines) for kind, lines in report["failed"].items()},
    )  # fmt: skip
    failed = check(world, report)
    assert said["reset"] == 0, said
    assert failed
