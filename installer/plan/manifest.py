"""What an installation wrote, told before it is written: the one file that undoing needs.

`<state>/install/manifest.json`, replaced as a whole and flushed to the disk. An entry is there
before its path is changed, so that after a crash everything of ours is known; whether it was
reached shows in the path itself, which is always the old one or the new one and never between.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")

FORMAT = 1
PATH = Path("/var/lib/moa/install/manifest.json")
"""Fixed, so that it is found without a configuration."""


class ManifestError(Exception):
    """The manifest cannot be read; the text says why and what to do."""


class ManifestDamaged(ManifestError):
    """It is of no version of ours: cut off, or written over. An uninstall goes without it."""


class Kind(StrEnum):
    """What is at a path of ours."""

    DIRECTORY = "directory"
    """Removed when it is empty."""
    FILE = "file"
    LINK = "link"
    TREE = "tree"
    """A directory with a list of its files and their hashes (`environment.py`)."""
    OWNED = "owned"
    """A directory whose whole content is the product's, as its logs."""


@dataclass(frozen=True, slots=True)
class Before:
    """What was at a path before us; `content` as in `Entry`."""

    kind: str
    content: str
    mode: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of ours, absolute and without the sysroot.

    `content` is the SHA-256 of a file, or of a tree's list, or a link's target; `previous` is
    what stood there as ours while it is being replaced. With `kept` the path is a user's own
    and is never touched; then `content` is what we would have written.
    """

    step: str
    kind: Kind
    path: str
    content: str = ""
    mode: int = 0
    previous: str = ""
    before: Before | None = None
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Places:
    """What an uninstall has to know of the configuration, when that can no longer be read."""

    pins: str
    runtime_dir: str
    state_dir: str
    agent_cgroup: str


@dataclass(slots=True)
class Manifest:
    """All entries by path, in the order in which they were made."""

    version: str = ""
    complete: bool = False
    """Whether the last install came to its end."""
    switched_on: bool = False
    """Whether an install has turned the mesh on once: after that it is the operator's."""
    entries: dict[str, Entry] = field(default_factory=dict)
    places: Places | None = None
    """Of the last install; None in a manifest from before they were kept."""

    @classmethod
    def load(cls, path: Path) -> Manifest | None:
        """None when there is none; raises ManifestError."""
        try:
            return _manifest(json.loads(path.read_text()), path)
        except FileNotFoundError:
            return None
        except PermissionError:
            raise
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            what = f"is not JSON: {error}"
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"has not the form of a manifest: {type(error).__name__}: {error}"
        raise ManifestDamaged(f"{path}: {what}; moactl uninstall goes without it")

    def save(self, path: Path) -> None:
        """Replace the file as a whole, on the disk when this returns; an OSError names it."""
        document = {
            "format": FORMAT,
            "version": self.version,
            "complete": self.complete,
            "switched_on": self.switched_on,
            "places": asdict(self.places) if self.places else None,
            "entries": [asdict(entry) for entry in self.entries.values()],
        }
        staging = path.with_suffix(".new")
        with naming(staging), staging.open("w") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.rename(staging, path)
        sync_directory(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError of a write say which file it was: of itself it does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk, where its file system can."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(path: Path) -> None:
    """Flush all of the file system that a directory is on: what thousands of files need."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if libc.syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(fd)


def _manifest(document: dict[str, Any], path: Path) -> Manifest:
    """Raises whatever a wrong form leads to, and ManifestError for a form of another version."""
    form = document.get("format")
    if isinstance(form, int) and form > FORMAT:
        raise ManifestError(
            f"{path}: expected format {FORMAT}, saw {form}; use the moactl that installed "
            f"({document.get('version')})"
        )
    if form != FORMAT:
        raise TypeError(f"expected format {FORMAT}, saw {form!r}")
    places = document.get("places")
    return Manifest(
        _is(document["version"], str),
        _is(document["complete"], bool),
        _is(document["switched_on"], bool),
        {item["path"]: _entry(item) for item in _is(document["entries"], list)},
        Places(**{name: _path(value) for name, value in places.items()}) if places else None,
    )


def _entry(item: dict[str, Any]) -> Entry:
    before = Before(**item["before"]) if item["before"] else None
    _path(item["path"])
    for name in ("step", "content", "previous"):
        _is(item[name], str)
    return Entry(**{**item, "kind": Kind(item["kind"]), "before": before})


def _path(value: Any) -> str:
    if not _is(value, str).startswith("/"):
        raise TypeError(f"expected an absolute path, saw {value!r}")
    return str(value)


def _is(value: Any, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, saw {value!r}")
    return value
