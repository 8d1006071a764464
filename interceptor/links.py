"""Attachments: made through bpf_link, pinned, adopted, updated in one step, and detached.

A pin outlives its target: when the cgroup or the network namespace is removed, the kernel
detaches the link and the pin stays behind as *lost*. `ensure` makes such a link anew.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from interceptor import libbpf
from interceptor.bpffs import make_directory
from interceptor.cgroup import Cgroup
from interceptor.errors import InterceptorError, KernelError
from interceptor.libbpf import AttachType


@dataclass(frozen=True, slots=True)
class Hook:
    """A program of the object, and where it is attached."""

    program: str
    attach: AttachType
    optional: bool = False

    @property
    def name(self) -> str:
        """Of its pin."""
        return self.program.removeprefix("moa_")


AGENT_HOOKS = (
    Hook("moa_getsockopt", AttachType.GETSOCKOPT),
    Hook("moa_sockops_agent", AttachType.SOCK_OPS),
)
NETNS_HOOKS = (Hook("moa_sk_lookup", AttachType.SK_LOOKUP, optional=True),)
SCOPE_HOOKS = (
    Hook("moa_sockops_caller", AttachType.SOCK_OPS),
    Hook("moa_getpeername4", AttachType.GETPEERNAME4, optional=True),
    Hook("moa_getpeername6", AttachType.GETPEERNAME6, optional=True),
    Hook("moa_connect6", AttachType.CONNECT6, optional=True),
    Hook("moa_connect4", AttachType.CONNECT4),
)
"""In the order of attachment: whoever consumes comes first, connect last."""

ALL_HOOKS = AGENT_HOOKS + NETNS_HOOKS + SCOPE_HOOKS


@dataclass(frozen=True, slots=True)
class Target:
    """What a program is attached to: a cgroup or a network namespace, by its inode."""

    path: Path
    inode: int
    text: str

    @classmethod
    def cgroup(cls, cgroup: Cgroup) -> Target:
        return cls(cgroup.path, cgroup.id, f"cgroup {cgroup.name}")

    @classmethod
    def netns(cls, path: Path) -> Target:
        return cls(path, path.stat().st_ino, f"network namespace {path}")


def attached_inode(link_fd: int, attach: AttachType) -> int:
    """Inode of what a link is attached to; 0 when its target has gone."""
    info = libbpf.link_info(link_fd)
    return info.netns_ino if attach is AttachType.SK_LOOKUP else info.cgroup_id


def ensure(hook: Hook, program_fd: int, target: Target, directory: Path) -> None:
    """Attach and pin, or adopt the link that is pinned, with exactly this program."""
    path = directory / hook.name
    if path.exists():
        link_fd = libbpf.open_pin(path)
        try:
            if attached_inode(link_fd, hook.attach) == target.inode:
                update(link_fd, program_fd, f"{hook.name} of {target.text}")
                return
        finally:
            os.close(link_fd)
        path.unlink()
    make_directory(directory)
    target_fd = os.open(target.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        link_fd = _create(hook, program_fd, target_fd, target)
    finally:
        os.close(target_fd)
    try:
        libbpf.pin(link_fd, path)
    finally:
        os.close(link_fd)


def _create(hook: Hook, program_fd: int, target_fd: int, target: Target) -> int:
    try:
        return libbpf.link_create(program_fd, target_fd, hook.attach, target.text)
    except KernelError as e:
        if e.errno == errno.E2BIG and hook.attach is AttachType.SK_LOOKUP:
            raise InterceptorError(f"{e}; 64 programs are there already") from e
        if e.errno == errno.EPERM:
            raise InterceptorError(
                f"{e}; another program may hold {target.text} exclusively "
                "(bpftool cgroup tree; moactl doctor)"
            ) from e
        raise


def update(link_fd: int, program_fd: int, what: str) -> bool:
    """Put another program behind a link; False when it is there already."""
    if libbpf.link_info(link_fd).prog_id == libbpf.program_info(program_fd).id:
        return False
    libbpf.link_update(link_fd, program_fd, what)
    return True


def detach(path: Path) -> None:
    """Detach and unpin; a link whose target has gone is only unpinned."""
    try:
        link_fd = libbpf.open_pin(path)
    except KernelError as e:
        if e.errno == errno.ENOENT:
            return
        raise
    try:
        with suppress(KernelError):
            libbpf.link_detach(link_fd, path.name)
    finally:
        os.close(link_fd)
    path.unlink(missing_ok=True)


def detach_all(directory: Path) -> None:
    """Detach what is pinned in a directory, connect first, then remove the directory."""
    if not directory.is_dir():
        return
    order = {hook.name: index for index, hook in enumerate(ALL_HOOKS)}
    pins = sorted(directory.iterdir(), key=lambda p: order.get(p.name, 0), reverse=True)
    for path in pins:
        detach(path)
    directory.rmdir()


def is_lost(directory: Path, inode: int | None) -> bool:
    """Whether the links pinned here no longer reach the cgroup with this inode, or never did."""
    paths = list(directory.iterdir())
    for path in paths:
        link_fd = libbpf.open_pin(path)
        try:
            attached = libbpf.link_info(link_fd).cgroup_id
        finally:
            os.close(link_fd)
        if not attached or attached != inode:
            return True
    return not paths
