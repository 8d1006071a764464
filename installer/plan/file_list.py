"""`FILES`, the list of a tree's files with their SHA-256, and how a tree differs from it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from installer.plan.site import digest

LIST = "FILES"

_EMPTY = hashlib.sha256(b"").hexdigest()


def write(directory: Path) -> None:
    """List all that is below a directory, as sha256sum writes it."""
    lines = [f"{_fingerprint(path)}  {path.relative_to(directory)}\n" for path in walk(directory)]
    (directory / LIST).write_text("".join(lines))


def lost(directory: Path) -> set[str]:
    """Files of the list that are missing, or empty and were not: what is left of them after a
    power cut. The list itself where it is missing or cut off: then nobody knows of the others."""
    known = listed(directory)
    if not known:
        return {LIST}
    return {name for name, value in known.items() if _is_lost(directory / name, value)}


def changed(directory: Path) -> Iterator[str]:
    """What differs from the list: files that are missing, were changed, or are not of it."""
    known = listed(directory)
    for path in walk(directory):
        name = str(path.relative_to(directory))
        if name != LIST and known.pop(name, None) != _fingerprint(path):
            yield name
    yield from known


def listed(directory: Path) -> dict[str, str]:
    """Each file's hash by its name; empty where there is no list, and where it does not go to its
    end."""
    try:
        text = (directory / LIST).read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    if not text.endswith("\n"):
        return {}
    return {name: value for value, _, name in (line.partition("  ") for line in text.splitlines())}


def walk(directory: Path) -> list[Path]:
    """Every file and link below a directory."""
    return sorted(Path(parent, name) for parent, _, names in os.walk(directory) for name in names)


def _fingerprint(path: Path) -> str:
    """SHA-256 of a file's content, or of a link's target: what is behind it is not ours."""
    if path.is_symlink():
        return hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest()
    return digest(path)


def _is_lost(path: Path, value: str) -> bool:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    return stat.S_ISREG(status.st_mode) and status.st_size == 0 and value != _EMPTY
