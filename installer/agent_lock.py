"""Who holds the lock of the running agent, `<agent.runtime_dir>/agent.lock`."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

LOCK_NAME = "agent.lock"


def holder(runtime_dir: Path) -> int | None:
    """Process id of the running agent; None when there is none. Needs root.

    The file names it, and it counts while it has the file open. The lock itself is not tried:
    that could make an agent that starts just now give up.
    """
    path = runtime_dir / LOCK_NAME
    try:
        text = path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    pid = int(text) if text.isascii() and text.isdigit() else 0
    return pid if pid and _has_open(pid, path) else None


def outlived_its_pins(pid: int) -> tuple[str, str]:
    """What to say of an agent that runs where nothing is installed, and what to do about it."""
    return (
        f"process {pid} still runs but was uninstalled",
        f"stop it (kill {pid}, or its unit), then moactl agent run",
    )


def _has_open(pid: int, path: Path) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        wanted = path.stat()
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if os.path.samestat(wanted, entry.stat()):
                        return True
    return False
