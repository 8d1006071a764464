"""The doctor on this kernel, and the state that pins alone show."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from installer import node_state
from installer.config import Config
from installer.config_sections import Agent, Bpf
from installer.doctor import check as doctor_check
from installer.doctor import probes as doctor_probes
from installer.doctor.check import Result, Status
from installer.doctor.checks import ALL_CHECKS
from installer.doctor.probes import Probes
from installer.node_state import Installed
from interceptor import libbpf, probe
from interceptor.cgroup import Cgroup
from interceptor.libbpf import AttachType
from interceptor.probe import Features, Support
from tests.kernel.mesh import PORT, Mesh
from tests.support.lab import Lab, LabNode, Running, wait_until

ONE_INSTRUCTION_PAIR = bytes.fromhex("b7000000010000009500000000000000")  # r0 = 1; exit
SOCK_ADDR = 18


def probes_of(node: LabNode) -> Probes:
    config = Config(
        agent=Agent(cgroup=node.agent.name, runtime_dir=node.directory / "run"),
        bpf=Bpf(root=node.root),
    )
    return doctor_probes.of_this_machine(config, None, (), node.root)


def results(probes: Probes, *ids: str) -> dict[str, Result]:
    chosen = [check for check in ALL_CHECKS if not ids or check.id in ids]
    return {f.check.id: f.result for f in doctor_check.run(chosen, probes)}


def state_of(mesh: Mesh) -> Installed:
    state = node_state.read(mesh.kernel)
    assert state is not None
    return state


@contextmanager
def stranger_on(cgroup: Cgroup) -> Iterator[None]:
    """Somebody else's program on connect4 of a cgroup."""
    program = libbpf.program_load(SOCK_ADDR, AttachType.CONNECT4, ONE_INSTRUCTION_PAIR)
    target = os.open(cgroup.path, os.O_RDONLY)
    link = libbpf.link_create(program, target, AttachType.CONNECT4, cgroup.name)
    try:
        yield
    finally:
        for fd in (link, target, program):
            os.close(fd)


def hold(node: LabNode, role: str, host: str) -> Running:
    """Start one end of a connection that lasts."""
    script = str(Path(__file__).parent / "holder.py")
    running = node.python(role, script, role, host, str(PORT))
    running.wait_line("holds")
    return running


def test_this_kernel_has_every_hook_and_map(lab: Lab) -> None:
    found = results(probes_of(lab.add_node("a")))
    kernel = {k: r for k, r in found.items() if k.startswith(("hook-", "map-"))}
    assert len(kernel) == len(AttachType) + 3
    assert {r.status for r in kernel.values()} == {Status.OK}, kernel
    assert found["libbpf"].seen.startswith("v1.")


def test_trying_the_hooks_leaves_nothing(lab: Lab) -> None:
    node = lab.add_node("a")
    results(probes_of(node))
    assert not Cgroup(f"/moa-probe-{os.getpid()}").exists()
    assert not node.root.exists()


def test_hook_that_this_kernel_would_lack(lab: Lab) -> None:
    real = probe.probe_hooks()
    lacking = Features(
        tuple(
            Support(s.name, False, "attach: EINVAL") if s.name == "sk_lookup" else s
            for s in real.hooks
        )
    )
    probes = replace(probes_of(lab.add_node("a")), hooks=lambda: lacking)
    found = results(probes, "hook-sk-lookup", "hook-connect4")
    assert found["hook-sk-lookup"].status is Status.WARN
    assert "EINVAL" in found["hook-sk-lookup"].seen
    assert found["hook-connect4"].status is Status.OK


def test_node_that_serves(mesh: Mesh) -> None:
    state = state_of(mesh)
    assert state.serves
    assert state.heartbeat.fresh
    assert set(state.listeners) == {"out4", "out6", "in4", "in6"}
    assert (state.outbound_port, state.inbound_port) == (15001, 15006)
    assert state.agent_cgroup == mesh.node.agent.name
    assert mesh.agent.pid in state.agent_pids
    assert [(s.cgroup, s.state) for s in state.scopes] == [(mesh.node.services.name, "attached")]
    found = results(probes_of(mesh.node), "scopes", "stale-pins")
    assert {r.status for r in found.values()} == {Status.OK}, found


