"""Installs, updates and uninstalls that fail or are killed at any step: the next one mends it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from interceptor import libbpf
from interceptor.cgroup import Cgroup
from interceptor.errors import InterceptorError, KernelError
from interceptor.probe import Features, probe_hooks
from tests.kernel.ends import Ends, on_both_ends
from tests.kernel.mesh import Mesh
from tests.support.lab import REPO
from tests.support.traces import assert_same, look


class Crash(Exception):
    """Stands for a process that ends in the middle."""


_CHANGES = ("pin ", "attach ", "write ", "load ", "update ", "detach ", "delete ")


@contextmanager
def failing_at(step: int, fail: Callable[[], None]) -> Iterator[list[str]]:
    """Let the change with this number fail; the value lists what was changed before."""
    done: list[str] = []
    checked = libbpf._checked

    def count(what: str) -> None:
        if len(done) == step:
            fail()
        done.append(what)

    def counted_call(what: str, *arguments: Any, **more: Any) -> int:
        if what.startswith(_CHANGES):
            count(what)
        return checked(what, *arguments, **more)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: str | Path, *arguments: Any, **more: Any) -> Any:
            count(f"{real.__name__} {path}")
            return real(path, *arguments, **more)

        return call

    patch = pytest.MonkeyPatch()
    patch.setattr(libbpf, "_checked", counted_call)
    for real in (os.mkdir, os.rename, os.unlink, os.rmdir):
        patch.setattr(os, real.__name__, counted(real))
    try:
        yield done
    finally:
        patch.undo()


def killed_at(step: int, action: Callable[[], object]) -> bool:
    """Run it in a child that is killed at this step; whether it came that far."""
    pid = os.fork()
    if pid == 0:
        with failing_at(step, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            action()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def raised_at(step: int, action: Callable[[], object]) -> bool:
    def fail() -> None:
        raise Crash

    with failing_at(step, fail):
        try:
            action()
        except Crash:
            return True
    return False


Stop = Callable[[int, Callable[[], object]], bool]


def install_and_scope(mesh: Mesh, features: Features) -> None:
    mesh.kernel.install(mesh.settings(), features=features)
    mesh.kernel.add_scope(mesh.node.services)
    mesh.kernel.switch(on=True)


@pytest.mark.parametrize("stop", [killed_at, raised_at])
def test_uninstall_after_an_install_that_stopped_at_any_step(bare: Mesh, stop: Stop) -> None:
    features, before, step = probe_hooks(), look(bare.lab), 0
    while stop(step, lambda: install_and_scope(bare, features)):
        bare.kernel.uninstall()
        assert not bare.node.root.exists(), step
        assert not bare.node.agent.exists(), step
        step += 1
    assert step > 40
    bare.kernel.uninstall()
    assert_same(bare.lab, before)


@pytest.mark.parametrize("stop", [killed_at, raised_at])
def test_second_install_after_one_that_stopped_at_any_step(bare: Mesh, stop: Stop) -> None:
    features, step = probe_hooks(), 0
    bare.serve_far()
    while stop(step, lambda: install_and_scope(bare, features)):
        install_and_scope(bare, features)
        assert len(bare.kernel.scopes()[0].hooks) == 5, step
        if step % 8 == 0:
            bare.include_all()
            assert on_both_ends(bare, _is_redirected), step
        bare.kernel.uninstall()
        step += 1


def _is_redirected(ends: Ends) -> bool:
    return ends.connect("10.77.0.2")[1] is not None


def test_update_that_stopped_at_any_step_is_finished_by_the_next(
    bare: Mesh, tmp_path: Path
) -> None:
    features, step = probe_hooks(), 0
    other = tmp_path / "other.bpf.o"
    flags = ("-O1", "-g", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu")
    source = str(REPO / "bpf" / "moa.bpf.c")
    subprocess.run(["clang", *flags, "-c", source, "-o", str(other)], check=True)
    bare.serve_far()
    install_and_scope(bare, features)
    bare.include_all()

    def update() -> None:
        bare.kernel.install(bare.settings(), features=features, object_path=other)

    while killed_at(step, update):
        assert on_both_ends(bare, _is_redirected), step
        bare.kernel.install(bare.settings(), features=features)
        step += 1
    assert step > 10
    assert on_both_ends(bare, _is_redirected)


def test_uninstall_that_stopped_at_any_step_is_finished_by_the_next(bare: Mesh) -> None:
    features, before, step = probe_hooks(), look(bare.lab), 0
    install_and_scope(bare, features)
    while killed_at(step, bare.kernel.uninstall):
        bare.kernel.uninstall()
        assert not bare.node.root.exists(), step
        assert not bare.node.agent.exists(), step
        install_and_scope(bare, features)
        step += 1
    assert step > 10
    assert_same(bare.lab, before)


def test_probe_that_was_killed_leaves_nothing_after_the_next() -> None:
    before = scratch_cgroups()
    assert killed_at(3, probe_hooks)
    (left,) = scratch_cgroups() - before
    probe_hooks()
    assert not left.exists()


def scratch_cgroups() -> set[Path]:
    """Those of other tests on this machine are never of a dead process."""
    found = Cgroup("/").path.glob("moa-probe-*")
    return {path for path in found if not Path("/proc", path.name.rpartition("-")[2]).exists()}


def test_object_that_is_not_there(bare: Mesh, tmp_path: Path) -> None:
    before = look(bare.lab)
    with pytest.raises(KernelError, match=r"open BPF object .*ENOENT.*make build"):
        bare.kernel.install(bare.settings(), object_path=tmp_path / "none.o")
    assert_same(bare.lab, before)


def test_object_that_is_damaged(bare: Mesh, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.o"
    damaged.write_bytes(b"\x7fELF" + bytes(100))
    before = look(bare.lab)
    with pytest.raises(KernelError, match=r"open BPF object .*damaged\.o"):
        bare.kernel.install(bare.settings(), object_path=damaged)
    assert_same(bare.lab, before)


def test_pins_of_another_layout_are_not_touched(bare: Mesh) -> None:
    bare.kernel.install(bare.settings())
    (bare.kernel.tree.current / "maps" / "counters").unlink()
    before = look(bare.lab)
    with pytest.raises(InterceptorError, match=r"another layout.*moactl uninstall"):
        bare.kernel.install(bare.settings())
    assert_same(bare.lab, before)
