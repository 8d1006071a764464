"""The real moactl against real pins, with the least agent that the kernel takes for one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from interceptor.programs import OBJECT_PATH
from tests.kernel.mesh import PORT, Mesh
from tests.support import agents
from tests.support.agents import MOACTL
from tests.support.cli import json_on, moactl_on
from tests.support.documented import assert_as_documented
from tests.support.lab import Lab, LabNode, Running, wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it attaches eBPF programs"),
    pytest.mark.skipif(not OBJECT_PATH.exists(), reason=f"needs {OBJECT_PATH}: run `make build`"),
]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def mesh(lab: Lab) -> Mesh:
    """Two nodes and the least agent on the first; nothing in the mesh, switched off."""
    made = Mesh(lab)
    made.start_agent()
    made.include_all()
    agents.write_config(made.node, 'kind = "static"')
    return made


def test_help_is_quick() -> None:
    """A bound on the work and not on the machine: CPU time, best of five."""

    def cpu_s() -> float:
        before = os.times()
        done = subprocess.run([MOACTL, "--help"], capture_output=True, text=True, check=True)
        after = os.times()
        assert "Commands:" in done.stdout
        return (
            after.children_user
            - before.children_user
            + after.children_system
            - (before.children_system)
        )

    assert min(cpu_s() for _ in range(5)) < 0.3


def test_switch_and_scope_from_first_to_last(mesh: Mesh) -> None:
    node, services = mesh.node, mesh.node.services.name
    mesh.serve_far()
    assert mesh.who(mesh.far.ip4) == "DIRECT"

    on = json_on(node, "mesh", "on", "--cgroup", services)
    assert_as_documented("mesh on", on)
    assert on["done"] == [f"cgroup {services} is in the mesh now", "mesh on"]
    assert mesh.who(mesh.far.ip4) == "OUT4"

    again = json_on(node, "mesh", "on", "--cgroup", services)
    assert again["changed"] is False
    assert again["done"] == [f"cgroup {services} was already in the mesh"]

    off = json_on(node, "mesh", "off")
    assert_as_documented("mesh off", off)
    assert (off["changed"], off["enabled"]) == (True, False)
    assert mesh.who(mesh.far.ip4) == "DIRECT"
    assert json_on(node, "mesh", "off")["changed"] is False

    assert json_on(node, "mesh", "on")["done"] == ["mesh on"]
    assert mesh.who(mesh.far.ip4) == "OUT4"
    out = json_on(node, "mesh", "off", "--cgroup", services)
    assert (out["changed"], out["enabled"]) == (True, True)
    assert mesh.who(mesh.far.ip4) == "DIRECT"
    assert json_on(node, "mesh", "off", "--cgroup", services)["changed"] is False


def test_full_path_of_a_cgroup_is_accepted(mesh: Mesh) -> None:
    done = json_on(mesh.node, "mesh", "on", "--cgroup", str(mesh.node.services.path))
    assert done["cgroup"] == mesh.node.services.name


def test_shadow_of_the_node_and_of_a_cgroup(mesh: Mesh) -> None:
    node, services = mesh.node, mesh.node.services.name
    mesh.serve_far()
    shadowed = json_on(node, "mesh", "on", "--cgroup", services, "--shadow")
    assert shadowed["shadow"] is False  # the node's own
    assert mesh.who(mesh.far.ip4) == "DIRECT"
    assert json_on(node, "status")["node"]["scopes"][0]["shadow"] is True
    json_on(node, "mesh", "on", "--cgroup", services)
    assert mesh.who(mesh.far.ip4) == "OUT4"
    assert json_on(node, "mesh", "on", "--shadow")["shadow"] is True
    assert mesh.who(mesh.far.ip4) == "DIRECT"
    counters = json_on(node, "status")["node"]["counters"]
    assert (counters["connect_shadow"], counters["connect_redirected"]) == (2, 1)
    # A cgroup that joins later does not change the node's mode.
    assert json_on(node, "mesh", "on", "--cgroup", services)["shadow"] is True


def test_scope_that_holds_the_caller_is_refused_unless_forced(mesh: Mesh) -> None:
    node = mesh.node
    argv = [MOACTL, "mesh", "on", "--cgroup", node.services.name, "--root", str(node.root)]
    refused = node.call(*argv)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--force" in refused.stderr
    assert json_on(node, "status")["node"]["scopes"] == []
    assert node.call(*argv, "--force").returncode == 0


def test_scope_that_does_not_exist(mesh: Mesh) -> None:
    done = moactl_on(mesh.node, "mesh", "on", "--cgroup", "/no/such.slice")
    assert done.returncode == 1
    assert "does not exist" in done.stderr
    assert "next: moactl" in done.stderr


def test_status_and_doctor_without_an_agent(mesh: Mesh) -> None:
    node = mesh.node
    json_on(node, "mesh", "on", "--cgroup", node.services.name)
    mesh.agent.kill()
    wait_until(lambda: not json_on(node, "status")["node"]["heartbeat"]["fresh"], 10, "old beat")
    status = json_on(node, "status")
    assert_as_documented("status", status)
    assert (status["node"]["enabled"], status["node"]["serves"]) == (True, False)
    assert (status["node"]["listeners"], status["agent"]) == ([], None)
    doctor = moactl_on(node, "doctor", "agent", "stale-pins", "scopes")
    assert doctor.returncode == 1
    assert "FAIL  agent" in doctor.stdout
    assert "warn  stale-pins" in doctor.stdout
    assert "ok    scopes" in doctor.stdout
    noted = moactl_on(node, "mesh", "on")
    assert "no live agent serves" in noted.stderr
    assert noted.stdout == "mesh was already on\n"


def test_tap_shows_decisions_as_they_happen_and_ends_quietly(mesh: Mesh) -> None:
    node = mesh.node
    mesh.serve_far()
    json_on(node, "mesh", "on", "--cgroup", node.services.name)
    tap = start_tap(node)
    mesh.dial(mesh.far.ip4)
    decision = json.loads(tap.wait_line("tap/1"))
    assert_as_documented("tap", decision)
    assert decision["intercepted"] is True
    assert decision["before"] == f"{mesh.far.ip4}:{PORT}"
    assert decision["after"].endswith(":15001")
    assert decision["cgroup"] == node.services.name
    tap.signal(signal.SIGINT)
    assert tap.popen.wait(10) == 0
    assert "Traceback" not in tap.output
    with mesh.kernel.maps() as maps:
        assert not maps.cfg.flags & 4  # nobody listens: the kernel writes no events


def test_tap_ends_after_a_count(mesh: Mesh) -> None:
    mesh.serve_far()
    json_on(mesh.node, "mesh", "on", "--cgroup", mesh.node.services.name)
    tap = start_tap(mesh.node, "--count", "2", "-o", "table")
    for _ in range(5):
        mesh.dial(mesh.far.ip4)
    assert tap.popen.wait(10) == 0
    lines = tap.output.splitlines()
    assert len(lines) == 2
    assert all(f"{mesh.far.ip4}:{PORT} -> 127." in line for line in lines)
    assert all("  redirected  " in line for line in lines)


def start_tap(node: LabNode, *argv: str) -> Running:
    config = str(node.directory / "agent.toml")
    tap = node.start("tap", MOACTL, "tap", "-c", config, "-o", "json", *argv, cgroup=node.agent)
    wait_until(lambda: _events_are_on(node), 10, "tap listens")
    return tap


def _events_are_on(node: LabNode) -> bool:
    from interceptor.node import Node

    with Node(node.root).maps() as maps:
        return bool(maps.cfg.flags & 4)


def test_uninstall_of_half_an_installation(mesh: Mesh) -> None:
    node = mesh.node
    mesh.agent.kill()
    (mesh.kernel.tree.maps / "heartbeat").unlink()
    assert moactl_on(node, "status").returncode == 1
    assert moactl_on(node, "uninstall", "--yes").returncode == 0
    assert not node.root.exists()