def test_hung_agent(mesh: Mesh) -> None:
    mesh.pulse("off")
    wait_until(lambda: not state_of(mesh).heartbeat.fresh, 10, "heartbeat is old")
    found = results(probes_of(mesh.node), "agent")["agent"]
    assert found.status is Status.FAIL
    assert "last heartbeat" in found.seen
    assert not state_of(mesh).serves


def test_killed_agent_leaves_stale_pins(mesh: Mesh) -> None:
    mesh.agent.kill()
    assert state_of(mesh).listeners == ()
    wait_until(lambda: not state_of(mesh).heartbeat.fresh, 10, "heartbeat is old")
    found = results(probes_of(mesh.node), "stale-pins", "agent")
    assert found["stale-pins"].status is Status.WARN
    assert "moactl uninstall" in found["stale-pins"].todo
    assert found["agent"].status is Status.FAIL


def test_lost_scope(mesh: Mesh) -> None:
    scope = Cgroup(f"/{mesh.lab.id}/short-lived")
    scope.create()
    mesh.kernel.add_scope(scope)
    assert scope.remove()
    found = results(probes_of(mesh.node), "scopes")["scopes"]
    assert found.status is Status.WARN
    assert f"lost: {scope.name}" in found.seen
    assert f"moactl mesh off --cgroup {scope.name}" in found.todo


def test_program_of_a_stranger_is_named_and_ours_are_not(mesh: Mesh) -> None:
    assert mesh.lab.id not in results(probes_of(mesh.node), "foreign")["foreign"].seen
    with stranger_on(mesh.node.services):
        found = results(probes_of(mesh.node), "foreign")["foreign"]
    assert found.status is Status.WARN
    assert f"on connect4 of cgroup {mesh.node.services.name}" in found.seen
    assert "moa_probe (id " in found.seen


def test_program_above_a_scope_is_named(mesh: Mesh) -> None:
    parent = Cgroup(f"/{mesh.lab.id}")
    with stranger_on(parent):
        found = results(probes_of(mesh.node), "foreign")["foreign"]
    assert f"on connect4 of cgroup {parent.name}" in found.seen


def test_half_of_an_installation(mesh: Mesh) -> None:
    (mesh.kernel.tree.current / "maps" / "heartbeat").unlink()
    found = results(probes_of(mesh.node), "stale-pins", "agent", "scopes")
    assert "is incomplete" in found["stale-pins"].seen
    assert found["agent"].status is Status.FAIL
    assert found["agent"].todo.startswith("moactl uninstall")
    assert mesh.kernel.uninstall().removed


def test_nothing_installed_is_found_and_nothing_made(lab: Lab) -> None:
    node = lab.add_node("a")
    found = results(probes_of(node), "agent", "stale-pins", "scopes")
    assert found["agent"].seen == "nothing is installed"
    assert found["stale-pins"].status is Status.OK
    assert not node.root.exists()


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_established_connections_past_the_agent_are_counted(mesh: Mesh, family: str) -> None:
    """One that was there before counts, one that is intercepted does not."""
    host = getattr(mesh.far, family)
    hold(mesh.far, "listen", host)
    older = hold(mesh.node, "dial", host)
    assert state_of(mesh).bypassing == ()  # nothing is included yet
    mesh.include(host)
    hold(mesh.node, "dial", host)
    (found,) = state_of(mesh).bypassing
    assert (found.pid, found.count) == (older.pid, 1)
    assert found.cgroup == mesh.node.services.name
    assert found.remotes[0].endswith(f":{PORT}")
    mesh.exclude(host)
    assert state_of(mesh).bypassing == ()
