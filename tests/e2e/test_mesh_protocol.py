"""Two agents that speak the mesh protocol to each other, and what becomes of it when one of them
dies, leaves, comes back, or was never there.
"""

from __future__ import annotations

import json
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from installer.client import AgentClient
from proxy.net.sockets import set_reset_on_close
from proxy.wire.mesh import RequestHeader, joined
from tests.e2e.clients.raw import DEMO, Connection, request
from tests.e2e.conftest import Measured
from tests.support.agents import Agent, restart_agent, start_agent, start_service, static_registry
from tests.support.lab import Lab, LabNode, Running, wait_until
from tests.support.mesh_peer import NEWER, MeshPeer, newer_request

pytestmark = pytest.mark.e2e

PORT, ALONE_PORT, PEER_PORT = 5000, 5001, 5002
ALONE, PEER = "/service/alone", "/service/peer"
"""ALONE's registry entry says mesh, but no agent serves its port. PEER speaks the mesh protocol
itself, and no agent serves it either."""
TIMEOUT_MS = 20_000
RETRY_S = 1
RATE, CONNECTIONS = 300, 8


@dataclass(slots=True)
class Mesh:
    """Callers on `a`, services on `b`; what a test breaks, it mends."""

    a: LabNode
    b: LabNode
    agent_a: Agent
    agent_b: Agent
    services: list[Running] = field(default_factory=list)

    def call(self, body: str, port: int = PORT) -> dict[str, Any]:
        """One request of a client on A."""
        host = self.b.ip4
        reply: dict[str, Any] = self.a.do(lambda: Connection(host, port, 30.0).call(body))
        return reply

    def counts(self) -> dict[str, int]:
        counted: dict[str, int] = self.agent_a.status()["mesh"]
        return counted

    def peer(self, port: int = PORT) -> dict[str, Any]:
        """What A's agent knows of the agent of an instance."""
        address = f"{self.b.ip4}:{port}"
        peers = self.agent_a.conns()["peers"]
        return next((p for p in peers if p["address"] == address), {"state": "unknown"})

    def health(self, port: int) -> dict[str, Any]:
        """What A's agent holds against an instance."""
        services = AgentClient.of(self.a.directory / "run").services()["services"]
        instances = [i for service in services for i in service["instances"]]
        address = f"{self.b.ip4}:{port}"
        held: dict[str, Any] = next(i["health"] for i in instances if i["address"] == address)
        return held

    def meet(self) -> None:
        def is_confirmed() -> bool:
            assert self.call(request("echo", 1))["ec"] == 200
            return bool(self.peer()["state"] == "confirmed")

        wait_until(is_confirmed, 20, "a mesh connection")

    def load(self, seconds: float, *options: str) -> Running:
        return self.a.python(
            "load", "-m", "tests.e2e.clients.load", "--target", f"{self.b.ip4}:{PORT}",
            "--rate", str(RATE), "--seconds", str(seconds), "--connections", str(CONNECTIONS),
            *options,
        )  # fmt: skip

    def wait_calls(self, count: int) -> None:
        """Until so many more requests went over the mesh."""
        target = self.counts()["calls"] + count
        wait_until(lambda: self.counts()["calls"] >= target, 20, f"{count} requests on the mesh")

    def sockets(self, state: str) -> list[str]:
        """The service's connections in a state."""
        listed = self.b.call("ss", "-tnH", "state", state, "sport", "=", f":{PORT}")
        return listed.stdout.splitlines()


def report_of(load: Running) -> dict[str, Any]:
    load.popen.wait(30)
    report: dict[str, Any] = json.loads(load.output.splitlines()[-1])
    return report


@pytest.fixture(scope="module")
def module_mesh(lab: Lab) -> Mesh:
    a, b = lab.add_node("a"), lab.add_node("b")
    params = f"proto=resp&proto=mesh&timeout={TIMEOUT_MS}"
    services = {
        DEMO: [f"{b.ip4}:{PORT}?{params}"],
        ALONE: [f"{b.ip4}:{ALONE_PORT}?{params}"],
        PEER: [f"{b.ip4}:{PEER_PORT}?{params}"],
    }
    registry = static_registry(lab.directory / "services.toml", services)
    limits = f"[limits]\nmesh_retry_s = {RETRY_S}\nmesh_connections = 1\n"
    agent_a = start_agent(a, registry, limits)
    agent_b = start_agent(b, registry, f"[inbound]\nregistered = false\nports = [{PORT}]\n")
    agent_a.mesh_on()
    agent_b.mesh_on()
    running = [
        start_service(b, PORT, name="b"),
        start_service(b, ALONE_PORT, ALONE),
        b.python("peer", "-m", "tests.support.mesh_peer", b.ip4, str(PEER_PORT)),
    ]
    running[-1].wait_line("ready")
    return Mesh(a, b, agent_a, agent_b, running)


