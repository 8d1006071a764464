"""The agent and its registry in Redis: routes follow it when it speaks and stay when it does not.

Only the registry says here what is intercepted; the configuration names no destination.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from interceptor.cgroup import Cgroup
from tests.e2e.clients.raw import DEMO, Connection, names, request
from tests.e2e.conftest import Measured
from tests.support.agents import MOACTL, Agent, start_service, write_config
from tests.support.lab import REPO, Lab, LabNode, Running, wait_until

pytestmark = pytest.mark.e2e

PORT, REDIS_PORT = 5000, 6379


@dataclass(slots=True)
class Mesh:
    """Callers on `a`, services on `b` and `c` that register themselves, Redis on `r`."""

    a: LabNode
    b: LabNode
    c: LabNode
    r: LabNode
    redis: Running = field(init=False)
    agent: Agent = field(init=False)
    services: dict[str, Running] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"redis://{self.r.ip4}:{REDIS_PORT}/0"

    def start_redis(self, *, empty: bool = False) -> None:
        data = self.r.directory / "redis"
        if empty:
            shutil.rmtree(data)
        data.mkdir(exist_ok=True)
        self.redis = self.r.start(
            "redis", "redis-server", "--bind", self.r.ip4, "--port", str(REDIS_PORT),
            "--dir", str(data), "--appendonly", "yes", "--save", "", "--protected-mode", "no",
        )  # fmt: skip
        self.redis.wait_line("Ready to accept connections")

    def start_agent(self) -> None:
        config = write_config(self.a, f'kind = "redis"\nurl = "{self.url}"')
        lines = [line for line in config.read_text().splitlines() if "include" not in line]
        config.write_text("\n".join(lines))
        process = self.a.python("moa-agent", "-I", "-m", "installer.agent", str(config))
        self.agent = Agent(self.a, config, process)
        process.wait_line('"ready"')

    def serve(self, node: LabNode) -> None:
        """Start a service that registers itself; it does so before it says that it is ready."""
        script = str(REPO / "tests/samples/demo_service.py")
        self.services[node.name] = node.python(
            f"service-{node.name}", script, "--host", node.ip4, "--port", str(PORT),
            "--name", node.name, "--register", self.url,
        )  # fmt: skip
        self.services[node.name].wait_line("ready")

    def moactl(self, *argv: str) -> Any:
        done = self.a.call(
            *(MOACTL, "-c", str(self.agent.config), *argv, "-o", "json"),
            cgroup=Cgroup(f"/{self.a.lab.id}/outside"),
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def answering(self, dialled: LabNode | None = None) -> set[str]:
        host = (dialled or self.b).ip4
        return set(self.a.do(lambda: names(host, PORT)))

    def is_routed(self) -> bool:
        """Whether requests go anywhere but straight to who was dialled, however they are shared:
        one instance may be avoided for a while, as it was slow or has just come back."""
        return self.answering(self.b) != {"b"} or self.answering(self.c) != {"c"}

    def redis_reads(self) -> int:
        """How often the switches were read."""
        said = self.r.call("redis-cli", "-h", self.r.ip4, "INFO", "commandstats").stdout
        found = re.search(r"cmdstat_hgetall:calls=(\d+)", said)
        return int(found[1]) if found else 0

    def state(self) -> str:
        return str(self.agent.status()["registry"]["state"])

    def wait_state(self, *states: str) -> float:
        start_s = time.monotonic()
        wait_until(lambda: self.state() in states, 20, f"registry {states}")
        return time.monotonic() - start_s


@pytest.fixture(scope="module")
def module_mesh(lab: Lab) -> Mesh:
    a, b, c, r = (lab.add_node(name) for name in "abcr")
    made = Mesh(a, b, c, r)
    made.start_redis()
    made.serve(made.b)
    made.start_agent()
    made.agent.mesh_on()
    made.serve(made.c)
    return made


@pytest.fixture
def mesh(module_mesh: Mesh) -> Iterator[Mesh]:
    """Redis runs, the agent has heard from it, and both services are registered."""
    yield module_mesh
    if module_mesh.redis.popen.poll() is not None:
        module_mesh.start_redis()
    module_mesh.wait_state("SYNCED")


def follow(dialled: str, wanted: set[str]) -> float:
    """Seconds until the replies on one open connection come from exactly these."""
    start_s = time.monotonic()
    with Connection(dialled, PORT) as connection:

        def seen() -> set[str]:
            replies = [connection.call(request("whoami")) for _ in range(12)]
            return {reply["result"]["name"] for reply in replies if reply["ec"] == 200}

        wait_until(lambda: seen() == wanted, 10, f"replies of {wanted}")
    return time.monotonic() - start_s


def test_services_that_register_themselves(mesh: Mesh, measured: Measured) -> None:
    """One that enters, leaves and enters again is seen on a connection that stays open."""
    b = mesh.b.ip4
    mesh.a.do(lambda: follow(b, {"b", "c"}))
    assert mesh.services["c"].stop() == 0
    left_s = mesh.a.do(lambda: follow(b, {"b"}))
    assert mesh.answering(mesh.c) == {"b"}, "who dials one that has left reaches another"
    mesh.serve(mesh.c)
    entered_s = mesh.a.do(lambda: follow(b, {"b", "c"}))
    measured("a service registers itself", routed_after_s=entered_s, unrouted_after_s=left_s)
    assert entered_s < 1
    assert left_s < 1
    listed = mesh.moactl("service", "show", DEMO)["services"][0]["instances"]
    addresses = {instance["address"] for instance in listed}
    assert addresses == {f"{mesh.b.ip4}:{PORT}", f"{mesh.c.ip4}:{PORT}"}, "their own addresses"


def test_moactl_registers_and_deregisters(mesh: Mesh, measured: Measured) -> None:
    """A service by hand: one instance that is dead, then one that lives, then none."""
    uri, port, dead = "/service/by-hand", 5001, f"{mesh.r.ip4}:1"
    member, dialled = f"{mesh.c.ip4}:{port}", mesh.b.ip4
    start_service(mesh.c, port, uri, "by-hand")

    def until(ec: int) -> float:
        start_s = time.monotonic()
        body = request("whoami", uri=uri)
        with Connection(dialled, PORT) as connection:
            wait_until(lambda: connection.call(body)["ec"] == ec, 10, f"ec {ec}")
        return time.monotonic() - start_s

    took_s = {}
    for argv, ec in (
        (["register", uri, dead], 303),
        (["register", uri, member], 200),
        (["deregister", uri, dead], 200),
        (["deregister", uri, member], 501),  # so says the service at the dialled address
    ):
        mesh.moactl("service", *argv)
        took_s[f"{argv[0]}_{ec}"] = mesh.a.do(partial(until, ec))
    measured("moactl service register, deregister", **took_s)
    assert max(took_s.values()) < 1


def test_a_service_registers_itself_through_the_mesh(mesh: Mesh) -> None:
    """What is no MOA passes: node A is in the mesh, and its service speaks to Redis."""
    mesh.serve(mesh.a)
    try:
        b = mesh.b.ip4
        mesh.a.do(lambda: follow(b, {"a", "b", "c"}))
    finally:
        assert mesh.services.pop("a").stop() == 0
    mesh.a.do(lambda: follow(b, {"b", "c"}))


@pytest.fixture
def told_apart(mesh: Mesh) -> Iterator[None]:
    """Who dials `c` reaches `b` through the agent, and `c` without it; chance decides nothing."""
    drained = (DEMO, f"{mesh.c.ip4}:{PORT}")
    mesh.moactl("instance", "drain", *drained)
    wait_until(lambda: mesh.answering(mesh.c) == {"b"}, 10, "c is drained")
    yield
    mesh.moactl("instance", "ready", *drained)


@pytest.mark.parametrize("target", [["service", DEMO], ["node", "a"]], ids=["service", "node"])
@pytest.mark.usefixtures("told_apart")
def test_switch_in_the_registry_is_obeyed_and_not_forgotten(mesh: Mesh, target: list[str]) -> None:
    direct, routed = {"c"}, {"b"}
    mesh.moactl("switch", "off", *target, "--everywhere", "--why", "a test")
    # Before that the agent need not have read it, and what nobody read can be lost.
    wait_until(lambda: mesh.answering(mesh.c) == direct, 10, "connections go straight")
    assert mesh.moactl("switch", "list")["switches"][-1]["why"] == "a test"
    # Silence is no statement: a registry that lost it switches nothing on.
    mesh.r.call("redis-cli", "-h", mesh.r.ip4, "DEL", "moa:switches")
    read = mesh.redis_reads()
    wait_until(lambda: mesh.redis_reads() > read + 2, 10, "the switches were read again")
    assert mesh.answering(mesh.c) == direct
    mesh.moactl("switch", "on", *target, "--everywhere")
    wait_until(lambda: mesh.answering(mesh.c) == routed, 10, "connections go through the agent")


def test_routes_stay_when_redis_dies(mesh: Mesh, measured: Measured) -> None:
    mesh.redis.kill()
    noticed_s = mesh.wait_state("STALE", "DEGRADED")
    assert mesh.is_routed()
    mesh.start_redis()
    back_s = mesh.wait_state("SYNCED")
    assert mesh.is_routed()
    measured("Redis killed, and started with its data", noticed_s=noticed_s, synced_s=back_s)


def test_routes_stay_when_redis_comes_back_empty(mesh: Mesh) -> None:
    """Forgotten is not deregistered; who lives enters again with its next heartbeat."""
    mesh.redis.kill()
    mesh.wait_state("STALE", "DEGRADED")
    mesh.start_redis(empty=True)
    mesh.wait_state("SYNCED", "DEGRADED")
    assert mesh.is_routed()
    assert mesh.agent.status()["registry"]["instances"] >= 2

    def members() -> int:
        command = ("redis-cli", "-h", mesh.r.ip4, "SCARD", f"moa:service:{{{DEMO}}}")
        return int(mesh.r.call(*command).stdout)

    wait_until(lambda: members() == 2, 10, "both services have registered again")
    assert mesh.is_routed()


def test_agent_restarts_while_redis_is_down(mesh: Mesh, measured: Measured) -> None:
    """From the copy on its disk; not even a killed agent loses it."""
    copy = mesh.a.directory / "state/registry.json"
    members = [f"{node.ip4}:{PORT}" for node in (mesh.b, mesh.c)]
    wait_until(lambda: all(m in copy.read_text() for m in members), 10, "the copy on disk")
    assert mesh.agent.threads() == 1, "a child wrote it"
    mesh.redis.kill()
    mesh.agent.process.kill()
    start_s = time.monotonic()
    mesh.start_agent()
    ready_s = time.monotonic() - start_s
    assert mesh.state() == "STALE"
    assert mesh.is_routed()
    mesh.services["c"].kill()
    assert mesh.answering(mesh.c) == {"b"}, "and it fails over with what it remembers"
    mesh.start_redis()
    mesh.wait_state("SYNCED")
    mesh.serve(mesh.c)
    b = mesh.b.ip4
    mesh.a.do(lambda: follow(b, {"b", "c"}))
    measured("agent started without its Redis", ready_s=ready_s)
    assert ready_s < 5
