"""A supervisor with real agents on a node of a lab, callers beside them, an instance elsewhere."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from installer.client import AgentClient, AgentError
from installer.ops_client import OpsClient
from interceptor.cgroup import Cgroup
from interceptor.node import Node
from tests.e2e.clients.raw import DEMO, call, request
from tests.support.agents import start_service, static_registry, write_config
from tests.support.cli import moactl_on
from tests.support.lab import Lab, LabNode, Running, wait_until

PORT, DEAD_PORT = 5000, 5999
"""Nobody listens at the second: only an agent can answer there."""
CRASHES, OPEN_S = 4, 15
OPS = (
    f"[ops]\nrestart_ms = 20\nbake_s = 1\ngate_min_requests = 20\n"
    f"crashes = {CRASHES}\nopen_s = {OPEN_S}\n"
)


@dataclass(slots=True)
class Supervised:
    """A supervisor on a node, and its agents."""

    node: LabNode
    config: Path
    opsd: Running | None = None

    def start(self, *prefix: str, **env: str) -> Running:
        """Start the supervisor, by `prefix` and its words; in a cgroup outside the mesh, as its
        unit is."""
        outside = Cgroup(f"/{self.node.lab.id}/outside")
        self.opsd = self.node.start(
            "moa-opsd", *prefix, sys.executable, "-I", "-m", "installer.opsd", str(self.config),
            cgroup=outside, env=env,
        )  # fmt: skip
        return self.opsd

    @property
    def words(self) -> str:
        assert self.opsd is not None
        return self.opsd.output

    def ops(self) -> OpsClient:
        return OpsClient(self.node.directory / "run")

    def serving(self) -> int:
        """Process id of the agent that serves; 0 while none does."""
        try:
            agents = self.ops().status()["agents"]
        except AgentError:
            return 0
        return next((a["pid"] for a in agents if a["state"] == "serving" and a["linked"]), 0)

    def wait_serving(self, other_than: int = 0) -> int:
        return int(
            wait_until(
                lambda: (pid := self.serving()) != other_than and pid,
                30,
                f"an agent serves, other than {other_than}",
            )
        )

    def moactl(self, *argv: str) -> list[dict[str, Any]]:
        """Its lines of JSON."""
        done = moactl_on(self.node, "agent", *argv, "-o", "json")
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{self.words}"
        return [json.loads(line) for line in done.stdout.splitlines()]


@dataclass(slots=True)
class World(Supervised):
    """Callers, a supervisor and its agents on `a`, an instance on `b`."""

    b: LabNode = field(kw_only=True)

    @property
    def a(self) -> LabNode:
        return self.node

    def requests(self) -> dict[str, Any]:
        counts: dict[str, Any] = AgentClient.of(self.a.directory / "run").status()["requests"]
        return counts

    def ask(self, port: int = DEAD_PORT) -> str:
        """Who answers a new connection; or the error."""

        def action() -> str:
            try:
                return str(call(self.b.ip4, port, request("whoami"))["result"]["name"])
            except OSError as error:
                return type(error).__name__

        return str(self.a.do(action))

    def load(self, seconds: int, rate: int = 200) -> Running:
        """Eight connections, no retry, so many requests a second in all; returns when it flows."""
        before = self.requests()["total"]
        running = self.a.python(
            "load", "-m", "tests.e2e.clients.load", "--target", f"{self.b.ip4}:{PORT}",
            "--rate", str(rate), "--seconds", str(seconds), "--connections", "8",
        )  # fmt: skip
        wait_until(lambda: self.requests()["total"] > before + 100, 15, "a load")
        return running


def start_world(lab: Lab, *prefix: str) -> World:
    """Two nodes, the mesh switched on, and an agent that serves."""
    a, b = lab.add_node("a"), lab.add_node("b")
    start_service(b, PORT, name="b")
    registry = static_registry(a.directory / "services.toml", {DEMO: [f"{b.ip4}:{PORT}"]})
    world = World(a, write_config(a, registry, OPS), b=b)
    world.start(*prefix)
    world.wait_serving()
    node = Node(a.root)
    node.add_scope(a.services)
    node.switch(on=True)
    return world
