"""Where cgroup v2 is, and what a cgroup of it is called: path, id, depth.

Found in /proc/mounts and never assumed: it is /sys/fs/cgroup on a unified node, and
/sys/fs/cgroup/unified on a hybrid one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from interceptor.errors import InterceptorError


@cache
def mount_point() -> Path:
    """The directory where cgroup2 is mounted; raises `InterceptorError` when it is not."""
    for line in Path("/proc/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    raise InterceptorError(
        "find cgroup2 in /proc/mounts: none; boot with systemd.unified_cgroup_hierarchy=1 "
        "or mount it (mount -t cgroup2 none /sys/fs/cgroup/unified)"
    )


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup by its path below the mount point, always with a leading slash."""

    name: str

    @classmethod
    def of(cls, name: str | Path) -> Cgroup:
        """Accept both `/app.slice` and the full path under the mount point."""
        text = str(name)
        root = str(mount_point())
        if text == root or text.startswith(root + "/"):
            text = text[len(root) :]
        parts = [part for part in text.split("/") if part and part != "."]
        if ".." in parts:
            raise InterceptorError(f"cgroup {name}: '..' is not allowed in its path")
        return cls("/" + "/".join(parts))

    @property
    def path(self) -> Path:
        return mount_point() / self.name[1:]

    @property
    def level(self) -> int:
        """Depth as the kernel counts it: the root is 0."""
        return len([part for part in self.name.split("/") if part])

    @property
    def id(self) -> int:
        """The 64-bit id that the kernel's helpers return: the inode of its directory."""
        try:
            return self.path.stat().st_ino
        except FileNotFoundError:
            raise InterceptorError(f"cgroup {self.name}: does not exist at {self.path}") from None

    def and_ancestors(self) -> Iterator[Cgroup]:
        """Itself and everything above it, without the root."""
        name = self.name
        while name != "/":
            yield Cgroup(name)
            name = name.rpartition("/")[0] or "/"

    def exists(self) -> bool:
        return self.path.is_dir()

    def create(self) -> bool:
        """Make it and its parents; whether it was new."""
        if self.exists():
            return False
        self.path.mkdir(parents=True, exist_ok=True)
        return True

    def holds(self, other: Cgroup) -> bool:
        """Whether `other` is this cgroup or lies below it."""
        return other.name == self.name or other.name.startswith(self.name.rstrip("/") + "/")

    def add(self, pid: int) -> None:
        """Move a process in; its existing sockets keep the cgroup they were created in."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def processes(self) -> Iterator[int]:
        """Ids of the processes in it and below it."""
        for directory, _, files in os.walk(self.path):
            if "cgroup.procs" in files:
                text = Path(directory, "cgroup.procs").read_text()
                yield from (int(line) for line in text.split())

    def remove(self) -> bool:
        """Remove it when it is empty; whether it is gone."""
        try:
            self.path.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


def all_ids() -> set[int]:
    """Ids of every cgroup that there is, by a walk of the tree."""
    found = set()
    for directory, _, _ in os.walk(mount_point()):
        with suppress(FileNotFoundError):
            found.add(os.stat(directory).st_ino)
    return found


def find_by_id(cgroup_id: int) -> Cgroup | None:
    """The cgroup with this id, by a walk of the tree; None when it has been removed."""
    root = mount_point()
    for directory, _, _ in os.walk(root):
        with suppress(FileNotFoundError):
            if os.stat(directory).st_ino == cgroup_id:
                return Cgroup.of(directory)
    return None
