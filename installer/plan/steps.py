"""A step is data: what it is called, what it does, and how it is checked, applied and undone.

Rule for what a user owns: a path that was there before us, or that was changed since, is
neither overwritten nor removed; it is told, and what we would have written stands beside it
with `.dist` at the end of its name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from installer.plan.manifest import Entry, Kind
from installer.plan.site import Site, seen

DIST = ".dist"


class Verdict(StrEnum):
    """What a check found."""

    DONE = "done"
    TODO = "todo"
    CHANGE = "change"
    """Ours, and of another version or with other settings."""
    KEEP = "keep"
    """A user's own: it stays as it is."""


@dataclass(frozen=True, slots=True)
class Step:
    """`apply` is called when the check says so, and brings about what it looks for. Both may be
    repeated after a crash, as may `undo`."""

    id: str
    describe: str
    check: Callable[[Site], Verdict]
    apply: Callable[[Site], None]
    undo: Callable[[Site], None]


def directory(path: str, mode: int = 0o755) -> Step:
    """A directory; one that is there already is not ours and keeps its mode."""
    entry = Entry(f"directory {path}", Kind.DIRECTORY, path, mode=mode)

    def apply(site: Site) -> None:
        site.announce(entry)
        with suppress(FileExistsError):
            os.mkdir(site.at(path), mode)

    return Step(
        entry.step,
        f"make {path}",
        lambda site: Verdict.DONE if site.at(path).is_dir() else Verdict.TODO,
        apply,
        partial(undo, entry),
    )


def text_file(step: str, path: str, content: bytes, mode: int = 0o644) -> Step:
    """A file with this content."""
    wanted = Entry(step, Kind.FILE, path, hashlib.sha256(content).hexdigest(), mode)
    beside = Entry(step, Kind.FILE, path + DIST, wanted.content, mode)

    def apply(site: Site) -> None:
        if _check(wanted, site) is Verdict.KEEP:
            known = site.manifest.entries.get(path)
            if known is not None and known.content == wanted.content:
                return  # the same was offered, or written, before
            site.announce(beside)
            site.write(beside.path, content, mode)
            _keep(wanted, site)
            site.notes.append(f"{path}: yours, kept as it is; ours is in {beside.path}")
            return
        site.announce(wanted)
        site.write(path, content, mode)

    return Step(step, f"write {path}", partial(_check, wanted), apply, partial(undo, wanted))


def link(step: str, path: str, target: str, *, moves_below: str = "") -> Step:
    """A symbolic link; one that points elsewhere below `moves_below` is ours as well."""
    wanted = Entry(step, Kind.LINK, path, target)

    def check(site: Site) -> Verdict:
        now = seen(site.at(path))
        if moves_below and now and now.kind == Kind.LINK and now.content != target:
            return Verdict.CHANGE if now.content.startswith(moves_below) else Verdict.KEEP
        return _check(wanted, site)

    def apply(site: Site) -> None:
        if check(site) is Verdict.KEEP:
            site.notes.append(f"{path}: yours, kept as it is; expected a link to {target}")
            return
        site.announce(wanted)
        site.link(path, target)

    return Step(step, f"link {path} to {target}", check, apply, partial(undo, wanted))


def owned(step: str, path: str, mode: int = 0o750) -> Step:
    """A directory whose whole content is the product's."""
    entry = Entry(step, Kind.OWNED, path, mode=mode)

    def apply(site: Site) -> None:
        site.announce(entry)
        with suppress(FileExistsError):
            os.mkdir(site.at(path), mode)

    def check(site: Site) -> Verdict:
        return Verdict.DONE if site.at(path).is_dir() else Verdict.TODO

    return Step(step, f"make {path}", check, apply, partial(undo, entry))


def undo(entry: Entry, site: Site) -> None:
    """Bring the path of an entry back to what it was, and strike the entry."""
    _UNDO[entry.kind](site.manifest.entries.get(entry.path, entry), site)


def _check(wanted: Entry, site: Site) -> Verdict:
    now = seen(site.at(wanted.path))
    known = site.manifest.entries.get(wanted.path)
    if now is None:
        return Verdict.TODO
    if known is None or known.kept:
        return Verdict.DONE if _same(now.content, now.kind, wanted) else Verdict.KEEP
    if _same(now.content, now.kind, wanted):
        return Verdict.DONE
    return Verdict.CHANGE if site.is_ours(known) else Verdict.KEEP


def _same(content: str, kind: str, wanted: Entry) -> bool:
    return kind == wanted.kind and content == wanted.content


def _keep(wanted: Entry, site: Site) -> None:
    """Remember what was offered, so that it is not offered again."""
    known = site.manifest.entries.get(wanted.path)
    site.announce(
        Entry(
            wanted.step, wanted.kind, wanted.path, wanted.content, wanted.mode,
            kept=known is None or known.kept,
        )
    )  # fmt: skip


def _undo_path(entry: Entry, site: Site) -> None:
    """A file or a link: removed when it is what we wrote."""
    now = seen(site.at(entry.path))
    if now is None or (not entry.kept and (site.purge or site.is_ours(entry))):
        site.remove_file(entry.path)
        if now is not None:
            site.removed.append(entry.path)
    else:
        why = "was there before us" if entry.kept else "was changed since"
        site.left.append(f"{entry.path}: {why}")
    site.forget(entry.path)


def _undo_link(entry: Entry, site: Site) -> None:
    """The link to the current version may have been moved to another of our versions."""
    now = seen(site.at(entry.path))
    if now and now.kind == Kind.LINK and _is_sibling(now.content, entry.content):
        site.remove_file(entry.path)
        site.removed.append(entry.path)
        site.forget(entry.path)
    else:
        _undo_path(entry, site)


def _is_sibling(target: str, ours: str) -> bool:
    return os.path.dirname(target) == os.path.dirname(ours) != ""


def _undo_directory(entry: Entry, site: Site) -> None:
    if entry.before is not None:
        site.forget(entry.path)
        return
    if site.remove_directory(entry.path):
        site.removed.append(entry.path)
    else:
        names = ", ".join(sorted(os.listdir(site.at(entry.path))))
        site.left.append(f"{entry.path}: holds {names}")
    site.forget(entry.path)


def _undo_owned(entry: Entry, site: Site) -> None:
    if entry.before is None:
        site.remove_all(entry.path)
        site.removed.append(entry.path)
    site.forget(entry.path)


def _undo_tree(entry: Entry, site: Site) -> None:
    from installer.plan import environment

    environment.remove(entry.path, site)
    site.forget(entry.path)


_UNDO: dict[Kind, Callable[[Entry, Site], None]] = {
    Kind.DIRECTORY: _undo_directory,
    Kind.FILE: _undo_path,
    Kind.LINK: _undo_link,
    Kind.TREE: _undo_tree,
    Kind.OWNED: _undo_owned,
}
