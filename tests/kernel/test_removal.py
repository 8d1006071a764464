"""Uninstall takes away what an install makes, and nothing else, whatever root it is given."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from interceptor.bpffs import agent_lock
from interceptor.errors import Busy, InterceptorError
from interceptor.node import Node
from tests.kernel.mesh import Mesh

pytestmark = pytest.mark.kernel


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path(f"/sys/fs/bpf/moa{secrets.token_hex(3)}-removal")
    yield path
    for directory in sorted(path.rglob("*"), reverse=True):
        directory.rmdir()
    if path.exists():
        path.rmdir()


def test_an_ordinary_directory_is_refused_and_kept(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (victim / "marks").mkdir(parents=True)
    (victim / "letter").write_text("dear")
    with pytest.raises(InterceptorError, match="not on a bpf file system"):
        Node(victim).uninstall()
    assert (victim / "letter").read_text() == "dear"
    assert (victim / "marks").is_dir()


def test_the_file_system_itself_is_refused(root: Path) -> None:
    (root / "somebody").mkdir(parents=True)
    with pytest.raises(InterceptorError, match="others use as well"):
        Node(Path("/sys/fs/bpf")).uninstall()
    assert (root / "somebody").is_dir()


def test_a_strangers_entry_in_the_root_is_left_and_named(root: Path) -> None:
    for name in ("v1", "new-17", "marks", "cilium"):
        (root / name).mkdir(parents=True)
    removal = Node(root).uninstall()
    assert removal.left == [f"{root}/cilium: is not ours"]
    assert [path.name for path in root.iterdir()] == ["cilium"]


def test_pins_have_one_agent(root: Path) -> None:
    node = Node(root)
    with agent_lock(node.tree):
        with pytest.raises(Busy, match="another agent serves"):
            node.lock_agent()
        assert root.exists()
    assert not root.exists()
    node.unlock_agent(node.lock_agent())
    assert not root.exists()


def test_agents_are_counted(mesh: Mesh) -> None:
    first = mesh.kernel.begin_generation()
    assert mesh.kernel.begin_generation() == first + 1