@pytest.fixture
def mesh(module_mesh: Mesh) -> Iterator[Mesh]:
    """Both agents run and speak to each other before each test."""
    module_mesh.meet()
    yield module_mesh
    if module_mesh.agent_b.process.popen.poll() is not None:
        module_mesh.agent_b = restart_agent(module_mesh.agent_b)


def test_an_agent_that_is_killed_costs_what_was_under_way(mesh: Mesh, measured: Measured) -> None:
    """Then requests go to the service itself, and over the mesh again when there is one."""
    load = mesh.load(4.0)
    mesh.wait_calls(RATE // 2)
    mesh.agent_b.process.kill()
    killed_s = time.monotonic()
    wait_until(lambda: mesh.peer()["state"] != "confirmed", 10, "the loss is noticed")
    mesh.agent_b = restart_agent(mesh.agent_b)
    mesh.meet()
    back_s = time.monotonic() - killed_s
    report = report_of(load)
    measured("killed under mesh traffic", failed=len(report["failures"]), back_s=back_s)
    # Each connection of the load has one request open; its next one may meet a connection of
    # the instance's own protocol that went through the same agent and has not been heard to end.
    assert len(report["failures"]) <= 2 * CONNECTIONS
    assert all(failure["kind"] == "ec 303" for failure in report["failures"])
    assert mesh.health(PORT)["state"] == "healthy"


def test_an_agent_that_leaves_costs_nothing(mesh: Mesh, measured: Measured) -> None:
    load = mesh.load(3.0, "--method", "sleep", "--args", "[20]")
    mesh.wait_calls(RATE // 2)
    before = mesh.counts()
    mesh.agent_b.process.signal(signal.SIGTERM)
    assert mesh.agent_b.process.popen.wait(20) == 0
    report = report_of(load)
    after = mesh.counts()
    measured(
        "left under mesh traffic",
        failed=len(report["failures"]),
        fallbacks=after["fallbacks"] - before["fallbacks"],
    )
    assert report["failures"] == []


def test_an_instance_without_an_agent_is_served_in_its_own_protocol(mesh: Mesh) -> None:
    """Its entry promises more than there is: nothing is lost, waits, or counts against it."""
    before = mesh.counts()
    for _ in range(3):
        assert mesh.call(request("echo", 1, uri=ALONE), ALONE_PORT)["result"] == 1
    wait_until(lambda: mesh.peer(ALONE_PORT)["state"] == "refused", 10, "no HELLO")
    assert mesh.call(request("echo", 2, uri=ALONE), ALONE_PORT)["result"] == 2
    after = mesh.counts()
    assert after["hello_failures"] > before["hello_failures"]
    assert after["calls"] == before["calls"]
    health = mesh.health(ALONE_PORT)
    assert (health["state"], health["failures"]) == ("healthy", 0)


def test_the_service_learns_that_its_caller_has_gone(mesh: Mesh) -> None:
    host, body = mesh.b.ip4, request("sleep", 60_000)
    served = mesh.agent_b.status()["mesh"]["served"]

    def is_served() -> bool:
        return bool(mesh.agent_b.status()["mesh"]["served"] > served)

    def ask_and_reset() -> None:
        """A FIN alone is no farewell: over RESP a client may half-close and wait."""
        client = Connection(host, PORT)
        client.send(body)
        select.select([], [], [], 0.3)
        set_reset_on_close(client.sock)
        client.close()

    mesh.a.do(ask_and_reset)
    wait_until(is_served, 10, "the request is with B's agent")
    wait_until(lambda: mesh.sockets("close-wait"), 10, "the service is hung up on")
    wait_until(lambda: mesh.agent_a.status()["requests"]["in_flight"] == 0, 10, "nothing under way")


def test_fields_of_a_newer_agent_and_the_deadline_pass_through(mesh: Mesh) -> None:
    """A client over the mesh, A's agent, and a peer that tells what it got."""
    host = mesh.b.ip4
    header = RequestHeader(
        PEER,
        "m",
        deadline_ms=5000,
        attempt=2,
        props={"k": "v"},
        traceparent=f"00-{'a' * 32}-{'b' * 16}-01",
    )

    def ask() -> dict[str, Any]:
        client = MeshPeer.dial(host, PEER_PORT)
        client.ask(newer_request(header), b'{"any": "body"}')
        response = client.response()
        reply: dict[str, Any] = json.loads(joined(response.body))
        reply["newer"] = NEWER.encode() in response.header.received
        reply["load"] = response.header.load
        return reply

    def is_on_the_mesh() -> bool:
        mesh.a.do(ask)
        return bool(mesh.peer(PEER_PORT)["state"] == "confirmed")

    wait_until(is_on_the_mesh, 10, "a mesh connection to the peer")
    reply = mesh.a.do(ask)
    seen = reply["result"]
    assert (reply["newer"], reply["load"], seen["newer"]) == (True, 7, True)
    assert 0 < seen["deadline_ms"] <= 5000
    assert (seen["attempt"], seen["props"], seen["body"]) == (2, {"k": "v"}, '{"any": "body"}')
    assert seen["traceparent"].startswith(f"00-{'a' * 32}-")
    assert seen["traceparent"] != header.traceparent


def test_a_request_that_comes_too_late_does_not_reach_the_service(mesh: Mesh) -> None:
    host, body = mesh.b.ip4, request("echo", 1).encode()

    def ask() -> list[Any]:
        client = MeshPeer.dial(host, PORT)
        before = Connection(host, PORT).command(b"INFO")
        client.ask(RequestHeader(DEMO, "echo", deadline_ms=0), body)
        late = client.response().header
        after = Connection(host, PORT).command(b"INFO")
        client.ask(RequestHeader(DEMO, "echo", deadline_ms=5000), body)
        answer = client.response()
        client.ask(RequestHeader(DEMO, "sleep", deadline_ms=200), request("sleep", 2000).encode())
        expired = client.response().header
        return [late.ec, before == after, answer.header.ec, answer.header.load, expired.ec]

    # Not through A's agent, which would answer itself.
    seen = mesh.a.do(ask, cgroup=mesh.a.agent)
    assert seen == [304, True, 200, 0, 304]


def test_small_requests_do_not_wait_for_a_large_one(mesh: Mesh) -> None:
    """On one connection, behind a body of 2 MiB; the reply to that is of 2 MiB, too."""
    host = mesh.b.ip4

    def ask() -> list[int]:
        client = MeshPeer.dial(host, PORT)
        large = request("echo", "x" * (2 * 1024 * 1024 - 4096)).encode()
        header = RequestHeader(DEMO, "echo", deadline_ms=20_000)
        client.connection.send_request(header, large)
        for number in range(20):
            client.connection.send_request(header, request("echo", number).encode())
        client.flush()
        order = [client.response() for _ in range(21)]
        assert all(response.header.ec == 200 for response in order)
        return [response.request_id for response in order]

    order = mesh.a.do(ask, cgroup=mesh.a.agent)
    assert sorted(order) == list(range(1, 22))
    assert order[-1] == 1


def test_agents_find_each_other_by_the_registry(lab: Lab) -> None:
    """No configuration names a peer: B's agent marks what it serves, and takes that back."""
    c, d = lab.add_node("c"), lab.add_node("d")
    redis = d.start(
        "redis", "redis-server", "--bind", d.ip4, "--port", "6379", "--save", "",
        "--protected-mode", "no",
    )  # fmt: skip
    redis.wait_line("Ready to accept connections")
    url = f"redis://{d.ip4}:6379/0"
    limits = f"[limits]\nmesh_retry_s = {RETRY_S}\n"
    agents = [start_agent(node, f'kind = "redis"\nurl = "{url}"', limits) for node in (c, d)]
    for agent in agents:
        agent.mesh_on()
    d.python(
        "service", "tests/samples/demo_service.py", "--host", d.ip4, "--port", str(PORT),
        "--register", url,
    ).wait_line("ready")  # fmt: skip

    def marks() -> str:
        key = f"moa:marks:{{{DEMO}}}"
        return d.call("redis-cli", "-h", d.ip4, "hgetall", key, cgroup=d.agent).stdout

    wait_until(lambda: f"{d.ip4}:{PORT} mesh" in marks(), 15, "the mark of D's agent")

    def is_on_the_mesh() -> bool:
        host = d.ip4
        assert c.do(lambda: Connection(host, PORT).call(request("echo", 1)))["ec"] == 200
        return bool(agents[0].status()["mesh"]["calls"])

    wait_until(is_on_the_mesh, 15, "a request over the mesh")
    assert agents[1].process.stop() == 0
    assert "mesh" not in marks()
