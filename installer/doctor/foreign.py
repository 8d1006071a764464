"""Programs of others on the hooks that we use: on cgroups in the mesh, above them, and here."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from interceptor import libbpf
from interceptor.cgroup import Cgroup
from interceptor.errors import InterceptorError, KernelError
from interceptor.libbpf import AttachType
from interceptor.links import NETNS_HOOKS, SCOPE_HOOKS
from interceptor.node import OWN_NETNS, Node


@dataclass(frozen=True, slots=True)
class Foreign:
    """A program that is not ours."""

    hook: str
    place: str
    program: str
    program_id: int

    def __str__(self) -> str:
        name = self.program or "without a name"
        return f"{name} (id {self.program_id}) on {self.hook} of {self.place}"


def find(node: Node, configured: Iterable[str]) -> list[Foreign]:
    """Look at the hooks of every cgroup that is or shall be in the mesh; needs root."""
    ours = _own_ids(node)
    cgroups = {*configured, *(s.cgroup for s in node.scopes())} if ours else {*configured}
    return [
        Foreign(attach.name.lower(), place, _name(number), number)
        for path, place, attaches in _places(cgroups)
        for attach in attaches
        for number in _attached(path, attach)
        if number not in ours
    ]


def _places(cgroups: Iterable[str]) -> Iterator[tuple[Path, str, list[AttachType]]]:
    attaches = [hook.attach for hook in SCOPE_HOOKS]
    for name in sorted(_with_parents(cgroups)):
        cgroup = Cgroup(name)
        if cgroup.exists():
            yield cgroup.path, f"cgroup {name}", attaches
    yield OWN_NETNS, "this network namespace", [hook.attach for hook in NETNS_HOOKS]


def _with_parents(cgroups: Iterable[str]) -> set[str]:
    """A program above a cgroup runs for it, too."""
    found = {"/"}
    for name in cgroups:
        found.add(name)
        found.update(str(parent) for parent in Path(name).parents)
    return found


def _own_ids(node: Node) -> set[int]:
    ids = set()
    tree = node.tree
    for directory in (tree.agent_links, *_subdirectories(tree.scope_links)):
        for path in directory.iterdir() if directory.is_dir() else ():
            fd = libbpf.open_pin(path)
            try:
                ids.add(int(libbpf.link_info(fd).prog_id))
            finally:
                os.close(fd)
    return ids


def _subdirectories(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else []


def _attached(path: Path, attach: AttachType) -> list[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return libbpf.attached_programs(fd, attach)
    except KernelError as error:
        if error.errno == errno.EINVAL:
            return []  # a kernel without this hook has nobody on it
        raise
    finally:
        os.close(fd)


def _name(program_id: int) -> str:
    with suppress(InterceptorError):
        return libbpf.program_name(program_id)
    return ""
