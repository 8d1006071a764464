"""What this kernel can do, found by trying and never by its version.

Each hook is tried whole: a two-instruction program is verified, attached to a cgroup made
for the purpose (or to our own network namespace, where it lets everything pass), and taken
away again.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interceptor import libbpf
from interceptor.cgroup import Cgroup, mount_point
from interceptor.errors import InterceptorError
from interceptor.libbpf import AttachType

_SOCK_OPS, _SOCK_ADDR, _SOCKOPT, _SK_LOOKUP = 13, 18, 25, 30

_PROGRAM_TYPES = {
    AttachType.CONNECT4: _SOCK_ADDR,
    AttachType.CONNECT6: _SOCK_ADDR,
    AttachType.GETPEERNAME4: _SOCK_ADDR,
    AttachType.GETPEERNAME6: _SOCK_ADDR,
    AttachType.SOCK_OPS: _SOCK_OPS,
    AttachType.GETSOCKOPT: _SOCKOPT,
    AttachType.SK_LOOKUP: _SK_LOOKUP,
}

# r0 = 1; exit. 1 is "allow" for cgroup hooks and SK_PASS for sk_lookup.
_ALLOW = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)

_MAP_TYPES = {
    "lpm_trie": (11, 8, 4, 1),
    "sockmap": (15, 4, 8, 1),
    "ringbuf": (27, 0, 0, 4096),
}
_LPM_NO_PREALLOC = 1
_SCRATCH_PREFIX = "/moa-probe-"


@dataclass(frozen=True, slots=True)
class Support:
    """Whether a thing works here, and the kernel's words when it does not."""

    name: str
    works: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Features:
    """Everything that was tried, by name."""

    hooks: tuple[Support, ...]

    def has(self, attach: AttachType) -> bool:
        return any(s.works for s in self.hooks if s.name == attach.name.lower())

    def detail(self, attach: AttachType) -> str:
        return next((s.detail for s in self.hooks if s.name == attach.name.lower()), "")


def probe_hooks() -> Features:
    """Try every hook; needs root. Leaves nothing behind."""
    _remove_leftovers()
    scratch = Cgroup(f"{_SCRATCH_PREFIX}{os.getpid()}")
    scratch.create()
    try:
        return Features(tuple(_probe_hook(attach, scratch) for attach in _PROGRAM_TYPES))
    finally:
        scratch.remove()


def _remove_leftovers() -> None:
    """Of probes that were killed; a cgroup can only be removed when nothing is in it."""
    for path in mount_point().glob(f"{_SCRATCH_PREFIX[1:]}*"):
        if not Path("/proc", path.name.rpartition("-")[2]).exists():
            Cgroup.of(path).remove()


def _probe_hook(attach: AttachType, scratch: Cgroup) -> Support:
    target = Path("/proc/self/ns/net") if attach is AttachType.SK_LOOKUP else scratch.path
    return _attempt(attach.name.lower(), lambda: _attach_once(attach, target))


def _attach_once(attach: AttachType, target: Path) -> None:
    prog_fd = libbpf.program_load(_PROGRAM_TYPES[attach], attach, _ALLOW)
    try:
        target_fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.close(libbpf.link_create(prog_fd, target_fd, attach, str(target)))
        finally:
            os.close(target_fd)
    finally:
        os.close(prog_fd)


def probe_maps() -> tuple[Support, ...]:
    """Try the map types that are not in every kernel."""
    return tuple(
        _attempt(name, lambda s=shape, n=name: _create_once(n, *s))  # type: ignore[misc]
        for name, shape in _MAP_TYPES.items()
    )


def _create_once(name: str, kind: int, key: int, value: int, entries: int) -> None:
    flags = _LPM_NO_PREALLOC if name == "lpm_trie" else 0
    os.close(libbpf.map_create(kind, key, value, entries, flags))


def _attempt(name: str, trial: Callable[[], object]) -> Support:
    try:
        trial()
    except (InterceptorError, OSError) as e:
        return Support(name, works=False, detail=str(e))
    return Support(name, works=True)
