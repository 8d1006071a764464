"""Replaces a small file of JSON as a whole, on the disk when it returns, for root alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

from installer.plan.manifest import sync_directory

MODE = 0o600


def replace_json(path: Path, document: object, *, sync: bool = True) -> None:
    """A crash at any point leaves the old file or the new one; raises OSError.

    Without `sync` a power cut may leave an empty one: for what somebody else knows as well.
    """
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    staging = path.with_suffix(".new")
    fd = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, MODE)
    with os.fdopen(fd, "w") as file:
        os.fchmod(fd, MODE)
        json.dump(document, file, indent=1)
        file.flush()
        if sync:
            os.fsync(fd)
    os.rename(staging, path)
    if sync:
        sync_directory(path.parent)
