"""Units join and leave: which may, by which name, and what is said of a drop-in that stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from installer import membership
from installer.membership import MembershipError
from installer.plan import run
from installer.plan.site import Site
from interceptor.node import Node

_SYSTEMCTL = """#!/bin/sh
# Answers with the file of the unit that is asked for, and with its slice as drop-ins have it.
case "$1" in
show)
    for unit; do :; done
    name=$(readlink -f "$UNITS/$unit")
    [ -f "$name" ] || { echo LoadState=not-found; exit; }
    cat "$name"
    for link in "$UNITS"/*; do
        [ "$(readlink -f "$link")" = "$name" ] || continue
        grep -h ^Slice= "$ETC/${link##*/}.d/50-moa-mesh.conf" 2>/dev/null
    done
    ;;
esac
exit 0
"""


class Machine:
    """A root of its own, and systemd's answers for it."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.etc = self.root / "etc/systemd/system"
        self.etc.mkdir(parents=True)
        self.units = directory / "units"
        self.units.mkdir()
        self._node = Node(directory / "pins")

    def unit(self, name: str, **said: str) -> None:
        lines = {"Id": name, "Names": name, "LoadState": "loaded", "Slice": "system.slice", **said}
        self.units.joinpath(name).write_text("".join(f"{k}={v}\n" for k, v in lines.items()))

    def join(self, name: str) -> list[str]:
        return self._change(membership.join, name)

    def leave(self, name: str) -> list[str]:
        return self._change(membership.leave, name)

    def drop_in(self, unit: str) -> Path:
        return self.etc / f"{unit}.d/50-moa-mesh.conf"

    @property
    def manifest(self) -> set[str]:
        return set(self._site().manifest.entries)

    def _change(
        self, change: Callable[[membership.Unit, Site, Node], list[str]], name: str
    ) -> list[str]:
        site = self._site()
        with site.locked():
            return change(membership.look(name), site, self._node)

    def _site(self) -> Site:
        site = Site(self.root)
        run.load(site)
        return site


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    command = tmp_path / "bin/systemctl"
    command.parent.mkdir()
    command.write_text(_SYSTEMCTL)
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    monkeypatch.setenv("UNITS", str(made.units))
    monkeypatch.setenv("ETC", str(made.etc))
    return made


def test_joins_and_leaves_without_a_trace(machine: Machine) -> None:
    machine.unit("nginx.service")
    assert machine.join("nginx") == ["nginx.service will be started in moa-mesh.slice"]
    assert "Slice=moa-mesh.slice" in machine.drop_in("nginx.service").read_text()
    path = "/etc/systemd/system/nginx.service.d"
    assert machine.leave("nginx") == [f"removed: {path}/50-moa-mesh.conf", f"removed: {path}"]
    assert (list(machine.etc.iterdir()), machine.manifest) == ([], set())
    assert machine.leave("nginx") == ["nginx.service was not in the mesh"]


def test_unit_is_the_same_by_every_name(machine: Machine) -> None:
    machine.unit("ssh.service", Names="sshd.service ssh.service")
    machine.units.joinpath("sshd.service").symlink_to("ssh.service")
    assert machine.join("sshd") == ["ssh.service will be started in moa-mesh.slice"]
    assert machine.drop_in("ssh.service").exists()
    machine.leave("ssh")
    assert (list(machine.etc.iterdir()), machine.manifest) == ([], set())


def test_drop_in_of_an_alias_is_removed_as_well(machine: Machine) -> None:
    """Earlier versions wrote it for the name that was given."""
    machine.unit("sshd.service")
    machine.join("sshd")
    machine.unit("ssh.service", Names="sshd.service ssh.service")
    machine.units.joinpath("sshd.service").unlink()
    machine.units.joinpath("sshd.service").symlink_to("ssh.service")
    machine.leave("ssh")
    assert (list(machine.etc.iterdir()), machine.manifest) == ([], set())


def test_instance_of_a_template_joins(machine: Machine) -> None:
    """systemd.resource-control(5): by default its slice is one that nobody wrote."""
    machine.unit("system-demo.slice", FragmentPath="", DropInPaths="")
    machine.unit("demo@5000.service", Slice="system-demo.slice")
    assert machine.join("demo@5000") == ["demo@5000.service will be started in moa-mesh.slice"]


@pytest.mark.parametrize(
    ("slice_name", "said", "cgroup"),
    [
        ("system-demo.slice", {"DropInPaths": "/etc/x.conf"}, "/system.slice/system-demo.slice"),
        ("system-demo.slice", {"FragmentPath": "/run/x"}, "/system.slice/system-demo.slice"),
        ("web-api-v1.slice", {}, "/web.slice/web-api.slice/web-api-v1.slice"),
        ("odd.slice", {"ControlGroup": "/elsewhere/odd.slice"}, "/elsewhere/odd.slice"),
        ("-.slice", {}, ""),
    ],
)
def test_unit_in_a_slice_of_its_own_is_refused_with_its_cgroup(
    machine: Machine, slice_name: str, said: dict[str, str], cgroup: str
) -> None:
    machine.unit(slice_name, **said)
    machine.unit("demo@5000.service", Slice=slice_name)
    with pytest.raises(MembershipError, match="whose limits it would lose") as refused:
        machine.join("demo@5000")
    assert f"--cgroup {cgroup}/demo@5000.service," in refused.value.next_step
    assert list(machine.etc.iterdir()) == []


@pytest.mark.parametrize("own", ["moa-opsd", "moa-agent", "moa-watcher", "moa-lookup"])
def test_units_of_ours_are_refused(machine: Machine, own: str) -> None:
    machine.unit(f"{own}.service")
    with pytest.raises(MembershipError, match="part of MOA Interceptor"):
        machine.join(own)
    assert list(machine.etc.iterdir()) == []


def test_drop_in_that_was_changed_stays_and_is_told(machine: Machine) -> None:
    machine.unit("nginx.service")
    machine.join("nginx")
    drop_in = machine.drop_in("nginx.service")
    drop_in.write_text(f"{drop_in.read_text()}# x\n")
    known = machine.manifest
    with pytest.raises(MembershipError, match=r"50-moa-mesh.conf stays.* will be started in moa-"):
        machine.leave("nginx")
    assert drop_in.exists()
    assert machine.manifest == known
    drop_in.write_text("# nothing of ours\n")
    (told,) = machine.leave("nginx")
    assert "50-moa-mesh.conf stays" in told
    assert machine.manifest == known
    assert "50-moa-mesh.conf is yours and was kept" in machine.join("nginx")[0]
    drop_in.unlink()
    machine.leave("nginx")
    assert machine.manifest == set()


def test_what_else_is_in_the_directory_stays(machine: Machine) -> None:
    machine.unit("nginx.service")
    machine.join("nginx")
    own = machine.drop_in("nginx.service").with_name("own.conf")
    own.write_text("[Service]\n")
    removed, left = machine.leave("nginx")
    assert removed == "removed: /etc/systemd/system/nginx.service.d/50-moa-mesh.conf"
    assert left == "left: /etc/systemd/system/nginx.service.d: holds own.conf"
