"""After a boot the node is as the operator left it: nothing of the kernel's is there any more."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from installer import mesh_word
from interceptor.cgroup import Cgroup
from interceptor.node import Node
from interceptor.programs import OBJECT_PATH
from tests.e2e.test_install import with_systemd
from tests.support import agents
from tests.support.agents import MOACTL, Agent, restart_agent, start_agent, static_registry
from tests.support.boots import power_cut
from tests.support.cli import json_on, moactl_on
from tests.support.lab import Lab, wait_until
from tests.support.node_picture import Machine

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it attaches eBPF programs"),
    pytest.mark.skipif(not OBJECT_PATH.exists(), reason=f"needs {OBJECT_PATH}: run `make build`"),
]

INSTALLED = "/opt/moa/current/bin/moactl"
OPSD = "/opt/moa/current/bin/moa-opsd"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def agent(lab: Lab) -> Agent:
    """Its configuration names the services' cgroup."""
    node = lab.add_node("a")
    registry = static_registry(lab.directory / "services.toml", {"/service/demo": []})
    scope = f'[scope]\ncgroups = ["{node.services.name}"]'
    return start_agent(node, registry, scope)


def boot(agent: Agent) -> None:
    """The power is cut, and an agent started as at a boot."""
    agent.process.kill()
    power_cut(agent.node, agent.node.directory / "run")
    agent.process = restart_agent(agent).process


def word(agent: Agent) -> Path:
    return agent.node.directory / "state" / mesh_word.NAME


def state(agent: Agent) -> dict[str, Any]:
    found: dict[str, Any] = json_on(agent.node, "status")["node"]
    return found


def scopes(agent: Agent) -> dict[str, tuple[str, bool]]:
    return {s["cgroup"]: (s["state"], s["shadow"]) for s in state(agent)["scopes"]}


def test_mesh_is_on_again_and_cgroups_are_in_and_out_as_they_were(agent: Agent) -> None:
    node = agent.node
    job, watched = Cgroup(f"/{node.lab.id}/job"), Cgroup(f"/{node.lab.id}/watched")
    for cgroup in (job, watched):
        cgroup.create()
    json_on(node, "mesh", "on")
    json_on(node, "mesh", "on", "--cgroup", job.name)
    json_on(node, "mesh", "on", "--cgroup", watched.name, "--shadow")
    json_on(node, "mesh", "off", "--cgroup", node.services.name)
    assert word(agent).stat().st_mode & 0o777 == 0o600
    for _ in range(2):
        boot(agent)
        after = state(agent)
        assert (after["enabled"], after["shadow"], after["serves"]) == (True, False, True)
        assert scopes(agent) == {job.name: ("attached", False), watched.name: ("attached", True)}
        assert after["taken_out"] == [node.services.name]
    json_on(node, "mesh", "on", "--cgroup", node.services.name)
    json_on(node, "mesh", "off", "--cgroup", watched.name)
    boot(agent)
    assert set(scopes(agent)) == {job.name, node.services.name}


def test_cgroup_that_is_made_after_the_boot_is_taken_in_then(agent: Agent) -> None:
    job = Cgroup(f"/{agent.node.lab.id}/job")
    job.create()
    json_on(agent.node, "mesh", "on", "--cgroup", job.name, "--shadow")
    agent.process.kill()
    power_cut(agent.node, agent.node.directory / "run")
    assert job.remove()
    agent.process = restart_agent(agent).process
    assert scopes(agent)[job.name] == ("lost", True)
    job.create()
    wait_until(lambda: scopes(agent)[job.name] == ("attached", True), 10, "it is attached")


@pytest.mark.parametrize("argv", [("off",), ("on", "--confirm-within", "1h")])
def test_what_is_off_or_not_confirmed_is_off_after_a_boot(
    agent: Agent, argv: tuple[str, ...]
) -> None:
    if argv == ("off",):
        json_on(agent.node, "mesh", "on")
    json_on(agent.node, "mesh", *argv)
    boot(agent)
    assert state(agent)["enabled"] is False
    assert state(agent)["confirm_left_s"] is None
    told = moactl_on(agent.node, "doctor", "switch").stdout
    assert "warn  switch" in told
    assert "moactl mesh on" in told


