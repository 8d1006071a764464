"""An agent dies, and another of the same application takes its callers until it is back.

Node A has a caller without inbound traffic, node B the peer agent, node C the instances and the
registry. The caller dials an address at which nobody listens: only a mesh can answer it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from installer.client import AgentClient, AgentError
from installer.ops_client import OpsClient
from interceptor.cgroup import Cgroup
from interceptor.node import Node
from tests.e2e.clients.raw import DEMO, Connection, call, request
from tests.e2e.conftest import Measured
from tests.kernel import direct_server
from tests.support.agents import start_service, write_config
from tests.support.cli import json_on, moactl_on
from tests.support.lab import Lab, LabNode, Running, wait_until
from tests.support.scripted_agent import make_environment

pytestmark = pytest.mark.e2e

PEER_PORT, REDIS_PORT, DEAD_PORT, ALIVE_PORT, PLAIN_PORT = 15008, 6379, 5999, 5002, 7000
THREADS = 2
ANSWERS = "near-a"


@dataclass(slots=True)
class World:
    """`supervisors` by the name of their node. One crash opens their circuit: an agent that was
    killed stays dead until `revive`."""

    a: LabNode
    b: LabNode
    c: LabNode
    supervisors: dict[str, Running] = field(default_factory=dict)

    def outside(self) -> Cgroup:
        return Cgroup(f"/{self.a.lab.id}/outside")

    def start_redis(self) -> None:
        redis = self.c.start(
            "redis", "redis-server", "--bind", self.c.ip4, "--port", str(REDIS_PORT),
            "--dir", str(self.c.directory), "--save", "", "--protected-mode", "no",
        )  # fmt: skip
        redis.wait_line("Ready to accept connections")

    def configure(self, node: LabNode) -> None:
        write_config(
            node,
            f'kind = "redis"\nurl = "redis://{self.c.ip4}:{REDIS_PORT}/0"',
            f'[peer]\nlisten = ["{node.ip4}:{PEER_PORT}"]\n[ops]\ncrashes = 1\nopen_s = 3600\n',
            f'application = "chat"\nzone = "z{node.name}"',
        )

    def start_supervisor(self, node: LabNode) -> None:
        self.supervisors[node.name] = node.python(
            "moa-opsd", "-I", "-m", "installer.opsd", str(node.directory / "agent.toml"),
            cgroup=self.outside(),
        )  # fmt: skip

    def begin(self, node: LabNode) -> None:
        """Start a supervisor, and wait until its agent serves."""
        self.configure(node)
        self.start_supervisor(node)
        wait_until(partial(self.pid, node), 30, f"an agent serves on {node.name}")

    def mesh_on(self, node: LabNode) -> None:
        kernel = Node(node.root)
        kernel.add_scope(node.services)
        kernel.switch(on=True)

    def pid(self, node: LabNode) -> int:
        """Of the agent that serves there; 0 when none does."""
        try:
            agents = OpsClient(node.directory / "run").status()["agents"]
        except AgentError:
            return 0
        return next((agent["pid"] for agent in agents if agent["state"] == "serving"), 0)

    def end_agent(self, node: LabNode, number: signal.Signals) -> None:
        if pid := self.pid(node):
            os.kill(pid, number)
            wait_until(lambda: not self.pid(node), 15, "it has ended")

    def revive(self, node: LabNode) -> None:
        OpsClient(node.directory / "run").start()
        wait_until(lambda: self.pid(node), 30, "an agent serves")

    def routed(self, node: LabNode) -> int:
        """Requests that its agent has routed."""
        return int(AgentClient.of(node.directory / "run").status()["requests"]["total"])

    def register(self, port: int, zone: str) -> None:
        done = moactl_on(
            self.a, "service", "register", DEMO,
            f"{self.c.ip4}:{port}", "--zone", zone,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def peers(self) -> tuple[list[str], bool]:
        """Node A's fresh peers, and whether they are in use."""
        seen = json_on(self.a, "status")["node"]["peers"]
        return seen["fresh"], seen["in_use"]

    def wait_for_peers(self, *wanted: str) -> None:
        wait_until(lambda: self.peers()[0] == list(wanted), 15, f"fresh peers {wanted}")

    def answer(self) -> str:
        """Who answers a new connection of a caller on A to the dead address; or the error."""

        def action() -> str:
            try:
                return str(call(self.c.ip4, DEAD_PORT, request("whoami"))["result"]["name"])
            except OSError as error:
                return type(error).__name__

        return str(self.a.do(action))

    def steady(self, port: int, mode: str = "short") -> Running:
        """Callers on A, which have a connection for each request if nothing else is said."""
        callers = self.a.python(
            f"steady-{mode}", "-m", "tests.e2e.clients.steady", self.c.ip4, str(port),
            str(THREADS), mode,
        )  # fmt: skip
        callers.wait_line("started")
        return callers


