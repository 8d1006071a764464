"""Clients of every protocol that call all along (tests/e2e/clients/crowd.py)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.e2e.clients.raw import DEMO
from tests.support.agents import start_service, static_registry
from tests.support.lab import Lab, LabNode, Running
from tests.support.upgrades import Upgrades

PORT, ECHO = 5000, 7000


def begin(lab: Lab, extra: str = "", timeout_s: int = 60) -> Upgrades:
    """An agent on `a`, an instance and an echo that is no MOA on `b`."""
    a, b = lab.add_node("a"), lab.add_node("b")
    start_service(b, PORT)
    echo = b.python("echo", "-m", "tests.e2e.clients.raw_server", b.ip4, f"echo={ECHO}")
    echo.wait_line("ready echo")
    registry = static_registry(a.directory / "services.toml", {DEMO: [f"{b.ip4}:{PORT}"]})
    upgrades = Upgrades.begin(a, registry, extra, timeout_s=timeout_s)
    upgrades.agent.mesh_on()
    return upgrades


@dataclass(slots=True)
class Crowd:
    """Runs from `begin` to `end`; `requests` is what the agent had counted before."""

    process: Running
    requests: int
    seen: dict[str, dict[str, Any]]

    @classmethod
    def begin(cls, upgrades: Upgrades, *kinds: str) -> Crowd:
        """`kinds` as crowd.py has them; returns when all its clients call."""
        node: LabNode = upgrades.node
        host = node.lab.nodes["b"].ip4
        requests = int(upgrades.agent.status()["requests"]["total"])
        process = node.python(
            "crowd", "-m", "tests.e2e.clients.crowd", host, str(PORT), str(ECHO), *kinds
        )
        process.wait_line("started")
        return cls(process, requests, {})

    def stop(self) -> dict[str, dict[str, Any]]:
        """What its clients have seen."""
        if not self.seen:
            self.process.popen.terminate()
            self.process.popen.wait(60)
            self.seen = json.loads(self.process.output.splitlines()[-1])
        return self.seen

    def end(self) -> int:
        """Nothing failed and nobody was disconnected; how many requests an agent has routed."""
        for name, what in self.stop().items():
            assert what["failed"] == 0, f"{name}: {what['failures']}"
            assert what["ok"] == what["sent"] > 0, name
        return sum(what["sent"] for name, what in self.seen.items() if name != "raw")

    def replies(self) -> list[tuple[float, float]]:
        """(when, latency in ms) of all that was answered."""
        return sorted((at, ms) for what in self.seen.values() for at, ms in what["replies"])
