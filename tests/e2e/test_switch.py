"""The mesh is switched off, on and to shadow: for new connections at once, nothing restarts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from interceptor.abi import Reason
from interceptor.cgroup import Cgroup
from interceptor.node import Node
from tests.e2e.clients.raw import Connection, names, request
from tests.support.agents import MOACTL, Agent, start_agent, start_service, static_registry
from tests.support.lab import Lab, LabNode, wait_until

pytestmark = pytest.mark.e2e

PORT, SERVICE = 5000, "/service/demo"
# Callers dial the instance on c, which is drained: whoever is routed comes to b, and to b only.
ROUTED, DIRECT = {"b"}, {"c"}


@dataclass(frozen=True, slots=True)
class Mesh:
    """Callers on `a` dial the instance on `c`; when `b` answers, the agent has chosen it."""

    a: LabNode
    c: LabNode
    agent: Agent

    @property
    def outside(self) -> Cgroup:
        return Cgroup(f"/{self.a.lab.id}/outside")

    @property
    def job(self) -> Cgroup:
        """Beside the services' cgroup, out of the mesh at first."""
        return Cgroup(f"/{self.a.lab.id}/job")

    def moactl(self, *argv: str) -> Any:
        """From a cgroup that is never in the mesh, as an administrator's shell."""
        config = str(self.agent.config)
        done = self.a.call(MOACTL, "-c", config, *argv, "-o", "json", cgroup=self.outside)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def answering(self, cgroup: Cgroup | None = None) -> set[str]:
        return set(self.a.do(lambda: names(self.c.ip4, PORT), cgroup=cgroup))

    def shadowed(self) -> int:
        with Node(self.a.root).maps() as maps:
            return maps.counters()[Reason.CONNECT_SHADOW]


@pytest.fixture(scope="module")
def module_mesh(lab: Lab) -> Mesh:
    a, b, c = (lab.add_node(name) for name in "abc")
    for node in (b, c):
        start_service(node, PORT, name=node.name)
    instances = [f"{b.ip4}:{PORT}", f"{c.ip4}:{PORT}?weight=0"]
    registry = static_registry(lab.directory / "services.toml", {SERVICE: instances})
    return Mesh(a, c, start_agent(a, registry))


@pytest.fixture
def mesh(module_mesh: Mesh) -> Iterator[Mesh]:
    """On for the services' cgroup, by moactl; its agent is the same process all the time."""
    pid = module_mesh.agent.status()["pid"]
    module_mesh.moactl("mesh", "on", "--cgroup", module_mesh.a.services.name)
    module_mesh.moactl("mesh", "on")
    yield module_mesh
    assert module_mesh.agent.status()["pid"] == pid


def test_off_and_on(mesh: Mesh) -> None:
    assert mesh.answering() == ROUTED
    for _ in range(3):
        mesh.moactl("mesh", "off")
        assert mesh.answering() == DIRECT
        mesh.moactl("mesh", "on")
        assert mesh.answering() == ROUTED


def test_shadow_counts_and_changes_nothing(mesh: Mesh) -> None:
    mesh.moactl("mesh", "on", "--shadow")
    before = mesh.shadowed()
    assert mesh.answering() == DIRECT
    assert mesh.shadowed() == before + 1
    mesh.moactl("mesh", "on")
    assert mesh.answering() == ROUTED
    assert mesh.shadowed() == before + 1


def test_one_cgroup_in_and_out(mesh: Mesh) -> None:
    job = mesh.job
    assert mesh.answering(job) == DIRECT
    mesh.moactl("mesh", "on", "--cgroup", job.name)
    assert mesh.answering(job) == ROUTED
    mesh.moactl("mesh", "off", "--cgroup", job.name)
    assert mesh.answering(job) == DIRECT
    assert mesh.answering() == ROUTED, "the other cgroup is still in"


def test_one_cgroup_in_shadow(mesh: Mesh) -> None:
    job = mesh.job
    job.create()
    mesh.moactl("mesh", "on", "--cgroup", job.name, "--shadow")
    before = mesh.shadowed()
    assert mesh.answering(job) == DIRECT
    assert mesh.shadowed() == before + 1
    assert mesh.answering() == ROUTED
    mesh.moactl("mesh", "on", "--cgroup", job.name)
    assert mesh.answering(job) == ROUTED
    mesh.moactl("mesh", "off", "--cgroup", job.name)


