"""What a service really executes while instances die, freeze, fail and slow down.

Every service writes down each execution; callers never repeat a request. Whatever happens,
nothing is executed twice unless its method is configured as idempotent, and that at most twice.
"""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.e2e.conftest import Measured
from tests.support.agents import Agent, start_agent, static_registry
from tests.support.lab import Lab, LabNode, Running, wait_until

pytestmark = pytest.mark.e2e

PORT = 5000
PLAIN, HEDGED = "/service/plain", "/service/hedged"
FAILOVER = f"""
[failover]
idempotent = ["get*"]
ping_interval_ms = 300
ping_timeout_ms = 300
slow_start_s = 2
[[service]]
uri = "{PLAIN}"
timeout_ms = 400
[[service]]
uri = "{HEDGED}"
timeout_ms = 2000
hedge = true
"""


@dataclass(slots=True)
class World:
    """Callers on `a`, whose agent routes to one instance on each of the others."""

    a: LabNode
    agent: Agent
    nodes: tuple[LabNode, ...]
    running: dict[str, Running] = field(default_factory=dict)

    def serve(self, node: LabNode) -> None:
        self.set_mode(node, "well")
        process = node.python(
            "counting", "-m", "tests.e2e.clients.counting_service", "--host", node.ip4,
            "--port", str(PORT), "--log", str(node.directory / "executed"),
            "--mode", str(node.directory / "mode"),
        )  # fmt: skip
        process.wait_line("ready")
        self.running[node.name] = process

    def set_mode(self, node: LabNode, mode: str) -> None:
        staging = node.directory / "mode.new"
        staging.write_text(mode)
        staging.replace(node.directory / "mode")

    def executed(self, node: LabNode) -> list[str]:
        path = node.directory / "executed"
        return path.read_text().splitlines() if path.exists() else []

    def wait_executions(self, node: LabNode, count: int) -> None:
        """Until this instance has executed so many more."""
        target = len(self.executed(node)) + count
        wait_until(lambda: len(self.executed(node)) >= target, 20, f"{node.name} executes")

    def instance(self, uri: str, node: LabNode) -> dict[str, Any]:
        shown = self.agent.client().services()["services"]
        found = next(s for s in shown if s["uri"] == uri)["instances"]
        instance: dict[str, Any] = next(i for i in found if i["address"] == f"{node.ip4}:{PORT}")
        return instance

    def wait_state(self, uri: str, node: LabNode, *states: str) -> None:
        wait_until(
            lambda: self.instance(uri, node)["health"]["state"] in states,
            20,
            f"{node.name} {states}",
        )

    def counts(self, uri: str) -> dict[str, int]:
        shown = self.agent.client().services()["services"]
        counts: dict[str, int] = next(s for s in shown if s["uri"] == uri)["counts"]
        return counts


@dataclass(slots=True)
class Callers:
    """They call until `report`; `mark` names the time from now on."""

    process: Running
    marks: list[tuple[str, float]] = field(default_factory=list)

    def mark(self, what: str) -> None:
        self.marks.append((what, time.monotonic()))

    def report(self) -> dict[str, Any]:
        self.process.stop()
        report: dict[str, Any] = json.loads(self.process.output.splitlines()[-1])
        return report

    def failures_by_mark(self, report: dict[str, Any]) -> dict[str, Counter[str]]:
        """`method ec` by what was going on."""
        found: dict[str, Counter[str]] = {what: Counter() for what, _ in self.marks}
        for failure in report["failures"]:
            before = [what for what, since_s in self.marks if since_s <= failure["at_s"]]
            found[before[-1]][f"{failure['method']} {failure['ec']}"] += 1
        return found


@pytest.fixture(scope="module")
def world(lab: Lab) -> Iterator[World]:
    a, *others = (lab.add_node(name) for name in "abcd")
    members = [f"{node.ip4}:{PORT}" for node in others]
    registry = static_registry(lab.directory / "services.toml", {PLAIN: members, HEDGED: members})
    agent = start_agent(a, registry, FAILOVER)
    agent.mesh_on()
    made = World(a, agent, tuple(others))
    for node in others:
        made.serve(node)
    yield made
    assert agent.process.stop() == 0


def start_callers(world: World, uri: str) -> Callers:
    first = world.nodes[0]
    process = world.a.python(
        "numbered", "-m", "tests.e2e.clients.numbered", first.ip4, str(PORT), uri
    )
    process.wait_line("started")
    callers = Callers(process)
    callers.mark("well")
    return callers


def kill_and_restart(world: World, uri: str, node: LabNode, callers: Callers) -> None:
    callers.mark("killed")
    world.running[node.name].kill()
    world.wait_state(uri, node, "ejected")
    world.wait_executions(world.nodes[1], 40)
    callers.mark("back")
    world.serve(node)
    world.wait_executions(node, 5)


