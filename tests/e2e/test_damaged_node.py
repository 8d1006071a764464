"""An installation that was damaged on a real node: the mesh is left all the same, and mended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interceptor.programs import OBJECT_PATH
from tests.support.agents import MOACTL
from tests.support.lab import Lab
from tests.support.node_picture import Machine, differences
from tests.support.traces import assert_same, look

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it attaches eBPF programs"),
    pytest.mark.skipif(not OBJECT_PATH.exists(), reason=f"needs {OBJECT_PATH}: run `make build`"),
]

INSTALLED = "/opt/moa/current/bin/moactl"
MANIFEST = "/var/lib/moa/install/manifest.json"


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Lab() as lab:
        yield Machine(lab.add_node("a"))


@pytest.fixture
def config(machine: Machine) -> str:
    """What an operator would give with -c: this lab's own pins and cgroup."""
    node = machine.node
    path = node.directory / "given.toml"
    path.write_text(
        f'[agent]\ncgroup = "{node.agent.name}"\ndrain_timeout_s = 2\n'
        f'[bpf]\nroot = "{node.root}"\n[scope]\ncgroups = ["{node.services.name}"]\n'
    )
    return str(path)


def moactl(machine: Machine, *argv: str, command: str = MOACTL) -> Any:
    """The JSON of a call that succeeds."""
    done = machine.call(command, *argv, "-o", "json")
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return json.loads(done.stdout)


def assert_is_off(machine: Machine, before: dict[str, Any], traces: Any) -> None:
    assert_same(machine.node.lab, traces)
    assert differences(before, machine.picture()) == {}


def test_uninstall_with_a_damaged_manifest_takes_the_node_out_of_the_mesh(
    machine: Machine, config: str
) -> None:
    machine.call(MOACTL, "version")
    before, traces = machine.picture(), look(machine.node.lab)
    moactl(machine, "install", "-c", config, "--yes")
    machine.path(MANIFEST).write_text("")
    done = machine.call(INSTALLED, "install", "status")
    assert done.returncode == 0, done.stderr
    assert "moactl uninstall goes without it" in done.stdout
    gone = moactl(machine, "uninstall", "--yes", command=INSTALLED)
    assert any(text.startswith("process ") for text in gone["removed"])
    # It was given whole, and nobody knows that any more.
    left = "/etc/moa/agent.toml"
    assert [text.partition(":")[0] for text in gone["left"]] == [left, "/etc/moa"]
    machine.path(left).unlink()
    machine.path("/etc/moa").rmdir()
    assert_is_off(machine, before, traces)


def test_uninstall_on_a_full_disk(machine: Machine, config: str) -> None:
    """State of the agent elsewhere: its removal would make room."""
    given = Path(config)
    given.write_text(given.read_text().replace("[agent]", '[agent]\nstate_dir = "/var/custom"'))
    made = machine.call("mount", "-t", "tmpfs", "-o", "size=2m", "none", "/var/lib")
    assert made.returncode == 0, made.stderr
    machine.call(MOACTL, "version")
    before, traces = machine.picture(), look(machine.node.lab)
    moactl(machine, "install", "-c", config, "--yes")
    filled = machine.call("dd", "if=/dev/zero", "of=/var/lib/fill", "bs=1k")
    assert "No space left" in filled.stderr
    gone = moactl(machine, "uninstall", "--yes", command=INSTALLED)
    assert gone["left"] == []
    assert not machine.exists("/var/lib/moa")
    assert_is_off(machine, before, traces)


@pytest.mark.parametrize("gone", [False, True], ids=["broken", "gone"])
def test_uninstall_without_a_configuration_knows_its_directories(
    machine: Machine, config: str, gone: bool
) -> None:
    given = Path(config)
    own = '[agent]\nruntime_dir = "/run/custom"\nstate_dir = "/var/lib/custom"'
    given.write_text(given.read_text().replace("[agent]", own))
    machine.call(MOACTL, "version")
    before, traces = machine.picture(), look(machine.node.lab)
    moactl(machine, "install", "-c", config, "--yes")
    assert machine.exists("/run/custom")
    assert machine.exists("/var/lib/custom")
    if gone:
        machine.path("/etc/moa/agent.toml").unlink()
    else:
        with machine.path("/etc/moa/agent.toml").open("a") as file:
            file.write("broken = [\n")
    done = machine.call(INSTALLED, "uninstall", "--yes", "--purge", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert "the directories of the last install" in done.stderr
    told = json.loads(done.stdout)
    assert (told["left"], told["agent_pids"]) == ([], [])
    assert_is_off(machine, before, traces)


def test_environment_after_a_power_cut_is_made_again(machine: Machine, config: str) -> None:
    """Files that were written and not flushed are empty then."""
    machine.call(MOACTL, "version")
    before, traces = machine.picture(), look(machine.node.lab)
    done = machine.call(MOACTL, "install", "-c", config, "--yes", "--no-start")
    assert done.returncode == 0, done.stderr
    (tree,) = machine.path("/opt/moa/versions").iterdir()
    for path in (tree / "FILES", *(p for p in (tree / "bin").iterdir() if not p.is_symlink())):
        path.write_bytes(b"")
    moactl(machine, "install", "-c", config, "--yes")
    assert moactl(machine, "status", command=INSTALLED)["node"]["serves"]
    gone = moactl(machine, "uninstall", "--yes", command=INSTALLED)
    assert gone["left"] == []
    assert_is_off(machine, before, traces)
