"""What a fault costs callers: an instance dies or freezes, the agent dies, freezes, or leaves.

The agent has no supervisor here: traffic goes direct. What the same costs under one, as nodes
have it, is in test_fault_matrix.py and test_opsd.py."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.e2e.clients.raw import DEMO, Connection, call, names, request
from tests.e2e.conftest import Measured
from tests.support.agents import Agent, start_agent, start_service, static_registry
from tests.support.lab import Lab, LabNode, Running, wait_until

pytestmark = pytest.mark.e2e

PORT = 5000
CONNECTIONS = 8
RATE = 300
HEARTBEAT_MAX_AGE_S = 2.0
HASTY = f"{DEMO}#hasty"
"""The same instances, with a timeout of 300 ms."""


@dataclass(slots=True)
class Mesh:
    """Callers on `a`, an instance each on `b` and `c`; what a test breaks, it mends."""

    a: LabNode
    b: LabNode
    c: LabNode
    registry: str
    agent: Agent
    instances: dict[str, Running] = field(default_factory=dict)

    def serve(self, node: LabNode) -> None:
        self.instances[node.name] = start_service(node, PORT, name=node.name)

    def load(self, *options: str, seconds: float = 3.0) -> Load:
        """Start the load client on node A, dialling the instance on C."""
        process = self.a.python(
            "load", "-m", "tests.e2e.clients.load", "--target", f"{self.c.ip4}:{PORT}",
            "--rate", str(RATE), "--seconds", str(seconds), "--connections", str(CONNECTIONS),
            *options,
        )  # fmt: skip
        return Load(process)

    def wait_requests(self, count: int) -> None:
        """Until the agent has seen so many more requests."""
        target = self.agent.status()["requests"]["total"] + count
        wait_until(
            lambda: self.agent.status()["requests"]["total"] >= target, 20, f"{count} requests"
        )

    def answering(self) -> set[str]:
        return set(self.a.do(lambda: names(self.c.ip4, PORT)))

    def restart_agent(self) -> None:
        self.agent = start_agent(self.a, self.registry)


@dataclass(frozen=True, slots=True)
class Load:
    process: Running

    def report(self) -> dict[str, Any]:
        """Once it has ended."""
        self.process.popen.wait(30)
        report: dict[str, Any] = json.loads(self.process.output.splitlines()[-1])
        assert report["sent"] == report["ok"] + len(report["failures"])
        return report


def last_error_s(report: dict[str, Any], since_s: float) -> float:
    """From a moment to the last error; 0 when there was none."""
    errors = [report["started_s"] + failure["at_s"] - since_s for failure in report["failures"]]
    return max(errors, default=0.0)


@pytest.fixture(scope="module")
def module_mesh(lab: Lab) -> Mesh:
    a, b, c = (lab.add_node(name) for name in "abc")
    instances = [f"{node.ip4}:{PORT}" for node in (b, c)]
    services = {DEMO: instances, HASTY: [f"{instance}?timeout=300" for instance in instances]}
    registry = static_registry(lab.directory / "services.toml", services)
    agent = start_agent(a, registry)
    agent.mesh_on()
    made = Mesh(a, b, c, registry, agent)
    made.serve(b)
    made.serve(c)
    return made


@pytest.fixture
def mesh(module_mesh: Mesh) -> Iterator[Mesh]:
    """Whole: both instances answer, through the agent, before each test."""
    wait_until(lambda: module_mesh.answering() == {"b", "c"}, 20, "both instances answer")
    yield module_mesh
    for node in (module_mesh.b, module_mesh.c):
        if module_mesh.instances[node.name].popen.poll() is not None:
            module_mesh.serve(node)
    if module_mesh.agent.process.popen.poll() is not None:
        module_mesh.restart_agent()


@pytest.mark.parametrize(
    ("victim", "method", "args"),
    [("b", "whoami", "[]"), ("b", "sleep", "[20]"), ("c", "sleep", "[20]")],
)
def test_instance_killed_under_load(
    mesh: Mesh, measured: Measured, victim: str, method: str, args: str
) -> None:
    """Only what was on its way to the dead one fails, and is told that it may have run."""
    node = mesh.b if victim == "b" else mesh.c
    load = mesh.load("--method", method, "--args", args)
    mesh.wait_requests(RATE)
    killed_s = time.monotonic()
    mesh.instances[victim].kill()
    mesh.wait_requests(RATE)
    assert mesh.answering() == {"c" if victim == "b" else "b"}
    mesh.serve(node)
    back_s = time.monotonic()
    wait_until(lambda: mesh.answering() == {"b", "c"}, 20, "traffic returns")
    returned_s = time.monotonic() - back_s
    report = load.report()
    measured(
        f"instance killed -9 ({'the dialled one' if victim == 'c' else 'another'}, {method})",
        sent=report["sent"],
        failed=len(report["failures"]),
        kinds=list(report["errors"]),
        last_error_after_s=last_error_s(report, killed_s),
        traffic_back_after_s=returned_s,
        p99_ms=report["p99_ms"],
        max_ms=report["max_ms"],
    )
    assert report["errors"].keys() <= {"ec 303"}
    for failure in report["failures"]:
        assert "the request may have been executed" in failure["text"], failure
    assert len(report["failures"]) <= CONNECTIONS
    assert last_error_s(report, killed_s) < 0.5
    # Ejected for 1 s, doubled with every probe that fails meanwhile.
    assert returned_s < 5


def test_instance_killed_behind_its_own_agent(mesh: Mesh, measured: Measured) -> None:
    """B's agent takes the request and finds nobody: it was never sent, and goes to C."""
    far = start_agent(mesh.b, mesh.registry)
    far.mesh_on()
    try:
        wait_until(lambda: mesh.answering() == {"b", "c"}, 20, "both instances answer")
        load = mesh.load()
        mesh.wait_requests(RATE)
        killed_s = time.monotonic()
        mesh.instances["b"].kill()
        report = load.report()
        mesh.serve(mesh.b)
        wait_until(lambda: mesh.answering() == {"b", "c"}, 20, "traffic returns")
    finally:
        assert far.process.stop() == 0
    measured(
        "instance killed -9 behind its own agent",
        sent=report["sent"],
        failed=len(report["failures"]),
        kinds=list(report["errors"]),
        last_error_after_s=last_error_s(report, killed_s),
    )
    for failure in report["failures"]:
        assert "the request may have been executed" in failure["text"], failure
    assert len(report["failures"]) <= CONNECTIONS
    assert last_error_s(report, killed_s) < 0.5