@pytest.fixture(scope="module")
def world(lab: Lab) -> World:
    made = World(lab.add_node("a"), lab.add_node("b"), lab.add_node("c"))
    made.start_redis()
    start_service(made.c, 5001, name="near-a")
    start_service(made.c, 5002, name="near-b")
    for node in (made.a, made.b):
        made.begin(node)
    for port, zone in ((5001, "za"), (5002, "zb"), (DEAD_PORT, "zdead")):
        made.register(port, zone)
    made.mesh_on(made.a)
    wait_until(lambda: made.answer() == ANSWERS, 10, "the agent of A routes")
    made.wait_for_peers(f"{made.b.ip4}:{PEER_PORT}")
    return made


@pytest.fixture
def dead_agent(world: World) -> World:
    """Node A without its agent, from here to the end of the module."""
    world.end_agent(world.a, signal.SIGKILL)
    wait_until(lambda: world.answer() == ANSWERS, 15, "B answers")
    return world


def test_callers_go_to_the_peer_and_come_back(world: World, measured: Measured) -> None:
    steady = world.steady(DEAD_PORT)
    total = world.routed(world.a)
    wait_until(lambda: world.routed(world.a) > total + 20, 10, "A routes")
    assert world.routed(world.b) == 0
    assert world.peers() == ([f"{world.b.ip4}:{PEER_PORT}"], False)
    world.end_agent(world.a, signal.SIGKILL)
    wait_until(lambda: world.routed(world.b) > 100, 10, "B routes")
    assert world.peers()[1]
    seen = json_on(world.b, "conns")["conns"]
    callers = [conn["caller"] for conn in seen if conn["caller"]]
    assert {"agent": f"{world.a.ip4}:{PEER_PORT}", "app": "chat", "zone": "za"} in callers
    world.revive(world.a)
    total = world.routed(world.a)
    wait_until(lambda: world.routed(world.a) > total + 20, 10, "A routes again")
    steady.stop()
    before = world.routed(world.b)
    assert world.answer() == ANSWERS
    assert world.routed(world.b) == before, "new connections are local again"
    seen = json.loads(steady.output.splitlines()[-1])
    assert set(seen["names"]) == {ANSWERS}, "the zone is the caller's, not the peer's"
    measured(
        "agent killed -9, a peer takes its callers",
        ok=seen["ok"],
        failed=len(seen["failures"]),
        slowest_s=seen["slowest_s"],
        through_the_peer=before,
    )
    # What was on its way; and a process that is being killed accepts for some milliseconds more.
    assert len(seen["failures"]) <= 5 * THREADS, seen["failures"]


