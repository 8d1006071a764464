"""The real installer on a node with files of its own: on with one command, off with one, and
nothing left, also after it was killed in the middle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from installer import node_state
from installer.plan import environment, run
from installer.plan.site import Site
from interceptor.cgroup import Cgroup
from interceptor.node import Node
from interceptor.programs import OBJECT_PATH
from tests.support import agents
from tests.support.agents import MOACTL
from tests.support.documented import assert_as_documented
from tests.support.lab import Lab, wait_until
from tests.support.node_picture import Machine, differences
from tests.support.traces import assert_same, look

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it attaches eBPF programs"),
    pytest.mark.skipif(not OBJECT_PATH.exists(), reason=f"needs {OBJECT_PATH}: run `make build`"),
]

PORT = 5000
SERVICE = "/service/demo"
_LIST_FILES = """
from installer.plan.environment import of_this_process
print(*(place for _, place in of_this_process().files), sep="\\n")
"""
INSTALLED = "/opt/moa/current/bin/moactl"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def machine(lab: Lab) -> Machine:
    lab.add_node("b")
    return Machine(lab.add_node("a"))


@pytest.fixture
def config(machine: Machine) -> str:
    """What an operator would give with -c: this lab's own pins and cgroup."""
    node = machine.node
    far = node.lab.nodes["b"]
    services = node.directory / "services.toml"
    registry = agents.static_registry(services, {SERVICE: [f"{far.ip4}:{PORT}"]})
    path = node.directory / "given.toml"
    path.write_text(
        f'[agent]\ncgroup = "{node.agent.name}"\ndrain_timeout_s = 2\n[bpf]\nroot = "{node.root}"\n'
        f'[scope]\ncgroups = ["{node.services.name}"]\n[registry]\n{registry}\n'
    )
    return str(path)


def moactl(machine: Machine, *argv: str, command: str = MOACTL) -> Any:
    """The JSON of a call that succeeds."""
    done = machine.call(command, *argv, "-o", "json")
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return json.loads(done.stdout)


_SYSTEMCTL = """#!/bin/sh
if [ "$1" = show ]; then
    printf 'LoadState=loaded\\nSlice=system.slice\\nControlGroup=%s\\n' "$UNIT_CGROUP"
fi
echo "$@" >>"$0.calls"
"""


def with_systemd(machine: Machine, unit: Cgroup) -> list[str]:
    """How to run something where systemd answers that a unit runs in this cgroup."""
    directory = machine.node.directory / "bin"
    directory.mkdir(exist_ok=True)
    (directory / "systemctl").write_text(_SYSTEMCTL)
    (directory / "systemctl").chmod(0o755)
    return ["env", f"PATH={directory}:{os.environ['PATH']}", f"UNIT_CGROUP={unit.name}"]


def joins_and_leaves(machine: Machine) -> None:
    """A unit that runs, and goes on to run: only its new connections are others."""
    unit = Cgroup(f"/{machine.node.lab.id}/system/demo.service")
    unit.create()
    environment = with_systemd(machine, unit)
    before = redirected(machine, unit)
    drop_in = machine.path("/etc/systemd/system/demo.service.d/50-moa-mesh.conf")
    for verb, more in (("join", 1), ("leave", 0), ("join", 1)):
        done = machine.call(*environment, INSTALLED, "mesh", verb, "demo", "-o", "json")
        assert done.returncode == 0, done.stderr
        assert_as_documented(f"mesh {verb}", json.loads(done.stdout))
        assert drop_in.exists() == (verb == "join")
        assert redirected(machine, unit) == before + more
        before += more
    calls = (machine.node.directory / "bin/systemctl.calls").read_text()
    assert "daemon-reload" in calls
    assert "restart" not in calls
    refused = machine.call(*environment, INSTALLED, "mesh", "join", "no unit")
    assert refused.returncode == 1
    wait_until(unit.remove, 5, "the unit has ended")
    Cgroup(f"/{machine.node.lab.id}/system").remove()
    wait_until(lambda: unit.name not in scopes(machine), 10, "a cgroup that is gone is forgotten")


def scopes(machine: Machine) -> list[str]:
    state = node_state.read(Node(machine.node.root))
    assert state is not None
    return [scope.cgroup for scope in state.scopes]


def redirected(machine: Machine, cgroup: Cgroup | None = None) -> int:
    """Connections turned to the agent, after one more by an unmodified client."""
    node = machine.node
    far = node.lab.nodes["b"]
    request = json.dumps({"action": SERVICE, "params": {"m": "whoami", "args": []}})
    argv = ("redis-cli", "-h", far.ip4, "-p", str(PORT), "GET", request)
    done = node.call(*argv, cgroup=cgroup)
    assert '"ec": 200' in done.stdout.replace('\\"', '"').replace("'", '"'), (
        done.stdout + done.stderr
    )
    with Node(node.root).maps() as maps:
        counters = {reason.name: count for reason, count in maps.counters().items()}
    return counters["CONNECT_REDIRECTED"]


