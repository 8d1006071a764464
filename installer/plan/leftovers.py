"""What others make because of units of ours, and that goes with them: links of `systemctl enable`,
and the state directories that systemd gives to the watcher and the look-up service."""

from __future__ import annotations

import os
from collections.abc import Iterator

from installer.plan import units
from installer.plan.environment import CURRENT
from installer.plan.site import Site

_STATE = ("/var/lib/{}", "/var/lib/private/{}")
"""With DynamicUser= the first is a link to the second."""


def paths(site: Site) -> list[str]:
    """All that is there now; of units that were there before us, nothing."""
    ours = [name for name in units.every_text("") if _is_ours(site, f"{units.DIRECTORY}/{name}")]
    found = [*_links(site, ours), *_states(site, ours)]
    return [path for path in found if path not in site.manifest.entries]


def remove(site: Site) -> None:
    """Take it away; the units' entries are still in the manifest, so that it may be repeated."""
    for path in paths(site):
        if site.at(path).is_symlink():
            site.remove_file(path)
        else:
            site.remove_all(path)
        site.removed.append(path)


def _is_ours(site: Site, unit: str) -> bool:
    """Also one that nobody knows of and that starts what is ours: it would be tried for ever."""
    known = site.manifest.entries.get(unit)
    if known is not None:
        return not known.kept
    try:
        return f"{CURRENT}/bin/" in site.at(unit).read_text(errors="replace")
    except OSError:
        return False


def _links(site: Site, ours: list[str]) -> Iterator[str]:
    place = site.at(units.DIRECTORY)
    for directory in sorted([*place.glob("*.wants"), *place.glob("*.requires")]):
        for name in ours:
            path = f"{units.DIRECTORY}/{directory.name}/{name}"
            link = directory / name  # perhaps to nowhere
            if link.is_symlink() and _target(path, os.readlink(link)) == name:
                yield path


def _target(path: str, content: str) -> str:
    """The unit that a link is to, by its name; empty when it is elsewhere."""
    target = os.path.normpath(os.path.join(os.path.dirname(path), content))
    directory, name = os.path.split(target)
    return name if directory == units.DIRECTORY else ""


def _states(site: Site, ours: list[str]) -> Iterator[str]:
    for name in units.STATEFUL:
        if f"{name}.service" in ours:
            for form in _STATE:
                if os.path.lexists(site.at(form.format(name))):
                    yield form.format(name)
