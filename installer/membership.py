"""A systemd unit joins the mesh, and leaves it: at once, and for its next starts by a drop-in.

The drop-in puts the unit into `moa-mesh.slice`, which is in the mesh, so that not even its
first connection after a restart goes past it. Until that restart the unit's present cgroup is
in the mesh by itself. A unit with a slice of its own keeps it: its limits are there. The slice
that systemd makes by itself for the instances of a template has none.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from installer.plan import steps, units
from installer.plan.processes import systemctl
from installer.plan.site import Site, seen
from interceptor.cgroup import Cgroup
from interceptor.node import Node

DROP_IN = "50-moa-mesh.conf"

_DEFAULT_SLICE = "system.slice"
_TEMPLATE_SLICE = re.compile(r"system-[^-]+\.slice")
_OURS = frozenset(
    f"{name}.service" for name in ("moa-opsd", "moa-agent", "moa-watcher", "moa-lookup")
)
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
    """What systemd says of a unit; `cgroup` is None when it does not run.

    `name` is its own, whatever alias it was asked for by; `names` are all of them.
    """

    name: str
    slice: str
    cgroup: Cgroup | None
    names: tuple[str, ...]

    @property
    def is_in_slice(self) -> bool:
        return self.cgroup is not None and Cgroup(units.SLICE_CGROUP).holds(self.cgroup)


def look(name: str) -> Unit:
    """Ask systemd; `.service` may be left out. Raises MembershipError."""
    full = name if name.endswith(".service") else f"{name}.service"
    if not _NAME.fullmatch(full):
        raise MembershipError(f"unit {name}: expected the name of a service", "systemctl")
    said = _show(full, "Id", "Names", "LoadState", "Slice", "ControlGroup")
    if said.get("LoadState") != "loaded":
        what = f"unit {full}: expected one that is loaded, saw {said.get('LoadState')}"
        raise MembershipError(what, f"systemctl status {full}")
    cgroup = Cgroup.of(said["ControlGroup"]) if said.get("ControlGroup") else None
    if cgroup is not None and not cgroup.exists():
        cgroup = None
    own = said.get("Id") or full
    names = dict.fromkeys((own, *said.get("Names", "").split()))
    return Unit(own, said.get("Slice", ""), cgroup, tuple(names))


def _show(unit: str, *properties: str) -> dict[str, str]:
    argv = ["systemctl", "show", "--property", ",".join(properties), "--", unit]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _no_systemd(f"systemctl show {unit}: {error}") from None
    if done.returncode != 0:
        raise _no_systemd(f"systemctl show {unit}: {done.stderr.strip()}")
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines())


def join(unit: Unit, site: Site, node: Node) -> list[str]:
    """Take it in; a sentence for each step. The caller holds the site's lock.

    Raises MembershipError, and InterceptorError as `Node.add_scope` does.
    """
    _check_it_may_join(unit)
    done = []
    if unit.cgroup is not None and unit.is_in_slice:
        node.exclude(unit.cgroup, excluded=False)
        done.append(f"{unit.name} is in the mesh, in {units.SLICE}")
    elif unit.cgroup is not None:
        node.add_scope(unit.cgroup, passing=True)
        done.append(f"{unit.name} is in the mesh now, until it is restarted in {units.SLICE}")
    for step in _steps(unit.name):
        if step.check(site) is not steps.Verdict.DONE:
            step.apply(site)
    systemctl("daemon-reload")
    systemctl("start", units.SLICE)
    whole = Cgroup(units.SLICE_CGROUP)
    if whole.exists() and whole.name not in {scope.cgroup for scope in node.scopes()}:
        node.add_scope(whole)
    if kept := _changed_drop_in(unit.name, site):
        return [*done, f"{kept} is yours and was kept: it says where {unit.name} will be started"]
    return [*done, f"{unit.name} will be started in {units.SLICE}"]


def leave(unit: Unit, site: Site, node: Node) -> list[str]:
    """Take it out; a sentence for each step. The caller holds the site's lock.

    Raises MembershipError when it is out now and would not stay so: a drop-in that was changed
    is not ours to remove.
    """
    done = []
    if unit.cgroup is not None and unit.is_in_slice:
        node.exclude(unit.cgroup, excluded=True)
        done.append(f"{unit.name} is out of the mesh now")
    elif unit.cgroup is not None and node.forget_scope(unit.cgroup):
        done.append(f"{unit.name} is out of the mesh now")
    left = []
    for name in unit.names:
        if kept := _changed_drop_in(name, site):
            left.append(f"{kept} stays: it is not as it was written")
        else:
            done += _remove_drop_in(name, site)
    systemctl("daemon-reload")
    if left and look(unit.name).slice == units.SLICE:
        raise MembershipError(
            "; ".join((*done, *left, f"{unit.name} will be started in {units.SLICE}")),
            f"take Slice={units.SLICE} out of it, then moactl mesh leave {unit.name}",
        )
    return [*done, *left] or [f"{unit.name} was not in the mesh"]


def _check_it_may_join(unit: Unit) -> None:
    if unit.name in _OURS:
        raise MembershipError(
            f"unit {unit.name}: is a part of MOA Interceptor, which is never in the mesh itself",
            "moactl mesh join UNIT, with the unit of a service",
        )
    if unit.slice in (_DEFAULT_SLICE, units.SLICE):
        return
    said = _show(unit.slice, "FragmentPath", "DropInPaths", "ControlGroup")
    has_text = said.get("FragmentPath") or said.get("DropInPaths")
    if _TEMPLATE_SLICE.fullmatch(unit.slice) and not has_text:
        return
    inside = said.get("ControlGroup") or _slice_cgroup(unit.slice)
    name = unit.cgroup.name if unit.cgroup else f"{inside}/{unit.name}"
    raise MembershipError(
        f"unit {unit.name}: is in {unit.slice}, whose limits it would lose in {units.SLICE}",
        f"moactl mesh on --cgroup {name}, and name it in scope.cgroups",
    )


def _slice_cgroup(name: str) -> str:
    """Where systemd puts a slice: below those of the first parts of its name."""
    parts = name.removesuffix(".slice").split("-")
    return "".join(f"/{'-'.join(parts[: n + 1])}.slice" for n in range(len(parts)) if any(parts))


def _changed_drop_in(name: str, site: Site) -> str | None:
    """The path of a drop-in of ours that somebody changed, or that was there before."""
    path = _paths(name)[0]
    entry = site.manifest.entries.get(path)
    if entry is None or seen(site.at(path)) is None:
        return None
    return path if entry.kept or not site.is_ours(entry) else None


def _remove_drop_in(name: str, site: Site) -> list[str]:
    removed, left = len(site.removed), len(site.left)
    for path, step in zip(_paths(name), reversed(_steps(name)), strict=True):
        if path in site.manifest.entries:
            step.undo(site)
    return [
        *(f"removed: {path}" for path in site.removed[removed:]),
        *(f"left: {why}" for why in site.left[left:]),
    ]


def _paths(name: str) -> tuple[str, str]:
    """Of the drop-in and of its directory."""
    directory = f"{units.DIRECTORY}/{name}.d"
    return f"{directory}/{DROP_IN}", directory


def _steps(name: str) -> tuple[steps.Step, ...]:
    drop_in, directory = _paths(name)
    return (
        steps.directory(directory),
        steps.text_file(f"mesh {name}", drop_in, DROP_IN_TEXT.encode()),
    )


def _no_systemd(words: str) -> MembershipError:
    return MembershipError(words, "without systemd: moactl mesh on --cgroup PATH")