def test_on_with_one_command_and_off_with_one(machine: Machine, config: str) -> None:
    node = machine.node
    agents.start_service(node.lab.nodes["b"], PORT)
    # The holder of the machine's mounts and what the tools themselves write come first.
    machine.call(MOACTL, "version")
    before, traces = machine.picture(), look(node.lab)
    plan = moactl(machine, "install", "--dry-run", "-c", config)
    assert_as_documented("install", plan)
    assert differences(before, machine.picture()) == {}

    done = moactl(machine, "install", "-c", config, "--yes")
    assert_as_documented("install", done)
    assert {step["verdict"] for step in done["steps"]} <= {"todo", "done"}
    status = moactl(machine, "status", command=INSTALLED)
    assert status["node"]["serves"], status
    assert redirected(machine) == 1
    # Whatever the agent starts of its own kind finds its libraries as well.
    python = f"{Path(INSTALLED).parent}/python3"
    # It can be copied in its turn, as from a package.
    listed = machine.call(python, "-I", "-c", _LIST_FILES).stdout.splitlines()
    expected = {str(place) for _, place in environment.of_this_process().files}
    assert {f for f in expected if ".dist-info" not in f} <= set(listed)
    shown = moactl(machine, "install", "status", command=INSTALLED)
    assert_as_documented("install status", shown)
    assert (shown["complete"], shown["changed"]) == (True, [])

    joins_and_leaves(machine)
    after = redirected(machine)
    moactl(machine, "mesh", "off", command=INSTALLED)
    again = moactl(machine, "install", "--yes", command=INSTALLED)
    assert {step["verdict"] for step in again["steps"] if step["id"] != "switch"} == {"done"}
    # An operator's switch is not turned back by another install.
    assert not moactl(machine, "status", command=INSTALLED)["node"]["enabled"]
    assert redirected(machine) == after

    gone = moactl(machine, "uninstall", "--yes", command=INSTALLED)
    assert_as_documented("uninstall", gone)
    assert (gone["left"], gone["agent_pids"]) == ([], [])
    assert_same(node.lab, traces)
    assert differences(before, machine.picture()) == {}
    assert moactl(machine, "uninstall", "--yes")["removed"] == []


