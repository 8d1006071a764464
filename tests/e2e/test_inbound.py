"""A local service's own port is served by its agent: who calls, who is called, and who is gone."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from interceptor.abi import Reason
from interceptor.node import Node
from tests.e2e.clients.raw import Connection, request
from tests.e2e.conftest import Measured
from tests.support.agents import Agent, start_agent, start_service, static_registry
from tests.support.lab import Lab, LabNode, Running, wait_until

pytestmark = pytest.mark.e2e

HERE = Path(__file__).parent
DEMO, PEER, ANY, SIX, HTTP, PLAIN = 5000, 5001, 5002, 5003, 8080, 5009
GUARD = "127.0.0.6"
NOBODY = "10.77.0.99"


@dataclass(slots=True)
class Mesh:
    """`a` has callers and an agent, `b` services and an agent, `c` callers and nothing else."""

    a: LabNode
    b: LabNode
    c: LabNode
    registry: str
    agent_a: Agent
    agent_b: Agent
    services: dict[int, Running]

    def start_peer(self, host: str, port: int) -> None:
        script = str(HERE / "clients/peer_service.py")
        self.services[port] = self.b.python(f"peer-{port}", script, host, str(port), str(port))
        self.services[port].wait_line("ready")

    def start_agent_b(self) -> None:
        self.agent_b = start_agent(self.b, self.registry, f"[inbound]\nports = [{HTTP}]\n")

    def ask(
        self, caller: LabNode, port: int = PEER, host: str = "", uri: str = "/service/peer"
    ) -> dict[str, Any]:
        """What the service on B sees of a caller, and what the caller sees of it."""
        target = host or self.b.ip4

        def action() -> dict[str, Any]:
            with Connection(target, port) as connection:
                reply = connection.call(request("x", uri=uri))
                return reply | {"getpeername": list(connection.sock.getpeername()[:2])}

        seen: dict[str, Any] = caller.do(action)
        return seen

    @contextmanager
    def steered(self, node: LabNode) -> Iterator[dict[Reason, int]]:
        """What the kernel of a node counted meanwhile."""
        moved: dict[Reason, int] = {}
        with Node(node.root).maps() as maps:
            before = maps.counters()
            yield moved
            moved.update({reason: n - before[reason] for reason, n in maps.counters().items()})


@pytest.fixture(scope="module")
def mesh(lab: Lab) -> Mesh:
    a, b, c = (lab.add_node(name) for name in "abc")
    services = {
        "/service/demo": [f"{b.ip4}:{DEMO}"],
        "/service/peer": [f"{b.ip4}:{PEER}"],
        "/service/any": [f"{b.ip4}:{ANY}", f"[{b.ip6}]:{ANY}"],
        "/service/six": [f"[{b.ip6}]:{SIX}"],
    }
    registry = static_registry(lab.directory / "services.toml", services)
    demo = start_service(b, DEMO)
    agents = start_agent(a, registry), start_agent(b, registry, f"[inbound]\nports = [{HTTP}]\n")
    for agent in agents:
        agent.mesh_on()
    made = Mesh(a, b, c, registry, *agents, services={DEMO: demo})
    for host, port in ((b.ip4, PEER), ("::", ANY), (b.ip6, SIX), (b.ip4, PLAIN)):
        made.start_peer(host, port)
    return made


def test_a_caller_without_a_mesh(mesh: Mesh) -> None:
    """The service hears from its agent; the caller talks to the address that it dialled."""
    with mesh.steered(mesh.b) as moved:
        seen = mesh.ask(mesh.c)
    assert seen["result"]["peer"] == GUARD
    assert seen["result"]["local"] == mesh.b.ip4
    assert seen["getpeername"] == [mesh.b.ip4, PEER]
    assert moved[Reason.INBOUND_STEERED] >= 1
    assert moved[Reason.INBOUND_LOOP_GUARD] == 1


def test_a_call_through_two_agents(mesh: Mesh) -> None:
    """Dialled is nobody; A's agent finds the instance, B's agent stands before it."""
    before = mesh.agent_a.status()["requests"]["total"]
    with mesh.steered(mesh.b) as moved:
        seen = mesh.ask(mesh.a, host=NOBODY)
    assert seen["result"]["peer"] == GUARD
    assert seen["getpeername"] == [NOBODY, PEER]
    assert moved[Reason.INBOUND_STEERED] >= 1
    assert mesh.agent_a.status()["requests"]["total"] == before + 1


def test_a_caller_on_the_same_node(mesh: Mesh) -> None:
    """One agent, passed once: what it would be handed again goes to the service itself."""
    with mesh.steered(mesh.b) as moved:
        seen = mesh.ask(mesh.b, host=NOBODY)
    assert seen["result"]["peer"] == GUARD
    assert moved[Reason.INBOUND_STEERED] == 0
    assert moved[Reason.CONNECT_REDIRECTED] == 1


def test_a_port_that_nobody_registered_is_left_alone(mesh: Mesh) -> None:
    assert mesh.ask(mesh.c, PLAIN)["result"]["peer"] == mesh.c.ip4


@pytest.mark.parametrize("caller", ["a", "c"])
def test_a_service_on_the_unspecified_address(mesh: Mesh, caller: str) -> None:
    """On [::], dialled over either family, from a node with an agent and from one without."""
    node = mesh.a if caller == "a" else mesh.c
    over4 = mesh.ask(node, ANY, mesh.b.ip4, "/service/any")
    over6 = mesh.ask(node, ANY, mesh.b.ip6, "/service/any")
    assert over4["getpeername"][0] == mesh.b.ip4
    assert over6["getpeername"][0] == mesh.b.ip6
    peers = {over4["result"]["peer"], over6["result"]["peer"]}
    if caller == "c":
        assert over4["result"]["peer"] == f"::ffff:{GUARD}"
        assert over6["result"]["peer"] == "::1"
    assert peers <= {f"::ffff:{GUARD}", "::1"}


def test_a_service_on_ipv6_alone(mesh: Mesh) -> None:
    for caller in (mesh.a, mesh.c):
        seen = mesh.ask(caller, SIX, mesh.b.ip6, "/service/six")
        assert seen["result"]["peer"] == "::1"
        assert seen["result"]["local"] == mesh.b.ip6


def test_a_registrys_ping_is_answered_by_the_service_itself(mesh: Mesh) -> None:
    def ping() -> list[str]:
        with Connection(mesh.b.ip4, PEER) as connection:
            lines = [b"PING", b"*1\r\n$4\r\nping", b"INFO", b"HELLO 3"]
            return [connection.command(line).decode() for line in lines]

    before = mesh.ask(mesh.c)["result"]["pings"]
    error = "-ERR unknown command\r\n"
    assert mesh.c.do(ping) == [f"+PONG from {PEER}\r\n", f"+PONG from {PEER}\r\n", error, error]
    assert mesh.ask(mesh.c)["result"]["pings"] == before + 2


def test_pipelines_and_large_bodies(mesh: Mesh) -> None:
    """From a node without a mesh: what is checked is the inbound side alone."""
    sizes = [65_537, 1 << 20, (2 << 20) - 4096]
    bodies = [request("echo", "x" * size) for size in sizes]
    script = str(HERE / "clients/redis_py.py")
    for mode, count in (("default", 20), ("pipeline", 1000)):
        lines = [*bodies, *(request("echo", number) for number in range(count))]
        done = mesh.c.call(
            *(sys.executable, script, mesh.b.ip4, str(DEMO), mode), input="\n".join(lines)
        )
        results = [json.loads(line)["result"] for line in done.stdout.splitlines()]
        assert [len(result) for result in results[:3]] == sizes
        assert results[3:] == list(range(count))


def test_other_protocols_pass(mesh: Mesh) -> None:
    """HTTP at a port that the configuration steers: spliced to the service, byte for byte."""
    page = mesh.b.directory / "page"
    page.write_bytes(bytes(range(256)) * 4096)
    server = mesh.b.python(
        "http", "-m", "http.server", "--bind", mesh.b.ip4, "--directory", str(page.parent),
        str(HTTP),
    )  # fmt: skip
    server.wait_line("Serving HTTP")

    def fetch() -> list[Any]:
        with urllib.request.urlopen(f"http://{mesh.b.ip4}:{HTTP}/page", timeout=10) as reply:
            return [reply.status, reply.read() == page.read_bytes()]

    with mesh.steered(mesh.b) as moved:
        assert mesh.c.do(fetch) == [200, True]
    assert moved[Reason.INBOUND_STEERED] >= 1
    assert f"{GUARD} - - " in server.output


def test_service_is_down(mesh: Mesh) -> None:
    """A MOA request is told so; what has no error reply is reset; and it may come back."""
    mesh.services[PEER].kill()

    def outcome(line: bytes) -> str:
        try:
            with Connection(mesh.b.ip4, PEER) as connection:
                return connection.command(line).decode() or "closed"
        except ConnectionResetError:
            return "reset"

    try:
        reply = mesh.ask(mesh.c)
        assert reply["ec"] == 303
        assert reply["em"] == "not sent: the local service of /service/peer cannot be reached"
        assert mesh.c.do(lambda: outcome(b"PING")) == "reset"
        assert mesh.ask(mesh.a)["ec"] == 303
    finally:
        mesh.start_peer(mesh.b.ip4, PEER)
    wait_until(lambda: mesh.ask(mesh.c)["ec"] == 200, 5, "the service is reached again")
    wait_until(lambda: mesh.ask(mesh.a)["ec"] == 200, 5, "and through two agents")


def _has_ended(pid: int) -> bool:
    """Whether its sockets are closed: they are when the last of its threads has gone."""
    is_alone = len(os.listdir(f"/proc/{pid}/task")) == 1
    return is_alone and psutil.Process(pid).status() == "zombie"


def test_agent_is_killed(mesh: Mesh, measured: Measured) -> None:
    """Packets fall through to the service itself, from the very next connection on."""

    def established() -> list[Any]:
        with Connection(mesh.b.ip4, PEER) as connection:
            first = connection.call(request("x"))["result"]["peer"]
            killed_s = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: _has_ended(pid), 5, "the agent's end")
            with Connection(mesh.b.ip4, PEER) as after:
                second = after.call(request("x"))["result"]["peer"]
            took_s = time.monotonic() - killed_s
            try:
                third = connection.call(request("x"))["result"]["peer"]
            except ConnectionError:
                third = "broken"
        return [first, second, third, took_s]

    pid = mesh.agent_b.process.pid
    try:
        first, second, third, took_s = mesh.c.do(established)
        mesh.agent_b.process.popen.wait(5)
        assert first == GUARD
        assert second == mesh.c.ip4
        assert third == "broken"
        assert mesh.ask(mesh.c)["result"]["peer"] == mesh.c.ip4
        assert mesh.ask(mesh.c, SIX, mesh.b.ip6)["result"]["peer"] == mesh.c.ip6
        assert mesh.ask(mesh.a, host=NOBODY)["result"]["peer"] == mesh.a.ip4
    finally:
        mesh.start_agent_b()
    measured("inbound agent killed -9", next_connection_answered_after_s=took_s)
    assert mesh.ask(mesh.c)["result"]["peer"] == GUARD
    assert mesh.ask(mesh.a, host=NOBODY)["result"]["peer"] in (GUARD, mesh.a.ip4)


def test_agent_is_frozen(mesh: Mesh, measured: Measured) -> None:
    """Its heartbeat grows old: packets fall through, until it beats again."""

    def direct() -> bool:
        try:
            with Connection(mesh.b.ip4, PEER, timeout_s=0.3) as connection:
                peer = connection.call(request("x", uri="/service/peer"))["result"]["peer"]
        except TimeoutError:
            return False
        return bool(peer == mesh.c.ip4)

    frozen_s = time.monotonic()
    mesh.agent_b.process.signal(signal.SIGSTOP)
    try:
        wait_until(lambda: mesh.c.do(direct), 10, "a direct reply")
        took_s = time.monotonic() - frozen_s
    finally:
        mesh.agent_b.process.signal(signal.SIGCONT)
    wait_until(lambda: mesh.ask(mesh.c)["result"]["peer"] == GUARD, 5, "the agent serves again")
    measured("inbound agent frozen (SIGSTOP)", direct_reply_after_s=took_s)
    assert took_s < 3


def test_agent_is_killed_under_load(mesh: Mesh, measured: Measured) -> None:
    """Callers without a mesh and without retry: their broken connections, and nothing more."""
    load = mesh.c.python(
        "load", "-m", "tests.e2e.clients.load", "--target", f"{mesh.b.ip4}:{DEMO}",
        "--rate", "300", "--seconds", "2", "--connections", "8",
    )  # fmt: skip
    _wait_inbound(mesh, 8)
    killed_s = time.monotonic()
    mesh.agent_b.process.kill()
    load.popen.wait(30)
    mesh.start_agent_b()
    report = json.loads(load.output.splitlines()[-1])
    failed_s = [report["started_s"] + failure["at_s"] for failure in report["failures"]]
    last_s = max(failed_s, default=killed_s) - killed_s
    measured(
        "inbound agent killed -9 under load",
        sent=report["sent"],
        failed=len(report["failures"]),
        kinds=list(report["errors"]),
        last_error_after_s=last_s,
    )
    assert report["errors"].keys() <= {"ConnectionError"}
    assert len(report["failures"]) <= 8, "one a connection: the listener goes with the process"
    assert last_s < 0.5
    assert report["last_ok_s"] > 1.8


def test_agent_is_stopped_under_load(mesh: Mesh, measured: Measured) -> None:
    """SIGTERM, and started again: callers with redis-py's defaults notice nothing."""
    steady = mesh.c.python(
        "steady", "-m", "tests.e2e.clients.steady", mesh.b.ip4, str(DEMO), "8", "redis-py"
    )
    _wait_inbound(mesh, 8)
    assert mesh.agent_b.process.stop() == 0
    mesh.start_agent_b()
    assert mesh.ask(mesh.c)["result"]["peer"] == GUARD
    steady.stop()
    seen = json.loads(steady.output.splitlines()[-1])
    measured(
        "inbound agent SIGTERM, redis-py with its default retry",
        ok=seen["ok"],
        failed=len(seen["failures"]),
        slowest_s=seen["slowest_s"],
    )
    assert seen["failures"] == []


def test_the_mesh_is_switched_off(mesh: Mesh) -> None:
    mesh.agent_b.moactl("mesh", "off")
    try:
        assert mesh.ask(mesh.c)["result"]["peer"] == mesh.c.ip4
    finally:
        mesh.agent_b.moactl("mesh", "on")
    assert mesh.ask(mesh.c)["result"]["peer"] == GUARD


def _wait_inbound(mesh: Mesh, count: int) -> None:
    wait_until(
        lambda: mesh.agent_b.status()["connections"]["inbound"] >= count, 10, f"{count} inbound"
    )
