"""Our directory in bpffs: mounted, locked, built aside, published by rename.

Layout: `<root>/v<abi>/{maps,progs,links}` and `<root>/marks`, whose empty directories
remember what an uninstall has to undo. bpffs allows no dot in a name.
"""

from __future__ import annotations

import ctypes as c
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from interceptor.abi import ABI_VERSION
from interceptor.errors import Busy, InterceptorError, KernelError

_BPF_FS_MAGIC = "bpf"
# CONFIG_BPF_PRELOAD puts these into each new mount (5.10).
_KERNELS_OWN = ("maps.debug", "progs.debug")
_LOCK_POLL_S = 0.02
_NAME_MAX = 255
DIRECTORY_MODE = 0o750


@dataclass(frozen=True, slots=True)
class PinTree:
    """Where one node's pins are."""

    root: Path

    @property
    def current(self) -> Path:
        return self.root / f"v{ABI_VERSION}"

    @property
    def maps(self) -> Path:
        return self.current / "maps"

    @property
    def programs(self) -> Path:
        return self.current / "progs"

    @property
    def agent_links(self) -> Path:
        return self.current / "links" / "agent"

    @property
    def scope_links(self) -> Path:
        return self.current / "links" / "scope"

    @property
    def agent(self) -> Path:
        """The directory whose lock an agent holds for as long as it lives."""
        return self.root / "agent"

    def is_ours(self, path: Path) -> bool:
        """Whether an entry of the root is one that an install may have made."""
        return re.fullmatch(r"v\d+|new-\d+|marks|agent", path.name) is not None

    @property
    def marks(self) -> Path:
        return self.root / "marks"

    @property
    def mounted(self) -> Path:
        """Mark of a mount that an uninstall has to undo."""
        return self.marks / "mounted-bpffs"

    @property
    def made_cgroups(self) -> Path:
        """Marks of the cgroups that an uninstall has to remove."""
        return self.marks / "made-cgroups"

    @property
    def shadows(self) -> Path:
        """Marks of the scopes that are only watched, also while their cgroup is gone."""
        return self.marks / "shadows"

    @property
    def passing(self) -> Path:
        """Marks of the scopes that end with their cgroup."""
        return self.marks / "passing"

    @property
    def taken_out(self) -> Path:
        """Marks of the cgroups that an operator took out of the mesh."""
        return self.marks / "taken-out"

    @property
    def told(self) -> Path:
        """Mark of pins to which was given what an operator said before they were made."""
        return self.marks / "told"

    def scope(self, cgroup_name: str) -> Path:
        """The directory of one scoped cgroup's links; its name can be read back."""
        return self.scope_links / escaped(cgroup_name)

    def exists(self) -> bool:
        return self.current.is_dir()

    def scope_directories(self) -> list[Path]:
        """One for each scoped cgroup."""
        if not self.scope_links.is_dir():
            return []
        return sorted(self.scope_links.iterdir())

    def marked_cgroups(self) -> list[str]:
        """Names of the cgroups that we made, the deepest first."""
        if not self.made_cgroups.is_dir():
            return []
        return sorted(map(cgroup_name, self.made_cgroups.iterdir()), key=len, reverse=True)


def escaped(cgroup_name: str) -> str:
    """A cgroup's name as the name of one directory; `cgroup_name` is the inverse."""
    text = quote(cgroup_name, safe="").replace(".", "%2E")
    if len(text) > _NAME_MAX:
        raise InterceptorError(f"cgroup {cgroup_name}: its name is too long to be pinned")
    return text


def cgroup_name(directory: Path) -> str:
    return unquote(directory.name)


def make_directory(path: Path) -> None:
    """Create it and its parents below bpffs, for root alone."""
    if not path.is_dir():
        if not path.parent.is_dir():
            make_directory(path.parent)
        path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)