def test_slice_is_stopped_when_no_unit_is_left_in_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd keeps a slice, and its cgroup, when its last unit has ended."""
    node = lab.add_node("a")
    directory = node.directory / "bin"
    directory.mkdir()
    calls = directory / "calls"
    (directory / "systemctl").write_text(f'#!/bin/sh\necho "$@" >>{calls}\n')
    (directory / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")
    site, slices = Site(), {"inner.slice": node.services.name, "outer.slice": f"/{lab.id}"}
    unit = node.start("unit", "sleep", "600", cgroup=node.services)
    events = node.services.path / "cgroup.events"
    wait_until(lambda: "populated 1" in events.read_text(), 5, "the unit runs")
    run.end_slices(site, slices)
    assert not calls.exists()
    assert site.left == ["inner.slice: units run in it, and leave it when they are started again"]
    unit.kill()
    wait_until(lambda: "populated 0" in events.read_text(), 5, "the unit has ended")
    run.end_slices(site, {**slices, "gone.slice": f"/{lab.id}/gone"})
    assert calls.read_text().split("\n")[:2] == ["stop inner.slice", "stop outer.slice"]


# From its first change to its last: the manifest, a copy that is being made, files, the agent that
# puts its programs into the kernel, and the agent that serves.
REACHED = {
    "manifest": "/var/lib/moa/install/manifest.json",
    "copy": "/opt/moa/versions/.new-*",
    "configuration": "/etc/moa/agent.toml",
    "log": "/var/log/moa/moa-opsd.log",
    "pins": "{pins}/v*",
    "agent": "/run/moa/agent.sock",
}


@pytest.mark.parametrize("reached", REACHED)
def test_install_killed_in_the_middle_then_uninstalled(
    machine: Machine, config: str, reached: str
) -> None:
    machine.call(MOACTL, "version")
    before, traces = machine.picture(), look(machine.node.lab)
    started = machine.start("install", MOACTL, "install", "-c", config, "--yes")
    pattern = REACHED[reached].format(pins=machine.node.root)
    wait_until(lambda: machine.exists(pattern), 30, f"{pattern} is there")
    started.kill()
    if reached == "agent":
        assert moactl(machine, "install", "-c", config, "--yes")["notes"] == []
        assert moactl(machine, "status", command=INSTALLED)["node"]["serves"]
    moactl(machine, "uninstall", "--yes")
    assert_same(machine.node.lab, traces)
    assert differences(before, machine.picture()) == {}


def beside(machine: Machine) -> str:
    """Install another version from an environment of its own; its number."""
    version = str(moactl(machine, "version", command=INSTALLED)["version"])
    copy, other = machine.node.directory / "other", f"{version}.post1"
    done = machine.call("cp", "-a", f"/opt/moa/versions/{version}", str(copy))
    assert done.returncode == 0, done.stderr
    (copy / "FILES").unlink()
    (libraries,) = copy.glob("lib/python3*/site-packages")
    own = libraries / f"moa_interceptor-{version}.dist-info"
    for name, old, new in (
        ("METADATA", f"\nVersion: {version}\n", f"\nVersion: {other}\n"),
        ("RECORD", f"moa_interceptor-{version}.", f"moa_interceptor-{other}."),
    ):
        (own / name).write_text((own / name).read_text().replace(old, new))
    own.rename(libraries / f"moa_interceptor-{other}.dist-info")
    done = machine.call(str(copy / "bin/moactl"), "install", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"moactl agent upgrade --to {other}" in done.stdout + done.stderr
    return other


def test_another_version_beside_and_an_upgrade_to_it(machine: Machine, config: str) -> None:
    agents.start_service(machine.node.lab.nodes["b"], PORT)
    machine.call(MOACTL, "version")
    before, traces = machine.picture(), look(machine.node.lab)
    moactl(machine, "install", "-c", config, "--yes")
    version = moactl(machine, "status", command=INSTALLED)["agent"]["version"]
    other = beside(machine)
    assert moactl(machine, "status", command=INSTALLED)["agent"]["version"] == version
    for argv, expected in ((("upgrade", "--to", other), other), (("rollback",), version)):
        done = machine.call(INSTALLED, "agent", *argv, "--bake", "0")
        assert done.returncode == 0, done.stdout + done.stderr
        assert moactl(machine, "status", command=INSTALLED)["agent"]["version"] == expected
        linked = machine.call("readlink", "/opt/moa/current").stdout.strip()
        assert linked == f"versions/{expected}"
        assert redirected(machine) > 0
    listed = moactl(machine, "agent", "versions", command=INSTALLED)["versions"]
    assert [(v["version"], v["running"], v["previous"]) for v in listed] == [
        (version, True, False),
        (other, False, True),
    ]
    gone = moactl(machine, "uninstall", "--yes", command=INSTALLED)
    assert (gone["left"], gone["agent_pids"]) == ([], [])
    assert_same(machine.node.lab, traces)
    assert differences(before, machine.picture()) == {}


def test_second_install_says_what_the_running_agent_does_not_know(machine: Machine) -> None:
    """With the built-in configuration of a node without systemd, but for pins and cgroup."""
    node = machine.node
    late, missing = Cgroup(f"/{node.lab.id}/late"), f"/{node.lab.id}/missing"
    late.create()
    given = node.directory / "given.toml"
    mine = f'[agent]\ncgroup = "{node.agent.name}"\n[bpf]\nroot = "{node.root}"\n'
    given.write_text(f'{mine}[scope]\ncgroups = ["{node.services.name}", "{missing}"]\n')
    first = moactl(machine, "install", "-c", str(given), "--yes")
    assert [n for n in first["notes"] if "agent restart" in n] == []
    (told,) = (n for n in first["notes"] if "is not in the mesh" in n)
    assert told.startswith(f"cgroup {missing} is not in the mesh: it does not exist")

    given.write_text(f'{mine}[scope]\ncgroups = ["{node.services.name}", "{late.name}"]\n')
    second = moactl(machine, "install", "-c", str(given), "--yes", command=INSTALLED)
    assert any("reads it at: moactl agent restart" in note for note in second["notes"])
    assert any(
        note.startswith(f"cgroup {late.name} is not in the mesh") for note in second["notes"]
    )
    # Not only when the file was just changed.
    again = moactl(machine, "install", "--yes", command=INSTALLED)
    assert any("moactl agent restart" in note for note in again["notes"])
    done = machine.call(INSTALLED, "agent", "restart", "--bake", "0")
    assert done.returncode == 0, done.stderr
    assert late.name in scopes(machine)
    assert moactl(machine, "install", "--yes", command=INSTALLED)["notes"] == []
    moactl(machine, "mesh", "off", "--cgroup", late.name, command=INSTALLED)
    (told,) = moactl(machine, "install", "--yes", command=INSTALLED)["notes"]
    assert "an operator took it out" in told


def test_install_says_which_cgroups_are_refused(machine: Machine) -> None:
    """The root, which holds the agent itself, and one with a login."""
    node = machine.node
    login, sshd = Cgroup(f"/{node.lab.id}/login"), node.directory / "sshd"
    shutil.copy("/bin/sleep", sshd)
    node.start("sshd", str(sshd), "600", cgroup=login)
    wait_until(lambda: list(login.processes()), 5, "it is in its cgroup")
    given = node.directory / "given.toml"
    given.write_text(
        f'[agent]\ncgroup = "{node.agent.name}"\n[bpf]\nroot = "{node.root}"\n'
        f'[scope]\ncgroups = ["/", "{login.name}"]\n'
    )
    notes = moactl(machine, "install", "-c", str(given), "--yes")["notes"]
    assert any(note.startswith("cgroup / is not in the mesh: it holds the agent") for note in notes)
    assert any(
        f"{login.name} is not in the mesh: cgroup {login.name}: holds sshd" in n for n in notes
    )
    assert scopes(machine) == []