def freeze(world: World, uri: str, node: LabNode, callers: Callers) -> None:
    callers.mark("frozen")
    world.running[node.name].signal(signal.SIGSTOP)
    try:
        world.wait_state(uri, node, "ejected", "half-open")
        world.wait_executions(world.nodes[0], 40)
    finally:
        world.running[node.name].signal(signal.SIGCONT)
    callers.mark("thawed")
    world.wait_executions(node, 5)


def answer_304(world: World, uri: str, node: LabNode, callers: Callers) -> None:
    callers.mark("answers 304")
    world.set_mode(node, "304")
    world.wait_state(uri, node, "ejected", "half-open")
    world.wait_executions(world.nodes[0], 40)
    callers.mark("answers")
    world.set_mode(node, "well")
    world.wait_executions(node, 5)


def slow_down(world: World, node: LabNode, callers: Callers) -> None:
    callers.mark("slow")
    world.set_mode(node, "slow 200")
    world.wait_executions(world.nodes[0], 150)
    callers.mark("quick")
    world.set_mode(node, "well")
    world.wait_executions(node, 5)


def assert_executions(world: World) -> Counter[str]:
    """At most once for `put`, at most twice for `get`; those that were executed twice."""
    executed = Counter(line for node in world.nodes for line in world.executed(node))
    twice = Counter({line: count for line, count in executed.items() if count > 1})
    assert all(line.startswith("get ") and count == 2 for line, count in twice.items()), twice
    return twice


def clear(world: World) -> None:
    for node in world.nodes:
        (node.directory / "executed").write_text("")


def test_nothing_is_executed_twice_that_must_not_be(world: World, measured: Measured) -> None:
    b, c, d = world.nodes
    clear(world)
    callers = start_callers(world, PLAIN)
    world.wait_executions(b, 20)
    kill_and_restart(world, PLAIN, b, callers)
    freeze(world, PLAIN, c, callers)
    answer_304(world, PLAIN, d, callers)
    slow_down(world, d, callers)
    report = callers.report()
    twice = assert_executions(world)
    counts = world.counts(PLAIN)
    failures = callers.failures_by_mark(report)
    measured(
        "faults without hedging", sent=report["sent"], executed_twice=len(twice),
        resent=counts["resent"], hedges=counts["hedges"],
        **{what.replace(" ", "_"): dict(found) for what, found in failures.items()},
    )  # fmt: skip
    assert counts["hedges"] == 0
    assert counts["resent"] >= 1
    for what in ("well", "back", "slow", "quick"):
        assert not failures[what], (what, report["failures"])
    # Only what may not be repeated fails; a frozen instance eats the whole deadline.
    assert failures["killed"].keys() <= {"put 303"}
    for what in ("answers 304", "answers"):
        assert failures[what].keys() <= {"put 304"}
    for what in ("frozen", "thawed"):
        assert failures[what].keys() <= {"put 304", "get 304"}


def test_hedged_requests_survive_a_frozen_instance(world: World, measured: Measured) -> None:
    """An idempotent request does not wait for its deadline; the other kind is sent once."""
    b, c, d = world.nodes
    clear(world)
    callers = start_callers(world, HEDGED)
    world.wait_executions(b, 60)
    freeze(world, HEDGED, c, callers)
    slow_down(world, d, callers)
    report = callers.report()
    twice = assert_executions(world)
    counts = world.counts(HEDGED)
    failures = callers.failures_by_mark(report)
    measured(
        "faults with hedging", sent=report["sent"], executed_twice=len(twice),
        resent=counts["resent"], hedges=counts["hedges"], hedges_won=counts["hedges_won"],
        **{what.replace(" ", "_"): dict(found) for what, found in failures.items()},
    )  # fmt: skip
    assert counts["hedges_won"] >= 1
    assert {f["method"] for f in report["failures"]} <= {"put"}


def test_the_agent_explains_its_choice(world: World) -> None:
    b, c, d = world.nodes
    told = world.agent.moactl(
        "route", "explain", "--service", PLAIN, "--method", "getName", "--prop", "moa.timeout=250"
    )
    assert told["steps"][0] == f"{PLAIN}: 3 registered"
    assert {i["address"] for i in told["instances"]} == {f"{n.ip4}:{PORT}" for n in (b, c, d)}
    assert (told["timeout_ms"], told["idempotent"], told["hedged"]) == (250, True, False)
    world.running[d.name].kill()
    try:
        # Nobody calls: PING finds it.
        world.wait_state(PLAIN, d, "ejected", "half-open")
        shown = world.agent.moactl("service", "show", PLAIN)["services"][0]["instances"]
        dead = next(i for i in shown if i["address"] == f"{d.ip4}:{PORT}")
        assert dead["weight_now"] == 0
        assert "PING" in dead["health"]["why"]
        told = world.agent.moactl("route", "explain", "--service", PLAIN)
        assert any(f"{d.ip4}:{PORT}" in step and "PING" in step for step in told["steps"])
    finally:
        world.serve(d)
    world.wait_state(PLAIN, d, "slow-start", "healthy")
