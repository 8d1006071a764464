"""The precompiled object brought into the kernel, and its programs and maps pinned.

Rule: an object is built in a directory aside and published by rename, so that whoever opens
the published one finds all of it. Programs with the same tag are not touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from interceptor import libbpf
from interceptor.bpffs import PinTree, make_directory, remove_tree
from interceptor.errors import Incomplete, InterceptorError
from interceptor.libbpf import Object
from interceptor.links import ALL_HOOKS, Hook
from interceptor.probe import Features

OBJECT_PATH = Path(__file__).parent / "moa.bpf.o"
_STAGING_PREFIX = "new-"


def usable_hooks(hooks: Iterable[Hook], features: Features) -> Iterator[Hook]:
    """The hooks that this kernel has; raises when one that we cannot do without is missing."""
    for hook in hooks:
        if features.has(hook.attach):
            yield hook
        elif not hook.optional:
            raise InterceptorError(
                f"hook {hook.name}: this kernel does not support it: "
                f"{features.detail(hook.attach)}; traffic is left alone (moactl doctor)"
            )


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an install did to the programs."""

    fresh: bool
    changed: tuple[str, ...]


def install(tree: PinTree, features: Features, object_path: Path = OBJECT_PATH) -> Loaded:
    """Load and pin, or bring what is pinned up to date. The caller holds the node's lock."""
    for leftover in tree.root.glob(f"{_STAGING_PREFIX}*"):
        remove_tree(leftover)
    wanted = {hook.program for hook in usable_hooks(ALL_HOOKS, features)}
    with Object(object_path) as obj:
        for hook in ALL_HOOKS:
            if hook.program not in wanted:
                obj.skip_program(hook.program)
        shapes = obj.map_shapes()
        if _is_adoptable(tree, shapes):
            with _pinned_maps(tree, shapes) as fds:
                for name, fd in fds.items():
                    obj.reuse_map(name, fd)
                obj.load()
            return Loaded(fresh=False, changed=_repin_programs(tree, obj.program_fds()))
        if tree.exists():
            raise Incomplete(
                f"{tree.current}: is incomplete or of another layout; remove it with "
                "`moactl uninstall` and try again"
            )
        obj.load()
        _publish(tree, obj)
        return Loaded(fresh=True, changed=tuple(obj.program_fds()))


def _is_adoptable(tree: PinTree, shapes: dict[str, tuple[int, int, int, int]]) -> bool:
    if not tree.maps.is_dir() or not tree.programs.is_dir():
        return False
    for name, shape in shapes.items():
        path = tree.maps / name
        if not path.exists():
            return False
        fd = libbpf.open_pin(path)
        try:
            info = libbpf.map_info(fd)
        finally:
            os.close(fd)
        if (info.type, info.key_size, info.value_size, info.max_entries) != shape:
            return False
    return True


@contextmanager
def _pinned_maps(tree: PinTree, names: Iterable[str]) -> Iterator[dict[str, int]]:
    fds: dict[str, int] = {}
    try:
        for name in names:
            fds[name] = libbpf.open_pin(tree.maps / name)
        yield fds
    finally:
        for fd in fds.values():
            os.close(fd)


def _publish(tree: PinTree, obj: Object) -> None:
    staging = tree.root / f"{_STAGING_PREFIX}{os.getpid()}"
    for kind, fds in (("maps", obj.map_fds()), ("progs", obj.program_fds())):
        make_directory(staging / kind)
        for name, fd in fds.items():
            libbpf.pin(fd, staging / kind / name)
    make_directory(staging / "links")
    staging.rename(tree.current)


def _repin_programs(tree: PinTree, fds: dict[str, int]) -> tuple[str, ...]:
    changed = []
    for name, fd in fds.items():
        path = tree.programs / name
        if path.exists():
            if _tag_of_pin(path) == bytes(libbpf.program_info(fd).tag):
                continue
            path.unlink()
        libbpf.pin(fd, path)
        changed.append(name)
    return tuple(changed)


def _tag_of_pin(path: Path) -> bytes:
    fd = libbpf.open_pin(path)
    try:
        return bytes(libbpf.program_info(fd).tag)
    finally:
        os.close(fd)