def mounted_at(path: Path) -> Path | None:
    """The bpffs mount that holds `path`, or None."""
    found: Path | None = None
    for line in Path("/proc/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        if kind == _BPF_FS_MAGIC and (path == Path(target) or Path(target) in path.parents):
            found = Path(target)
    return found


def check_root(tree: PinTree) -> None:
    """Raise unless the root is a directory of its own on bpffs: all below it counts as ours."""
    mount = mounted_at(tree.root)
    if mount is None:
        raise InterceptorError(
            f"bpf.root {tree.root}: is not on a bpf file system; expected something like "
            "/sys/fs/bpf/moa"
        )
    if mount == tree.root:
        raise InterceptorError(
            f"bpf.root {tree.root}: is the bpf file system itself, which others use as well; "
            f"expected a directory in it, like {tree.root}/moa"
        )


def ensure_mounted(tree: PinTree) -> None:
    """Mount bpffs at the standard place when nobody has, and remember to undo it."""
    if mounted_at(tree.root):
        check_root(tree)
        return
    target = Path("/sys/fs/bpf")
    if target not in tree.root.parents:
        raise InterceptorError(f"bpf.root {tree.root}: is not on a bpf file system")
    libc = c.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(target), b"bpf", 0, b"mode=0700") != 0:
        raise KernelError(f"mount bpffs at {target}", c.get_errno())
    make_directory(tree.mounted)


def unmount_if_ours(target: Path, *, ours: bool) -> None:
    """Undo `ensure_mounted` when nobody else uses the mount by now."""
    if not ours or any(path.name not in _KERNELS_OWN for path in target.iterdir()):
        return
    libc = c.CDLL(None, use_errno=True)
    if libc.umount(os.fsencode(target)) != 0:
        raise KernelError(f"unmount bpffs at {target}", c.get_errno())


@contextmanager
def locked(tree: PinTree, *, timeout_s: float = 10.0) -> Iterator[None]:
    """Hold the node's one lock; raises `Busy` when another holds it for longer.

    The lock is on the root directory itself, so that it needs no file of its own. Whoever
    waited for a directory that an uninstall has removed meanwhile starts over. A directory
    that is empty at the end is removed: whoever failed leaves nothing behind.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        make_directory(tree.root)
        fd = os.open(tree.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _lock_before(fd, deadline_s, tree.root)
            if _is_still(tree.root, fd):
                try:
                    yield
                finally:
                    with suppress(OSError):
                        tree.root.rmdir()
                return
        finally:
            os.close(fd)


@contextmanager
def agent_lock(tree: PinTree) -> Iterator[None]:
    """Be the one agent of these pins while it lasts; raises `Busy` when another lives."""
    fd = lock_agent(tree)
    try:
        yield
    finally:
        unlock_agent(tree, fd)


def lock_agent(tree: PinTree) -> int:
    """Be the one agent of these pins; the lock's descriptor. Raises `Busy` when another lives.

    Apart from the lock of the agent's runtime directory, of which two configurations may
    have two. Another process that is given the descriptor holds the lock as well.
    """
    while True:
        make_directory(tree.agent)
        fd = os.open(tree.agent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise Busy(
                f"lock {tree.agent}: another agent serves with these pins; stop it, or give "
                "this one a bpf.root of its own"
            ) from None
        if _is_still(tree.agent, fd):
            return fd
        os.close(fd)


def unlock_agent(tree: PinTree, fd: int) -> None:
    """Be no agent any more; only for the last one that holds the lock."""
    with suppress(OSError):
        tree.agent.rmdir()
        tree.root.rmdir()
    os.close(fd)


def _lock_before(fd: int, deadline_s: float, root: Path) -> None:
    try:
        flock_before(fd, deadline_s)
    except BlockingIOError:
        raise Busy(
            f"lock {root}: another moactl or agent is changing this node; try again"
        ) from None


def flock_before(fd: int, deadline_s: float) -> None:
    """Lock a descriptor's file for oneself; blocks. Raises BlockingIOError when somebody else
    still has it after `deadline_s` of CLOCK_MONOTONIC."""
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_LOCK_POLL_S)


def _is_still(path: Path, fd: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def remove_tree(path: Path) -> None:
    """Unlink every pin below and the directories themselves."""
    if path.is_dir():
        shutil.rmtree(path)
