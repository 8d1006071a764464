"""A systemd unit joins the mesh, and leaves it: at once, and for its next starts by a drop-in.

The drop-in puts the unit into `moa-mesh.slice`, which is in the mesh, so that not even its
first connection after a restart goes past it. Until that restart the unit's present cgroup is
in the mesh by itself. A unit with a slice of its own keeps it: its limits are there.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from installer.plan import steps, units
from installer.plan.processes import systemctl
from installer.plan.site import Site
from interceptor.cgroup import Cgroup
from interceptor.node import Node

DROP_IN = "50-moa-mesh.conf"

_DEFAULT_SLICE = "system.slice"
DROP_IN_TEXT = f"""\
# Written by `moactl mesh join`, removed by `moactl mesh leave` and `moactl uninstall`.
[Service]
Slice={units.SLICE}
"""
_NAME = re.compile(r"[A-Za-z0-9:_.@\\-]+\.service")
_ANSWER_S = 20.0


class MembershipError(Exception):
    """The unit cannot join or leave; `next_step` is what to do about it."""

    def __init__(self, text: str, next_step: str) -> None:
        super().__init__(text)
        self.next_step = next_step


@dataclass(frozen=True, slots=True)
class Unit:
    """What systemd says of a unit; `cgroup` is None when it does not run."""

    name: str
    slice: str
    cgroup: Cgroup | None

    @property
    def is_in_slice(self) -> bool:
        return self.cgroup is not None and Cgroup(units.SLICE_CGROUP).holds(self.cgroup)


def look(name: str) -> Unit:
    """Ask systemd; `.service` may be left out. Raises MembershipError."""
    full = name if name.endswith(".service") else f"{name}.service"
    if not _NAME.fullmatch(full):
        raise MembershipError(f"unit {name}: expected the name of a service", "systemctl")
    properties = ("LoadState", "Slice", "ControlGroup")
    argv = ["systemctl", "show", "--property", ",".join(properties), "--", full]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _no_systemd(f"systemctl show {full}: {error}") from None
    if done.returncode != 0:
        raise _no_systemd(f"systemctl show {full}: {done.stderr.strip()}")
    seen = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    if seen.get("LoadState") != "loaded":
        what = f"unit {full}: expected one that is loaded, saw {seen.get('LoadState')}"
        raise MembershipError(what, f"systemctl status {full}")
    cgroup = Cgroup.of(seen["ControlGroup"]) if seen.get("ControlGroup") else None
    if cgroup is not None and not cgroup.exists():
        cgroup = None
    return Unit(full, seen.get("Slice", ""), cgroup)


def join(unit: Unit, site: Site, node: Node) -> list[str]:
    """Take it in; a sentence for each step. The caller holds the site's lock.

    Raises MembershipError, and InterceptorError as `Node.add_scope` does.
    """
    if unit.slice not in (_DEFAULT_SLICE, units.SLICE):
        name = unit.cgroup.name if unit.cgroup else f"/{unit.slice}/{unit.name}"
        raise MembershipError(
            f"unit {unit.name}: is in {unit.slice}, whose limits it would lose in {units.SLICE}",
            f"moactl mesh on --cgroup {name}, and name it in scope.cgroups",
        )
    done = []
    if unit.cgroup is not None and unit.is_in_slice:
        node.exclude(unit.cgroup, excluded=False)
        done.append(f"{unit.name} is in the mesh, in {units.SLICE}")
    elif unit.cgroup is not None:
        node.add_scope(unit.cgroup, passing=True)
        done.append(f"{unit.name} is in the mesh now, until it is restarted in {units.SLICE}")
    for step in _steps(unit):
        if step.check(site) is not steps.Verdict.DONE:
            step.apply(site)
    systemctl("daemon-reload")
    systemctl("start", units.SLICE)
    whole = Cgroup(units.SLICE_CGROUP)
    if whole.exists() and whole.name not in {scope.cgroup for scope in node.scopes()}:
        node.add_scope(whole)
    return [*done, f"{unit.name} will be started in {units.SLICE}"]


def leave(unit: Unit, site: Site, node: Node) -> list[str]:
    """Take it out; a sentence for each step. The caller holds the site's lock."""
    done = []
    if unit.cgroup is not None and unit.is_in_slice:
        node.exclude(unit.cgroup, excluded=True)
        done.append(f"{unit.name} is out of the mesh now")
    elif unit.cgroup is not None and node.forget_scope(unit.cgroup):
        done.append(f"{unit.name} is out of the mesh now")
    drop_in, directory = _paths(unit)
    for path, step in zip((drop_in, directory), reversed(_steps(unit)), strict=True):
        if path in site.manifest.entries:
            step.undo(site)
            done.append(f"undone: {step.describe}")
    systemctl("daemon-reload")
    return done or [f"{unit.name} was not in the mesh"]


def _paths(unit: Unit) -> tuple[str, str]:
    """Of the drop-in and of its directory."""
    directory = f"{units.DIRECTORY}/{unit.name}.d"
    return f"{directory}/{DROP_IN}", directory


def _steps(unit: Unit) -> tuple[steps.Step, ...]:
    drop_in, directory = _paths(unit)
    return (
        steps.directory(directory),
        steps.text_file(f"mesh {unit.name}", drop_in, DROP_IN_TEXT.encode()),
    )


def _no_systemd(words: str) -> MembershipError:
    return MembershipError(words, "without systemd: moactl mesh on --cgroup PATH")
