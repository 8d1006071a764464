"""An agent hands its sockets to its successor while real clients of every protocol go on."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from tests.e2e.clients.raw import DEMO
from tests.support.agents import Agent, start_agent, start_service, static_registry
from tests.support.lab import Lab, LabNode, Running, wait_until

pytestmark = pytest.mark.e2e

PORT = 5000


@dataclass(slots=True)
class Node:
    """Callers and an agent on `a`, an instance each on `b` and `c`."""

    a: LabNode
    b: LabNode
    c: LabNode
    agent: Agent

    def succeed(self) -> tuple[Agent, Running]:
        """Start a successor; it and the process of the agent before it."""
        before = self.agent.process
        process = self.a.python(
            "moa-agent", "-I", "-m", "installer.agent", str(self.agent.config),
            "--take-over", str(self.a.directory / "run" / f"handover-{before.popen.pid}.sock"),
        )  # fmt: skip
        process.wait_line('"ready"')
        self.agent = Agent(self.a, self.agent.config, process)
        return self.agent, before


@pytest.fixture(scope="module")
def node(lab: Lab) -> Node:
    a, b, c = lab.add_node("a"), lab.add_node("b"), lab.add_node("c")
    for where in (b, c):
        start_service(where, PORT, name=where.name)
    registry = static_registry(
        a.directory / "services.toml", {DEMO: [f"{b.ip4}:{PORT}", f"{c.ip4}:{PORT}"]}
    )
    agent = start_agent(a, registry)
    agent.mesh_on()
    return Node(a, b, c, agent)


def test_load_goes_on_through_an_upgrade(node: Node) -> None:
    load = node.a.python(
        "load", "-m", "tests.e2e.clients.load", "--target", f"{node.c.ip4}:{PORT}",
        "--rate", "300", "--seconds", "15", "--connections", "8",
    )  # fmt: skip
    wait_until(lambda: node.agent.status()["requests"]["total"] > 100, 10, "a load")
    agent, before = node.succeed()
    wait_until(lambda: agent.status()["connections"]["outbound"] == 8, 10, "all have moved")
    load.popen.wait(30)
    report = json.loads(load.output.splitlines()[-1])
    assert report["failures"] == []
    assert agent.status()["requests"]["total"] == report["sent"]
    assert before.popen.poll() is None
