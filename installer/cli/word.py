"""Keeps what an operator said of the mesh for the next boot, after the kernel was told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

from installer import mesh_word
from installer.cli.failure import Failure
from installer.cli.session import Session
from installer.mesh_word import Word
from installer.node_state import Installed
from interceptor.node import Node


@contextmanager
def held(session: Session) -> Iterator[None]:
    """Change the kernel and keep the word without anybody in between."""
    lock: AbstractContextManager[None] = nullcontext()
    with suppress(Failure):  # there is a --root, so that nobody needs a configuration
        lock = mesh_word.locked(mesh_word.path_of(session.config()))
    with lock:
        yield


def keep(
    session: Session, node: Node, before: Installed | None, say: Callable[[Word], None]
) -> list[str]:
    """Change the kept word by `say`; sentences about what is not as it should be.

    `before` is the kernel's state before the change; without it, as before an agent's first
    start after a boot, only a word that was kept is changed. Never fails: the kernel obeys.
    Within `held`.
    """
    try:
        config = session.config()
    except Failure as failure:  # there is a --root, so that nobody needed it
        return [f"this is not kept for the next boot: {failure.message}"]
    if node.tree.root != config.bpf.root:
        root = f"bpf.root is {config.bpf.root}"
        return [f"this is not kept for the next boot: {root}"] if before else []
    path, notes = mesh_word.path_of(config), list[str]()
    if before is None and not path.exists():
        return []
    otherwise = mesh_word.of_kernel(node, before, config.scope.cgroups) if before else Word()
    try:
        with mesh_word.changing(path, otherwise, notes.append) as word:
            say(word)
    except OSError as error:
        notes.append(f"this is not kept for the next boot: {path}: {error.strerror}")
    return notes
