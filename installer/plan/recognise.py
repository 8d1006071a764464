"""What is ours on a node whose manifest is damaged or lost: known by its own look.

Ours are versions with a list of their files, links to them, the texts that an install writes by
itself, and the directories that only we use. Anything else at a path of ours may be a user's: it
stays, and is told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from installer import membership
from installer.config import DEFAULT_PATH, ConfigError, parse
from installer.plan import environment, node_plan, processes, units
from installer.plan.manifest import Entry, Kind, Manifest
from installer.plan.site import Site, seen
from installer.plan.steps import DIST

_STEP = "recognised"


def has_versions(site: Site) -> bool:
    """Whether an install was here, whatever became of its manifest."""
    return any(environment.is_version(path) for path in _inside(site, environment.VERSIONS))


def recover(site: Site) -> None:
    """Make the site's manifest of what is recognisably ours; `left` names the rest."""
    site.left = []
    entries = [
        *_versions(site),
        *_links(site),
        *_configuration(site),
        *_units(site),
        *_drop_ins(site),
        *_directories(site, processes.LOG_DIRECTORY, kind=Kind.OWNED),
    ]
    site.manifest = Manifest(entries={entry.path: entry for entry in entries})


def _versions(site: Site) -> Iterator[Entry]:
    yield from _directories(site, str(Path(environment.VERSIONS).parent), environment.VERSIONS)
    for path in _inside(site, environment.VERSIONS):
        name = path.name.removeprefix(environment.STAGING)
        if name != path.name or environment.is_version(path):
            yield Entry(_STEP, Kind.TREE, f"{environment.VERSIONS}/{name}")


def _links(site: Site) -> Iterator[Entry]:
    below = Path(environment.VERSIONS).name
    yield from _link(site, environment.CURRENT, lambda target: target.startswith(f"{below}/"))
    command = f"{environment.CURRENT}/bin/moactl"
    yield from _link(site, node_plan.COMMAND, lambda target: target == command)


def _configuration(site: Site) -> Iterator[Entry]:
    yield from _directories(site, str(DEFAULT_PATH.parent))
    yield from _file(site, node_plan.CONFIG, _is_generated)
    yield from _file(site, node_plan.SERVICES, lambda text: text == node_plan.SERVICES_TEXT)


def _units(site: Site) -> Iterator[Entry]:
    for name, text in units.every_text(node_plan.CONFIG).items():
        yield from _file(site, f"{units.DIRECTORY}/{name}", text.__eq__)
    names = {path.name for path in _inside(site, units.WANTS)}
    if names <= set(units.every_text("")):  # else it is everybody's
        yield from _directories(site, units.WANTS)


def _drop_ins(site: Site) -> Iterator[Entry]:
    for path in sorted(site.at(units.DIRECTORY).glob(f"*.service.d/{membership.DROP_IN}")):
        drop_in = f"{units.DIRECTORY}/{path.parent.name}/{path.name}"
        if path.read_text(errors="replace") == membership.DROP_IN_TEXT:
            yield from _directories(site, os.path.dirname(drop_in))
            yield from _file(site, drop_in, lambda text: True)


def _directories(site: Site, *paths: str, kind: Kind = Kind.DIRECTORY) -> Iterator[Entry]:
    for path in paths:
        if site.at(path).is_dir() and not site.at(path).is_symlink():
            yield Entry(_STEP, kind, path)


def _link(site: Site, path: str, is_ours: Callable[[str], bool]) -> Iterator[Entry]:
    now = seen(site.at(path))
    if now is None or (now.kind == Kind.LINK and is_ours(now.content)):
        yield Entry(_STEP, Kind.LINK, path, now.content if now else "")
    else:
        _leave(site, path)


def _file(site: Site, path: str, is_ours: Callable[[str], bool]) -> Iterator[Entry]:
    """Also one that is not there: a killed run may have left its staging file. What stands
    beside it with `.dist` is ours whatever it says."""
    for name, check in ((path, is_ours), (path + DIST, lambda text: True)):
        now = seen(site.at(name))
        if now is None:
            yield Entry(_STEP, Kind.FILE, name)
        elif now.kind == Kind.FILE and check(site.at(name).read_text(errors="replace")):
            yield Entry(_STEP, Kind.FILE, name, now.content)
        else:
            _leave(site, name)


def _is_generated(text: str) -> bool:
    """Whether a configuration says only what an install can be asked for, in its own words."""
    with suppress(ConfigError):
        config = parse(text.encode(), DEFAULT_PATH)
        own = config.agent.cgroup if "cgroup" in config.agent.model_fields_set else ""
        registry = node_plan.registry_of(config)
        return text in (
            node_plan.config_text(registry, config.scope.cgroups, own),
            node_plan.config_text(None, config.scope.cgroups, own),
        )
    return False


def _leave(site: Site, path: str) -> None:
    site.left.append(f"{path}: not as an install writes it; without a manifest it may be yours")


def _inside(site: Site, directory: str) -> list[Path]:
    place = site.at(directory)
    return sorted(place.iterdir()) if place.is_dir() else []
