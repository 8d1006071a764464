"""Carries a plan out, and takes an installation away; both may be killed at any point and
repeated."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from installer.plan import leftovers, manifest, processes, recognise, units
from installer.plan.manifest import Entry, Kind, Manifest, ManifestDamaged, Places
from installer.plan.processes import STOP_MARGIN_S
from installer.plan.site import Site, seen
from installer.plan.steps import Step, Verdict, undo
from interceptor.cgroup import Cgroup


@dataclass(frozen=True, slots=True)
class Outcome:
    """A step and what its check said before it was applied."""

    step: Step
    verdict: Verdict


def load(site: Site) -> bool:
    """Read the site's manifest; whether there is one. Raises ManifestError."""
    found = Manifest.load(site.manifest_path)
    if found is not None:
        site.manifest = found
    return found is not None


def load_for_removal(site: Site) -> bool:
    """Read the manifest or, where it is damaged or lost, make one of what is recognisably ours;
    whether anything is installed. Raises ManifestError for one of a newer version."""
    try:
        if load(site):
            return True
        if not recognise.has_versions(site):
            return False
        why = f"{site.manifest_path}: is not there, and versions of ours are"
    except ManifestDamaged as error:
        why = str(error)
    recognise.recover(site)
    site.notes = [f"{why}: what is recognisably ours goes, and the rest is listed"]
    return True


def preview(steps: Iterable[Step], site: Site) -> list[Outcome]:
    """What each check says now; changes nothing."""
    return [Outcome(step, step.check(site)) for step in steps]


def install(
    steps: Iterable[Step], site: Site, version: str, places: Places | None = None
) -> list[Outcome]:
    """Apply what is not done yet. The caller holds the site's lock and has loaded the manifest."""
    if not site.manifest_path.exists() and recognise.has_versions(site):
        # Else what a former install wrote would be found done, and never be undone.
        recognise.recover(site)
        site.notes.append(f"{site.manifest_path}: was lost; what is recognisably ours is in it")
    site.manifest.version = version
    site.manifest.places = places
    site.manifest.complete = False
    site.manifest.save(site.manifest_path)
    outcomes = []
    for step in steps:
        verdict = step.check(site)
        if verdict is not Verdict.DONE:
            step.apply(site)
        outcomes.append(Outcome(step, verdict))
    site.manifest.complete = True
    site.manifest.save(site.manifest_path)
    return outcomes


def stop_processes(site: Site, drain_s: float) -> list[processes.Own]:
    """End what runs of ours; returns what was ended."""
    if not site.is_live:
        return []
    if processes.has_systemd():
        for command in processes.COMMANDS:
            if site.at(f"{units.DIRECTORY}/{command}.service").exists():
                with suppress(processes.ProcessError):
                    processes.systemctl("stop", f"{command}.service")
    found = processes.running()
    for own in found:
        processes.stop(own, drain_s + STOP_MARGIN_S)
    return found


def uninstall(site: Site) -> None:
    """Undo every entry of the manifest, the last one first, and then the manifest itself.

    Also where a killed install or uninstall left no manifest, or less, and where it is damaged.
    Raises InstallBusy and ManifestError.
    """
    if not site.at(manifest.PATH.parent.parent).is_dir() and not recognise.has_versions(site):
        return
    site.leaving = True
    with site.locked():
        if load_for_removal(site):
            site.manifest.complete = False
            site.save()
        leftovers.remove(site)
        has_slice = f"{units.DIRECTORY}/{units.SLICE}" in site.manifest.entries
        for entry in reversed(list(site.manifest.entries.values())):
            undo(entry, site)
        _remove_manifest(site)
    if site.is_live and processes.has_systemd():
        with suppress(processes.ProcessError):
            processes.systemctl("daemon-reload")
        if has_slice:
            end_slices(site, units.SLICES)


def end_slices(site: Site, slices: Mapping[str, str]) -> None:
    """Stop slices, by name and cgroup, the inner one first: they outlive their last unit. One
    with a unit in it is left and told, as the unit would be stopped with it."""
    for name, path in slices.items():
        cgroup = Cgroup(path)
        if not cgroup.exists():
            continue
        if "populated 1" in (cgroup.path / "cgroup.events").read_text():
            site.left.append(f"{name}: units run in it, and leave it when they are started again")
            return
        with suppress(processes.ProcessError):
            processes.systemctl("stop", name)


def _remove_manifest(site: Site) -> None:
    for path in (site.manifest_path, site.manifest_path.with_suffix(".new")):
        with suppress(FileNotFoundError):
            try:
                os.unlink(path)
            except IsADirectoryError:
                site.remove_all(str(manifest.PATH))
    for directory in (manifest.PATH.parent, manifest.PATH.parent.parent):
        if site.at(directory).is_dir() and site.remove_directory(str(directory)):
            site.removed.append(str(directory))


def would_remove(site: Site) -> tuple[list[str], list[str]]:
    """Paths that an uninstall would take away, and those that it would leave."""
    removed = leftovers.paths(site)
    left = list(site.left)
    for entry in reversed(list(site.manifest.entries.values())):
        if seen(site.at(entry.path)) is not None:
            (left if _stays(entry, site) else removed).append(entry.path)
    return removed, left


def changed(site: Site) -> list[str]:
    """Files of ours that are not as they were written; a user's own are none of them."""
    written = [
        entry
        for entry in site.manifest.entries.values()
        if entry.kind is Kind.FILE and entry.content and not entry.kept
    ]
    return [entry.path for entry in written if not site.is_ours(entry)]


def _stays(entry: Entry, site: Site) -> bool:
    if entry.kept:
        return True
    return entry.kind is Kind.FILE and not site.purge and not site.is_ours(entry)