def test_established_connections_stay_as_they_are(mesh: Mesh) -> None:
    """Either way: a switch breaks nothing and turns nothing that is open."""

    def follow() -> list[list[str]]:
        seen = []
        routed = Connection(mesh.c.ip4, PORT)
        seen.append(_all_on(routed))
        mesh.moactl("mesh", "off")
        direct = Connection(mesh.c.ip4, PORT)
        seen += [_all_on(routed), _names_on(direct)]
        mesh.moactl("mesh", "on")
        seen += [_all_on(routed), _names_on(direct), _all_on(Connection(mesh.c.ip4, PORT))]
        return seen

    seen = [set(answering) for answering in mesh.a.do(follow)]
    assert seen == [ROUTED, ROUTED, DIRECT, ROUTED, DIRECT, ROUTED]


def _all_on(connection: Connection) -> list[str]:
    """As `_names_on`, until everybody has answered: the slower one is avoided for a while."""
    seen: set[str] = set()

    def is_complete() -> bool:
        seen.update(_names_on(connection))
        return seen >= ROUTED

    wait_until(is_complete, 10, f"replies of {ROUTED}")
    return sorted(seen)


def _names_on(connection: Connection) -> list[str]:
    return [connection.call(request("whoami"))["result"]["name"] for _ in range(20)]


def test_one_service_off_and_on_here(mesh: Mesh) -> None:
    """Not even its connections come to the agent; those that are open go where they dialled."""

    def follow() -> list[list[str]]:
        held = Connection(mesh.c.ip4, PORT)
        seen = [_names_on(held)]
        mesh.moactl("switch", "off", "service", SERVICE, "--why", "it is slow")
        seen += [_names_on(held), names(mesh.c.ip4, PORT)]
        return seen

    seen = [set(answering) for answering in mesh.a.do(follow)]
    assert seen == [ROUTED, DIRECT, DIRECT]
    assert _redirected(mesh) == _redirected(mesh, after=mesh.answering)
    status = mesh.moactl("status")
    assert [s["name"] for s in status["agent"]["switched_off"]] == [SERVICE]
    assert mesh.moactl("switch", "list")["switches"][0]["why"] == "it is slow"
    mesh.moactl("switch", "on", "service", SERVICE)
    assert mesh.answering() == ROUTED


def test_service_that_the_agent_does_not_know(mesh: Mesh) -> None:
    """One that it knows is known also while it is off."""

    def told(name: str) -> str:
        argv = (MOACTL, "-c", str(mesh.agent.config), "switch", "off", "service", name)
        done = mesh.a.call(*argv, cgroup=mesh.outside)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert [told(SERVICE), told(SERVICE)] == ["", ""]
    assert told("nosuch") == "note: the agent here knows no service nosuch\n"
    assert f"did you mean {SERVICE}?" in told("demo")
    for name in (SERVICE, "nosuch", "demo"):
        mesh.moactl("switch", "on", "service", name)


def _redirected(mesh: Mesh, after: Callable[[], object] = lambda: None) -> int:
    after()
    with Node(mesh.a.root).maps() as maps:
        return maps.counters()[Reason.CONNECT_REDIRECTED]


def test_a_switch_that_nobody_confirms_and_one_that_is_confirmed(mesh: Mesh) -> None:
    mesh.moactl("mesh", "off")
    mesh.moactl("mesh", "on", "--confirm-within", "1h")
    assert mesh.answering() == ROUTED
    assert mesh.moactl("status")["node"]["confirm_left_s"] > 3000
    mesh.moactl("mesh", "confirm")
    assert mesh.moactl("status")["node"]["confirm_left_s"] is None
    mesh.moactl("mesh", "off")
    mesh.moactl("mesh", "on", "--confirm-within", "1s")
    wait_until(lambda: not mesh.moactl("status")["node"]["enabled"], 10, "the mesh is off again")
    assert mesh.answering() == DIRECT


def test_a_process_that_moves_into_the_mesh(mesh: Mesh) -> None:
    """The cgroup counts in which a process is when it connects."""

    def move() -> list[list[str]]:
        before = names(mesh.c.ip4, PORT)
        mesh.a.services.add(os.getpid())
        return [before, names(mesh.c.ip4, PORT)]

    before, after = mesh.a.do(move, cgroup=mesh.outside)
    assert (set(before), set(after)) == (DIRECT, ROUTED)