@pytest.fixture
def narrow(module_mesh: Mesh) -> Iterator[Mesh]:
    """Callers on a node whose agent has two connections to each instance, and a queue."""
    whole = module_mesh
    node = whole.a.lab.add_node("e")
    agent = start_agent(node, whole.registry, "[limits]\npool_size = 2\n")
    agent.mesh_on()
    made = Mesh(node, whole.b, whole.c, whole.registry, agent, whole.instances)
    yield made
    agent.process.stop()
    for instance in (whole.b, whole.c):
        if whole.instances[instance.name].popen.poll() is not None:
            whole.serve(instance)


def test_requests_that_wait_for_a_connection_survive_its_instance(
    narrow: Mesh, measured: Measured
) -> None:
    """Twenty callers share two connections to each instance: only what was on one can fail.

    A process that dies closes its sockets one after the other: what lost its connection is
    dialled again, and may be taken by a listener that has a moment to live.
    """
    body = request("sleep", 150)
    host, victim, agent = narrow.c.ip4, narrow.instances["b"].pid, narrow.agent

    def callers() -> list[dict[str, Any]]:
        connections = [Connection(host, PORT) for _ in range(20)]
        for connection in connections:
            connection.send(body)
        wait_until(lambda: agent.status()["requests"]["in_flight"] == 20, 10, "20 requests")
        os.kill(victim, signal.SIGKILL)
        return [connection.reply() for connection in connections]

    replies = narrow.a.do(callers)
    failed = [reply for reply in replies if reply["ec"] != 200]
    measured("instance killed -9, 20 requests for 2 connections", failed=len(failed))
    for reply in failed:
        assert "the request may have been executed" in reply["em"]
    assert 1 <= len(failed) <= 2 + 2