def test_what_was_confirmed_and_what_is_in_shadow_is_so_after_a_boot(agent: Agent) -> None:
    json_on(agent.node, "mesh", "on", "--shadow", "--confirm-within", "1h")
    json_on(agent.node, "mesh", "confirm")
    boot(agent)
    assert (state(agent)["enabled"], state(agent)["shadow"]) == (True, True)


def test_agent_of_which_nobody_said_anything_is_off_after_a_boot(agent: Agent) -> None:
    agent.mesh_on()
    boot(agent)
    assert state(agent)["enabled"] is False


def test_off_before_the_agent_has_started_is_off(agent: Agent) -> None:
    json_on(agent.node, "mesh", "on")
    agent.process.kill()
    power_cut(agent.node, agent.node.directory / "run")
    json_on(agent.node, "mesh", "off")
    agent.process = restart_agent(agent).process
    assert state(agent)["enabled"] is False


def test_agent_does_not_bring_back_what_a_command_is_changing(agent: Agent) -> None:
    """Else `mesh off` during a start would be undone by the word before it."""
    json_on(agent.node, "mesh", "on")
    agent.process.kill()
    power_cut(agent.node, agent.node.directory / "run")
    node = Node(agent.node.root)
    with mesh_word.locked(word(agent)):
        argv = ("-I", "-m", "installer.agent", str(agent.config))
        agent.process = agent.node.python("moa-agent", *argv)
        agent.process.wait_line('"installed"')
        node.switch(on=False)
        said = mesh_word.load(word(agent))
        assert said is not None
        said.say(mesh_word.Switch.OFF)
        mesh_word.save(word(agent), said)
        assert state(agent)["enabled"] is False  # which takes an agent's time and more
        assert not node.was_told()
    agent.process.wait_line('"ready"')
    assert node.was_told()
    assert state(agent)["enabled"] is False


def test_operators_switch_counts_and_not_the_kept_one_while_the_pins_are_there(
    agent: Agent,
) -> None:
    """An agent that is started again must not turn anything that an operator turned since."""
    json_on(agent.node, "mesh", "on")
    Node(agent.node.root).switch(on=False)
    agent.process.stop()
    agent.process = restart_agent(agent).process
    assert state(agent)["enabled"] is False


def test_damaged_file_leaves_the_mesh_off_and_is_written_anew(agent: Agent) -> None:
    json_on(agent.node, "mesh", "on")
    word(agent).write_text("{bad")
    boot(agent)
    assert state(agent)["enabled"] is False
    agent.process.wait_line("mesh stays off")
    assert "is damaged" in moactl_on(agent.node, "doctor", "switch").stdout
    assert "is damaged" in moactl_on(agent.node, "mesh", "on").stderr
    assert word(agent).with_name(mesh_word.BROKEN).read_text() == "{bad"
    boot(agent)
    assert state(agent)["enabled"] is True


def test_full_disk_does_not_keep_the_mesh_from_being_switched_off(agent: Agent) -> None:
    json_on(agent.node, "mesh", "on")
    word(agent).with_suffix(".new").mkdir()  # where the new file would be written
    done = moactl_on(agent.node, "mesh", "off")
    assert done.returncode == 0
    assert "not kept for the next boot" in done.stderr
    assert state(agent)["enabled"] is False


# By moactl install, with the supervisor


def configured(machine: Machine) -> str:
    node = machine.node
    registry = agents.static_registry(node.directory / "services.toml", {"/service/demo": []})
    path = node.directory / "given.toml"
    path.write_text(
        f'[agent]\ncgroup = "{node.agent.name}"\ndrain_timeout_s = 2\n[bpf]\nroot = "{node.root}"\n'
        f'[scope]\ncgroups = ["{node.services.name}"]\n[registry]\n{registry}\n'
    )
    return str(path)


