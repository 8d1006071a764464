"""What an installation wrote, told before it is written: the one file that undoing needs.

`<state>/install/manifest.json`, replaced as a whole and flushed to the disk. An entry is there
before its path is changed, so that after a crash everything of ours is known; whether it was
reached shows in the path itself, which is always the old one or the new one and never between.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

FORMAT = 1
PATH = Path("/var/lib/moa/install/manifest.json")
"""Fixed, so that it is found without a configuration."""


class ManifestError(Exception):
    """The manifest cannot be read; the text says why and what to do."""


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


@dataclass(slots=True)
class Manifest:
    """All entries by path, in the order in which they were made."""

    version: str = ""
    complete: bool = False
    """Whether the last install came to its end."""
    switched_on: bool = False
    """Whether an install has turned the mesh on once: after that it is the operator's."""
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Manifest | None:
        """None when there is none; raises ManifestError."""
        try:
            document = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ManifestError(
                f"{path}: is not JSON: {error}; moactl uninstall goes without"
            ) from None
        if document.get("format") != FORMAT:
            seen = document.get("format")
            raise ManifestError(
                f"{path}: expected format {FORMAT}, saw {seen}; use the moactl that installed "
                f"({document.get('version')})"
            )
        return cls(
            document["version"],
            document["complete"],
            document["switched_on"],
            {item["path"]: _entry(item) for item in document["entries"]},
        )

    def save(self, path: Path) -> None:
        """Replace the file as a whole, on the disk when this returns."""
        document = {
            "format": FORMAT,
            "version": self.version,
            "complete": self.complete,
            "switched_on": self.switched_on,
            "entries": [asdict(entry) for entry in self.entries.values()],
        }
        staging = path.with_suffix(".new")
        with staging.open("w") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.rename(staging, path)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk, where its file system can."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


def _entry(item: dict[str, Any]) -> Entry:
    before = Before(**item["before"]) if item["before"] else None
    return Entry(**{**item, "kind": Kind(item["kind"]), "before": before})