def test_instance_frozen_under_load(mesh: Mesh, measured: Measured) -> None:
    """It accepts and says nothing: five requests in a row time out, then it is ejected."""
    load = mesh.load("--service", HASTY, seconds=4)
    mesh.wait_requests(RATE)
    frozen_s = time.monotonic()
    mesh.instances["b"].signal(signal.SIGSTOP)
    try:
        mesh.wait_requests(2 * RATE)
    finally:
        mesh.instances["b"].signal(signal.SIGCONT)
    thawed_s = time.monotonic()
    wait_until(lambda: mesh.answering() == {"b", "c"}, 20, "traffic returns")
    returned_s = time.monotonic() - thawed_s
    report = load.report()
    measured(
        "instance frozen (SIGSTOP), timeout 300 ms",
        sent=report["sent"],
        failed=len(report["failures"]),
        kinds=list(report["errors"]),
        last_error_after_s=last_error_s(report, frozen_s),
        traffic_back_after_s=returned_s,
    )
    assert report["errors"].keys() <= {"ec 304"}
    probes = 3  # after 1 s, 2 s, 4 s
    assert len(report["failures"]) <= 5 + CONNECTIONS + probes


def test_agent_killed_under_load(mesh: Mesh, measured: Measured) -> None:
    """Established connections break with it; the very next connect() goes to what was dialled."""
    load = mesh.load()
    mesh.wait_requests(RATE)
    killed_s = time.monotonic()
    mesh.agent.process.kill()
    direct = mesh.a.do(lambda: [names(mesh.c.ip4, PORT), time.monotonic() - killed_s])
    report = load.report()
    answered = report["last_ok_s"]
    mesh.restart_agent()
    through = mesh.answering()
    measured(
        "agent killed -9, no supervisor",
        sent=report["sent"],
        failed=len(report["failures"]),
        kinds=list(report["errors"]),
        last_error_after_s=last_error_s(report, killed_s),
        twenty_direct_replies_after_s=direct[1],
    )
    assert set(direct[0]) == {"c"}
    assert report["errors"].keys() <= {"ConnectionError"}
    assert len(report["failures"]) <= CONNECTIONS, "the listener goes with the process"
    assert last_error_s(report, killed_s) < 0.5
    assert answered > 2.5, "the callers went on, straight"
    assert through == {"b", "c"}, "a new agent serves new connections"


def test_agent_frozen_under_load(mesh: Mesh, measured: Measured) -> None:
    """A hung agent is seen by its heartbeat: within its age, connect() goes direct again."""
    load = mesh.load("--timeout", "1", seconds=5)
    mesh.wait_requests(RATE)
    frozen_s = time.monotonic()
    mesh.agent.process.signal(signal.SIGSTOP)
    try:
        wait_until(lambda: _answers(mesh), 10, "a direct reply")
        direct_s = time.monotonic() - frozen_s
        report = load.report()
    finally:
        mesh.agent.process.signal(signal.SIGCONT)
    thawed_s = time.monotonic()
    wait_until(lambda: mesh.answering() == {"b", "c"}, 10, "the agent serves again")
    measured(
        "agent frozen (SIGSTOP), no supervisor, callers' timeout 1 s",
        sent=report["sent"],
        failed=len(report["failures"]),
        kinds=list(report["errors"]),
        last_error_after_s=last_error_s(report, frozen_s),
        direct_reply_after_s=direct_s,
        through_the_agent_again_after_s=time.monotonic() - thawed_s,
    )
    assert report["errors"].keys() <= {"TimeoutError"}
    assert direct_s < HEARTBEAT_MAX_AGE_S + 1
    # Each caller waits its second at most twice more for an agent that looks alive.
    assert len(report["failures"]) <= 3 * CONNECTIONS
    assert last_error_s(report, frozen_s) < HEARTBEAT_MAX_AGE_S + 1.5