def moactl(machine: Machine, *argv: str, command: str = INSTALLED) -> Any:
    done = machine.call(command, *argv, "-o", "json")
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return json.loads(done.stdout)


def boot_machine(machine: Machine) -> None:
    node = machine.node
    power_cut(node, machine.path("/run/moa"), Cgroup(f"/{node.lab.id}/outside"))
    machine.start("moa-opsd", OPSD, "/etc/moa/agent.toml")
    wait_until(lambda: machine.call(INSTALLED, "conns").returncode == 0, 30, "an agent that serves")


def test_installed_node_serves_after_a_boot_until_it_is_switched_off(lab: Lab) -> None:
    machine = Machine(lab.add_node("a"))
    given = configured(machine)
    moactl(machine, "install", "-c", given, "--yes", command=MOACTL)
    assert moactl(machine, "status")["node"]["serves"]
    boot_machine(machine)
    status = moactl(machine, "status")["node"]
    assert (status["enabled"], status["serves"]) == (True, True)
    again = moactl(machine, "install", "--yes")
    assert {step["verdict"] for step in again["steps"]} == {"done"}

    moactl(machine, "mesh", "off")
    boot_machine(machine)
    assert moactl(machine, "status")["node"]["enabled"] is False
    again = moactl(machine, "install", "--yes")
    assert {s["id"]: s["verdict"] for s in again["steps"]}["switch"] == "keep"
    assert any("moactl mesh on" in text for text in again["notes"])
    assert "warn  switch" in machine.call(INSTALLED, "doctor", "switch").stdout
    moactl(machine, "uninstall", "--yes")
    assert not machine.exists("/var/lib/moa/*")


def test_unit_that_joins_by_a_drop_in_needs_no_word(lab: Lab) -> None:
    """Its cgroup of now may never be there again; what was said of it before is over."""
    machine = Machine(lab.add_node("a"))
    moactl(machine, "install", "-c", configured(machine), "--yes", command=MOACTL)
    unit = Cgroup(f"/{lab.id}/system/demo.service")
    unit.create()
    systemd = with_systemd(machine, unit)

    def kept(*argv: str) -> tuple[bool, bool]:
        done = machine.call(*systemd, INSTALLED, "mesh", *argv)
        assert done.returncode == 0, done.stderr
        said = json.loads(machine.path("/var/lib/moa/mesh.json").read_text())
        return unit.name in said["added"], unit.name in said["taken_out"]

    assert kept("on", "--cgroup", unit.name) == (True, False)
    assert kept("join", "demo") == (False, False)
    assert kept("off", "--cgroup", unit.name) == (False, True)
    assert kept("join", "demo") == (False, False)
    assert kept("on", "--cgroup", unit.name) == (True, False)
    assert kept("leave", "demo") == (False, False)


def test_install_judges_the_switch_by_the_kernel(lab: Lab) -> None:
    """As when a boot took it and no agent of ours brought it back."""
    machine = Machine(lab.add_node("a"))
    moactl(machine, "install", "-c", configured(machine), "--yes", command=MOACTL)
    Node(machine.node.root).switch(on=False)
    again = moactl(machine, "install", "--yes")
    assert {s["id"]: s["verdict"] for s in again["steps"]}["switch"] == "todo"
    assert moactl(machine, "status")["node"]["enabled"] is True

    # Installed by a version that kept nothing.
    machine.path("/var/lib/moa/mesh.json").unlink()
    moactl(machine, "install", "--yes")
    assert machine.exists("/var/lib/moa/mesh.json")
    machine.path("/var/lib/moa/mesh.json").unlink()
    Node(machine.node.root).switch(on=False)
    again = moactl(machine, "install", "--yes")
    assert {s["id"]: s["verdict"] for s in again["steps"]}["switch"] == "keep"
    assert any("moactl mesh on" in text for text in again["notes"])