def test_peer_is_upgraded_under_the_callers_of_another_node(
    dead_agent: World, measured: Measured
) -> None:
    """Both those that stay connected and those that come at the door just then."""
    world = dead_agent
    callers = [world.steady(DEAD_PORT, mode) for mode in ("kept", "short")]
    total, old = world.routed(world.b), world.pid(world.b)
    wait_until(lambda: world.routed(world.b) > total + 50, 10, "B routes")
    last = list(OpsClient(world.b.directory / "run").ask({"do": "restart", "bake_s": 1}))[-1]
    assert last["outcome"] == "upgraded", last
    assert last["moved"] >= THREADS
    assert world.pid(world.b) not in (0, old)
    total = world.routed(world.b)
    wait_until(lambda: world.routed(world.b) > total + 50, 10, "the next one routes")
    ok, failures = 0, []
    for steady in callers:
        steady.stop()
        seen = json.loads(steady.output.splitlines()[-1])
        ok += seen["ok"]
        failures += seen["failures"]
        assert set(seen["names"]) == {ANSWERS}, "the caller's zone moves with its connection"
    measured("a peer is upgraded under callers of another node", ok=ok, failed=len(failures))
    assert failures == []


def test_what_is_no_instance_goes_direct(dead_agent: World) -> None:
    world = dead_agent
    server = world.c.python(
        "plain", "-S", str(Path(direct_server.__file__)), f"{world.c.ip4}:{PLAIN_PORT}"
    )
    server.wait_line("ready")

    def action() -> str:
        with socket.create_connection((world.c.ip4, PLAIN_PORT), timeout=5) as sock:
            return sock.recv(4096).decode()

    assert '"DIRECT"' in world.a.do(action)
    assert world.answer() == ANSWERS


def test_door_is_shut_to_strangers(world: World) -> None:
    def action() -> str:
        try:
            return Connection(world.b.ip4, PEER_PORT).command(b"PING").decode()
        except OSError as error:
            return type(error).__name__

    assert world.a.do(action, cgroup=world.outside()) == "+PONG\r\n"
    assert world.c.do(action) == "ConnectionResetError"


def test_without_the_supervisor_connections_go_direct(dead_agent: World) -> None:
    """Nobody stamps the peers any more: the kernel trusts them for three seconds."""
    world = dead_agent
    assert world.answer() == ANSWERS
    world.supervisors["a"].kill()
    wait_until(lambda: world.answer() == "ConnectionRefusedError", 10, "direct")
    # One that comes anew starts an agent; here that one ends at once.
    broken = make_environment(world.a.directory / "broken", at={"start": "exit"})
    record = world.a.directory / "state" / "opsd.json"
    kept = record.read_text()
    record.write_text(json.dumps({"current": str(broken)}))
    world.start_supervisor(world.a)
    wait_until(lambda: world.answer() == ANSWERS, 10, "the peer again")
    assert not world.pid(world.a)
    record.write_text(kept)


def test_peer_that_dies_is_not_chosen(dead_agent: World) -> None:
    world = dead_agent
    world.end_agent(world.b, signal.SIGKILL)
    world.wait_for_peers()
    assert world.answer() == "ConnectionRefusedError", "direct, to where nobody listens"
    world.revive(world.b)
    wait_until(lambda: world.answer() == ANSWERS, 15, "the peer is back")


def test_peer_that_leaves_is_not_chosen(dead_agent: World) -> None:
    """A drain hangs up on the supervisors first: no caller meets a closed door."""
    world = dead_agent
    steady = world.steady(ALIVE_PORT)
    before = world.routed(world.b)
    wait_until(lambda: world.routed(world.b) > before + 20, 10, "B routes")
    world.end_agent(world.b, signal.SIGTERM)
    world.wait_for_peers()
    assert world.answer() == "ConnectionRefusedError"
    steady.stop()
    seen = json.loads(steady.output.splitlines()[-1])
    assert seen["failures"] == []
    assert set(seen["names"]) == {"near-a", "near-b"}, "through B first, then direct"


def test_uninstall_removes_all_under_a_living_supervisor(world: World) -> None:
    world.end_agent(world.a, signal.SIGKILL)
    assert moactl_on(world.a, "uninstall", "--yes").returncode == 0
    assert not world.a.root.exists()
    assert world.answer() == "ConnectionRefusedError"
    assert world.supervisors["a"].popen.poll() is None
    assert world.supervisors["a"].stop() == 0
    assert not world.a.root.exists()
    assert not Node(world.a.root).is_installed()
