"""kill -9 of one of two agents, after and during an upgrade: the other has every connection."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Measured
from tests.e2e.test_crash import FAILOVER, PORT, RAW, URI, kinds, report_of
from tests.support.agents import static_registry
from tests.support.lab import Lab, LabNode, Running
from tests.support.upgrades import Generation, Upgrades

pytestmark = pytest.mark.e2e


@dataclass(slots=True)
class World:
    """Callers and agents on `a`, the service on `b`."""

    a: LabNode
    b: LabNode
    upgrades: Upgrades

    def load(self, *wanted: str) -> Running:
        target = (self.b.ip4, str(PORT), str(RAW), URI)
        process = self.a.python("load", "-m", "tests.e2e.clients.crash_load", *target, *wanted)
        process.wait_line("started")
        return process


@pytest.fixture
def world(lab: Lab) -> Iterator[World]:
    number = len(lab.nodes)
    a, b = lab.add_node(f"a{number}"), lab.add_node(f"b{number}")
    service = b.python(
        "service", "-m", "tests.e2e.clients.crash_service", b.ip4, str(PORT), str(RAW),
        str(b.directory / "executed"),
    )  # fmt: skip
    service.wait_line("ready")
    registry = static_registry(a.directory / "services.toml", {URI: [f"{b.ip4}:{PORT}"]})
    upgrades = Upgrades.begin(a, registry, FAILOVER)
    upgrades.agent.mesh_on()
    yield World(a, b, upgrades)
    assert upgrades.serving.process.stop() == 0


def keeper_path(dead: Generation) -> Path:
    return dead.node.directory / "run" / f"keeper-{dead.pid}.sock"


def adopt(living: Generation, dead: Generation) -> dict[str, Any]:
    """Let one agent go on with what the other has left; what it says of it."""
    living.link.do("adopt", path=str(keeper_path(dead)))
    living.link.wait("taken")
    line = living.process.wait_line('"adopted"')
    said: dict[str, Any] = json.loads(line)
    assert dead.process.popen.poll() is not None
    return said


def check(report: dict[str, Any]) -> int:
    assert not report["lost"], report["lost"]
    for kind, sent in report["sent"].items():
        assert sum(report["answers"][kind].values()) == sent, kind
    failed = [line for lines in report["failed"].values() for line in lines]
    assert all("may have been executed" in line for line in failed), failed
    return len(failed)


def test_a_successor_that_dies_after_the_upgrade(world: World, measured: Measured) -> None:
    """The retired one serves again, with every connection that it had given away."""
    load = world.load(*kinds(idle=20))
    retired = world.upgrades.upgrade()
    successor = world.upgrades.serving
    successor.process.kill()
    said = adopt(retired, successor)
    world.upgrades.serving = retired
    report = report_of(load)
    failed = check(report)
    measured("successor killed", adopted=said["connections"], reset=said["reset"], failed=failed)
    assert said["reset"] == 0, said
    assert said["connections"] >= 62


def test_a_giver_that_dies_halfway(world: World, measured: Measured) -> None:
    """What had not moved yet comes from its keeper, and what had is not taken twice."""
    load = world.load(*kinds(idle=20, slow=40))
    giver, successor = world.upgrades.serving, world.upgrades.prepare()
    giver.link.do("give")
    successor.link.wait("serving")
    giver.process.kill()
    world.upgrades.serving = successor
    said = adopt(successor, giver)
    report = report_of(load)
    failed = check(report)
    measured("giver killed", adopted=said["connections"], reset=said["reset"], failed=failed)
    assert said["reset"] == 0, said