def _answers(mesh: Mesh) -> bool:
    """Whether a new connection gets a reply within 0.3 s."""

    def attempt() -> bool:
        try:
            with Connection(mesh.c.ip4, PORT, timeout_s=0.3) as connection:
                return bool(connection.call(request("whoami"))["ec"] == 200)
        except OSError:
            return False

    return bool(mesh.a.do(attempt))


@pytest.mark.parametrize(("mode", "rounds"), [("redis-py", 1), ("short", 3)])
def test_agent_stopped_under_load_costs_no_request(
    mesh: Mesh, measured: Measured, mode: str, rounds: int
) -> None:
    """SIGTERM: it lets go of connections between requests, and of new ones after the first."""
    steady = mesh.a.python(
        "steady", "-m", "tests.e2e.clients.steady", mesh.c.ip4, str(PORT), str(CONNECTIONS), mode
    )
    took_s = 0.0
    for _ in range(rounds):
        mesh.wait_requests(RATE)
        stopped_s = time.monotonic()
        assert mesh.agent.process.stop() == 0
        took_s = max(took_s, time.monotonic() - stopped_s)
        assert mesh.answering() == {"c"}
        mesh.restart_agent()
    assert mesh.answering() == {"b", "c"}
    steady.stop()
    seen = json.loads(steady.output.splitlines()[-1])
    measured(
        f"agent SIGTERM {rounds} times, no supervisor, {mode} clients",
        ok=seen["ok"],
        failed=len(seen["failures"]),
        slowest_s=seen["slowest_s"],
        agent_ended_after_s=took_s,
    )
    assert seen["failures"] == []
    assert took_s < 2, "nothing was under way for longer"


def test_agent_stopped_under_load_of_clients_that_never_retry(
    mesh: Mesh, measured: Measured
) -> None:
    """A request that meets the closing of its connection fails, at most one a connection.

    No drain can win that race: `moactl agent restart` has none, as connections change hands.
    """
    load = mesh.load(seconds=3)
    mesh.wait_requests(RATE)
    stopped_s = time.monotonic()
    assert mesh.agent.process.stop() == 0
    report = load.report()
    measured(
        "agent SIGTERM, no supervisor, clients without any retry",
        sent=report["sent"],
        failed=len(report["failures"]),
        kinds=list(report["errors"]),
        last_error_after_s=last_error_s(report, stopped_s),
    )
    assert report["errors"].keys() <= {"ConnectionError"}
    assert len(report["failures"]) <= CONNECTIONS


def test_drain_waits_for_requests_under_way(mesh: Mesh) -> None:
    """And for nothing else: a request of 250 ms gets its reply from an agent told to end."""
    slow = mesh.a.python(
        "slow", "-c",
        "from tests.e2e.clients.raw import Connection, request\n"
        f"connection = Connection({mesh.c.ip4!r}, {PORT})\n"
        "connection.send(request('sleep', 250))\n"
        "print('sent', flush=True)\n"
        "print(connection.reply(), flush=True)",
    )  # fmt: skip
    wait_until(lambda: mesh.agent.status()["requests"]["in_flight"] == 1, 10, "request under way")
    assert mesh.agent.process.stop() == 0
    slow.popen.wait(10)
    assert "'ec': 200" in slow.output, slow.output
    assert mesh.a.do(lambda: call(mesh.c.ip4, PORT, request("whoami")))["result"]["name"] == "c"
