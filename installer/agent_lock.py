"""The locks of the one agent of a node: `<agent.runtime_dir>/agent.lock`, and its pins'.

Both are flocks, which belong to open files and not to processes: an agent that is given the
descriptors holds them together with the one that gave them (docs/UPGRADE.md).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from interceptor.errors import Busy
from interceptor.node import Node

LOCK_NAME = "agent.lock"
PINS = "pins"


class AgentLocks:
    """Held from `acquire` or `take` to `release` or `leave`."""

    def __init__(self, runtime_dir: Path, node: Node) -> None:
        self._path = runtime_dir / LOCK_NAME
        self._node = node
        self._fds: dict[str, int] = {}
        self._is_ours = False
        """Whether it was ever this process that served."""

    def acquire(self) -> None:
        """Be the one agent; raises `Busy` with the other's process id."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                raise Busy(
                    f"lock {self._path}: an agent runs already (process {other}); stop that one "
                    "first"
                ) from None
            self._fds = {LOCK_NAME: fd, PINS: self._node.lock_agent()}
        except BaseException:
            os.close(fd)
            raise
        self.claim()

    def take(self, locks: Mapping[str, int]) -> None:
        """Hold the locks of another agent, too; its descriptors are ours from now on.

        Raises ValueError, and then they are not.
        """
        if missing := {LOCK_NAME, PINS} - locks.keys():
            raise ValueError(f"no lock {', '.join(sorted(missing))}")
        for name, fd in locks.items():
            if self._fds:
                os.close(fd)  # We gave them to the other agent, and hold them still.
            elif name not in (LOCK_NAME, PINS):
                os.close(fd)
        if not self._fds:
            self._fds = {LOCK_NAME: locks[LOCK_NAME], PINS: locks[PINS]}

    @property
    def descriptors(self) -> Mapping[str, int]:
        return dict(self._fds)

    def claim(self) -> None:
        """Write down that it is this process which serves."""
        self._is_ours = True
        fd = self._fds[LOCK_NAME]
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Be the agent no more; another may come. Who never served just lets go."""
        if not self._is_ours:
            self.leave()
        fds, self._fds = self._fds, {}
        if fds:
            os.close(fds[LOCK_NAME])
            self._node.unlock_agent(fds[PINS])

    def leave(self) -> None:
        """Let go what another agent holds, too."""
        fds, self._fds = self._fds, {}
        for fd in fds.values():
            os.close(fd)


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
