"""The agent that calls over the mesh, and the one that is called, are upgraded under load."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from installer.client import AgentClient
from tests.e2e.clients.raw import DEMO, request
from tests.e2e.conftest import Measured
from tests.support.agents import start_service, static_registry
from tests.support.crowds import PORT, Crowd
from tests.support.far_sockets import FarResp, FarTurbo, dial
from tests.support.lab import Lab, LabNode, wait_until
from tests.support.upgrades import Upgrades, wait_no_leak

pytestmark = pytest.mark.e2e

CROWD = ("resp=12@200", "pipelined=2@100", "turbo=2@100", "turbo9=2@100")
SLOW_MS = 3000
GUARD = "127.0.0.6"
"""From where an agent calls the services of its own node."""


@dataclass(slots=True)
class Mesh:
    """Callers and an agent on `a`; a service and an agent, which serves its port, on `b`."""

    a: LabNode
    b: LabNode
    caller: Upgrades
    called: Upgrades

    def calls(self) -> int:
        return int(self.caller.agent.status()["mesh"]["calls"])

    def wait_calls(self, count: int) -> None:
        """Until so many more requests went over the mesh."""
        wanted = self.calls() + count
        wait_until(lambda: self.calls() >= wanted, 20, f"{count} requests over the mesh")

    def wait_no_leak_at_called(self) -> None:
        """Until B's agent has its own sockets, its clients', and those to the service."""
        agent, wanted = self.called.serving, ("state", "established", "sport", "=", f":{PORT}")

        def surplus() -> int:
            there = self.b.call("ss", "-tnH", *wanted, "dst", GUARD).stdout.count("\n")
            return agent.sockets() - self.called.own_sockets - len(agent.conns()) - there

        wait_until(lambda: surplus() == 0, 10, f"no leak: {surplus()}")


@pytest.fixture(scope="module")
def module_mesh(lab: Lab) -> Mesh:
    a, b = lab.add_node("a"), lab.add_node("b")
    start_service(b, PORT)
    params = "proto=resp&proto=mesh&timeout=20000"
    registry = static_registry(
        lab.directory / "services.toml", {DEMO: [f"{b.ip4}:{PORT}?{params}"]}
    )
    caller = Upgrades.begin(a, registry)
    called = Upgrades.begin(b, registry, f"[inbound]\nregistered = false\nports = [{PORT}]\n")
    for upgrades in (caller, called):
        upgrades.agent.mesh_on()
    return Mesh(a, b, caller, called)


@pytest.fixture
def mesh(module_mesh: Mesh) -> Iterator[Mesh]:
    """Before each test the agents speak the mesh protocol; afterwards each node has one agent."""
    with FarResp.on(module_mesh.a, module_mesh.b.ip4, PORT) as client:

        def is_met() -> bool:
            assert client.call(request("echo", 1))["ec"] == 200
            peers = module_mesh.caller.agent.conns()["peers"]
            return any(peer["state"] == "confirmed" for peer in peers)

        wait_until(is_met, 20, "a mesh connection")
    yield module_mesh
    for upgrades in (module_mesh.caller, module_mesh.called):
        for generation in upgrades.generations:
            if generation is not upgrades.serving and generation.is_alive:
                generation.retire()


@pytest.mark.parametrize("side", ["called", "caller"])
def test_under_load(mesh: Mesh, side: str, measured: Measured) -> None:
    """Twice: every request goes over the mesh, none fails, and the service sees each once."""
    upgrades: Upgrades = getattr(mesh, side)
    status = mesh.caller.agent.status()["mesh"]
    served = mesh.called.agent.status()["mesh"]["served"]
    crowd = Crowd.begin(mesh.caller, *CROWD)
    mesh.wait_calls(200)
    moved = []
    for _ in range(2):
        retired = upgrades.upgrade()
        assert retired.conns() == []
        moved.append(retired.link.said[-1]["moved"])
        mesh.wait_calls(200)
        retired.retire()
    routed = crowd.end()
    after = mesh.caller.agent.status()["mesh"]
    assert mesh.caller.agent.status()["requests"]["total"] == crowd.requests + routed
    calls = after["calls"] - status["calls"]
    assert mesh.called.agent.status()["mesh"]["served"] - served == calls
    for name in ("fallbacks", "hello_failures"):
        assert after[name] == status[name]
    if side == "called":
        # The one that calls has not even noticed: its connections are the same.
        assert calls == routed
        assert _metric(mesh.a, "moa_mesh_losses_total") == 0
        mesh.wait_no_leak_at_called()
    else:
        # Until its successor has a mesh connection of its own, the instance is called directly.
        assert calls > 0.9 * routed
        wait_no_leak(upgrades.serving, upgrades.own_sockets)
    measured(f"two upgrades of the {side} agent", requests=routed, calls=calls, moved=str(moved))


@pytest.mark.parametrize("side", ["called", "caller"])
def test_requests_that_take_longer_than_the_upgrade(mesh: Mesh, side: str) -> None:
    """The replies that the retired one owes come over its successor."""
    upgrades: Upgrades = getattr(mesh, side)
    resp = FarResp(dial(mesh.a, mesh.b.ip4, PORT)[0])
    turbo = FarTurbo(dial(mesh.a, mesh.b.ip4, PORT)[0])
    with resp, turbo:
        for number in range(3):
            assert resp.call(request("echo", number))["result"] == number
        successor = upgrades.prepare()
        calls = mesh.calls()
        body = request("sleep", SLOW_MS)
        resp.send(body)
        asked = [turbo.send(body.encode()) for _ in range(20)]
        wait_until(lambda: mesh.calls() == calls + 21, 10, "all are under way")
        before = upgrades.serving
        before.link.do("give")
        successor.link.wait("serving")
        upgrades.serving = successor
        # New ones are served by the successor meanwhile, the old one being busy with its own.
        with FarResp(dial(mesh.a, mesh.b.ip4, PORT)[0]) as other:
            assert other.call(request("echo", "meanwhile"))["result"] == "meanwhile"
        assert before.client.status()["requests"]["in_flight"] > 0 or side == "called"
        assert resp.reply()["result"] == SLOW_MS
        found = [turbo.reply() for _ in asked]
        assert sorted(number for number, _ in found) == asked
        assert all(turbo.decode(body)["result"] == SLOW_MS for _, body in found)
        assert before.link.wait("given")["left"] == 0
        successor.link.wait("taken")
        assert resp.call(request("echo", "after"))["result"] == "after"
    before.retire()


def test_both_at_once(mesh: Mesh) -> None:
    crowd = Crowd.begin(mesh.caller, *CROWD)
    successors = mesh.caller.prepare(), mesh.called.prepare()
    mesh.wait_calls(200)
    threads = [
        threading.Thread(target=upgrades.give, args=(successor,))
        for upgrades, successor in zip((mesh.caller, mesh.called), successors, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (mesh.caller.serving, mesh.called.serving) == successors
    mesh.wait_calls(200)
    routed = crowd.end()
    assert mesh.caller.agent.status()["requests"]["total"] == crowd.requests + routed


def _metric(node: LabNode, name: str) -> float:
    client = AgentClient.of(node.directory / "run")
    _status, body = client._exchange("GET", "/metrics")
    line = next(line for line in body.decode().splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])
