"""Install, fail, crash, install again, uninstall: the node is as it was before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from interceptor import libbpf
from interceptor.abi import Reason
from interceptor.bpffs import locked
from interceptor.cgroup import Cgroup
from interceptor.errors import Busy, InterceptorError, KernelError, NotInstalled
from interceptor.libbpf import AttachType
from interceptor.node import Node
from interceptor.probe import Features, probe_hooks, probe_maps
from tests.kernel.ends import Ends, on_both_ends
from tests.kernel.features import without
from tests.kernel.mesh import PORT, Mesh
from tests.kernel.traces import assert_same, look, open_descriptors
from tests.support.lab import REPO, Lab, wait_until

REQUIRED = (AttachType.CONNECT4, AttachType.SOCK_OPS, AttachType.GETSOCKOPT)
PORT_OF_SERVICE = 6000


@pytest.fixture
def bare(lab: Lab) -> Mesh:
    """Nodes on which nothing is installed."""
    return Mesh(lab)


# Nothing is left


def test_node_is_the_same_before_install_and_after_uninstall(bare: Mesh) -> None:
    bare.node.agent.create()
    Cgroup(f"/{bare.lab.id}/outside").create()
    bare.serve_far()
    before = look(bare.lab)
    bare.start_agent("--in-port", str(PORT_OF_SERVICE))
    bare.kernel.add_scope(bare.node.services)
    bare.kernel.switch(on=True)
    bare.include_all()
    assert bare.who("10.77.0.2") == "OUT4"
    assert len(look(bare.lab).left_since(before)["attached"]) == 7
    bare.agent.kill()
    removal = bare.kernel.uninstall()
    assert removal.left == []
    assert f"hooks of cgroup {bare.node.services.name}" in removal.removed
    assert bare.who("10.77.0.2") == "DIRECT"
    assert_same(bare.lab, before)


def test_install_and_uninstall_twice_leak_nothing(bare: Mesh) -> None:
    before, descriptors = look(bare.lab), open_descriptors()
    for _ in range(2):
        bare.kernel.install(bare.settings())
        bare.kernel.add_scope(bare.node.services)
        bare.kernel.install(bare.settings())
        bare.kernel.uninstall()
    assert open_descriptors() == descriptors
    assert_same(bare.lab, before)


def test_agents_cgroup_and_its_parents_are_removed(bare: Mesh) -> None:
    before = look(bare.lab)
    deep = Cgroup(f"/{bare.lab.id}/moa.slice/moa-agent.slice/agent.service")
    bare.kernel.install(bare.settings(cgroup=deep))
    bare.kernel.uninstall()
    assert_same(bare.lab, before)


def test_agents_cgroup_that_is_in_use_is_left_and_named(bare: Mesh) -> None:
    bare.kernel.install(bare.settings())
    sleeper = bare.node.start("sleeper", "sleep", "60", cgroup=bare.node.agent)
    wait_until(lambda: sleeper.pid in bare.node.agent.processes(), 5, "the process is there")
    (left,) = bare.kernel.uninstall().left
    assert left == f"cgroup {bare.node.agent.name}: processes {sleeper.pid} are still in it"


def test_cgroup_that_was_there_before_is_left(bare: Mesh) -> None:
    bare.node.agent.create()
    bare.kernel.install(bare.settings())
    bare.kernel.uninstall()
    assert bare.node.agent.exists()


def test_uninstall_of_nothing_is_quiet(bare: Mesh) -> None:
    removal = bare.kernel.uninstall()
    assert (removal.removed, removal.left) == ([], [])
    assert not bare.node.root.exists()


def test_uninstall_works_while_the_agent_lives(bare: Mesh) -> None:
    bare.serve_far()
    bare.start_agent()
    bare.kernel.add_scope(bare.node.services)
    bare.kernel.switch(on=True)
    bare.include_all()
    assert bare.who("10.77.0.2") == "OUT4"
    bare.kernel.uninstall()
    assert bare.who("10.77.0.2") == "DIRECT"


def test_uninstall_needs_the_pins_alone(bare: Mesh) -> None:
    """Not the object file, not the configuration, not the agent's cgroup."""
    bare.kernel.install(bare.settings())
    bare.kernel.add_scope(bare.node.services)
    (bare.node.root / "v1" / "maps" / "cfg").unlink()
    wait_until(bare.node.agent.remove, 5, "the agent's cgroup is gone")
    bare.kernel.uninstall()
    assert not bare.node.root.exists()


def test_what_is_new_is_switched_off(bare: Mesh) -> None:
    bare.serve_far()
    bare.start_agent()
    bare.kernel.add_scope(bare.node.services)
    bare.include_all()
    with bare.counted() as moved:
        assert bare.who("10.77.0.2") == "DIRECT"
    assert moved == {Reason.CONNECT_DISABLED: 1}


# Installs that fail or crash


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
    assert killed_at(3, probe_hooks)
    scratch = [path for path in Cgroup("/").path.glob("moa-probe-*") if _is_of_the_dead(path)]
    assert len(scratch) == 1
    probe_hooks()
    assert not scratch[0].exists()


def _is_of_the_dead(scratch: Path) -> bool:
    return not Path("/proc", scratch.name.rpartition("-")[2]).exists()


def test_object_that_is_not_there(bare: Mesh, tmp_path: Path) -> None:
    before = look(bare.lab)
    with pytest.raises(KernelError, match=r"open BPF object .*ENOENT.*make build"):
        bare.kernel.install(bare.settings(), object_path=tmp_path / "none.o")
    assert_same(bare.lab, before)


def test_object_that_is_damaged(bare: Mesh, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.o"
    damaged.write_bytes(b"\x7fELF" + bytes(100))
    before = look(bare.lab)
    with pytest.raises(KernelError, match="open BPF object .*damaged.o"):
        bare.kernel.install(bare.settings(), object_path=damaged)
    assert_same(bare.lab, before)


def test_pins_of_another_layout_are_not_touched(bare: Mesh) -> None:
    bare.kernel.install(bare.settings())
    (bare.node.root / "v1" / "maps" / "counters").unlink()
    before = look(bare.lab)
    with pytest.raises(InterceptorError, match=r"another layout.*moactl uninstall"):
        bare.kernel.install(bare.settings())
    assert_same(bare.lab, before)


# Two at once


def test_two_installers_at_once(bare: Mesh) -> None:
    def install() -> bool:
        def action() -> bool:
            return bare.kernel.install(bare.settings(netns=Path("/proc/self/ns/net"))).fresh

        fresh: bool = bare.node.do(action, cgroup=Cgroup(f"/{bare.lab.id}/outside"))
        return fresh

    bare.node.agent.create()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: install(), range(4)))
    assert sorted(results) == [False, False, False, True]


def test_lock_that_another_holds_is_busy(bare: Mesh) -> None:
    bare.kernel.install(bare.settings())
    with (
        locked(bare.kernel.tree),
        pytest.raises(Busy, match="another moactl or agent"),
        locked(bare.kernel.tree, timeout_s=0.05),
    ):
        pass


def test_lock_of_a_dead_process_is_free(bare: Mesh) -> None:
    bare.kernel.install(bare.settings())
    code = (
        "import sys; from pathlib import Path; from interceptor.bpffs import PinTree, locked\n"
        "with locked(PinTree(Path(sys.argv[1]))): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(bare.node.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPO,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Busy), locked(bare.kernel.tree, timeout_s=0):
            pass
        holder.kill()
        holder.wait()
    bare.kernel.switch(on=True)


def test_lock_taken_while_another_uninstalls(bare: Mesh) -> None:
    """Whoever waited for a directory that is gone by then gets a new one."""
    bare.kernel.install(bare.settings())
    with ThreadPoolExecutor(2) as pool:
        removal = pool.submit(bare.kernel.uninstall)
        report = pool.submit(lambda: bare.kernel.install(bare.settings()))
        removal.result()
        report.result()
    bare.kernel.uninstall()
    assert not bare.node.root.exists()


# Kernels that lack a hook


@pytest.mark.parametrize("missing", REQUIRED)
def test_required_hook_is_missing(bare: Mesh, missing: AttachType) -> None:
    before = look(bare.lab)
    with pytest.raises(
        InterceptorError,
        match=r"this kernel does not support it: EINVAL .*traffic is left alone.*doctor",
    ):
        bare.kernel.install(bare.settings(), features=without(missing))
    with pytest.raises(NotInstalled):
        bare.kernel.maps()
    assert_same(bare.lab, before)


def degraded(mesh: Mesh, *missing: AttachType) -> None:
    report = mesh.kernel.install(mesh.settings(), features=without(*missing))
    assert set(report.missing_hooks) >= {m.name.lower() for m in missing}
    mesh.kernel.add_scope(mesh.node.services)
    mesh.kernel.switch(on=True)
    mesh.include_all()
    mesh.serve_far()


def dialled(mesh: Mesh, host: str) -> tuple[str | None, list[Any]]:
    """The agent's address that was reached, None for nobody; the caller's peer name."""

    def action(ends: Ends) -> list[Any]:
        caller, accepted = ends.connect(host)
        local = accepted.getsockname()[0] if accepted else None
        return [local, list(caller.getpeername()[:2])]

    local, peer = on_both_ends(mesh, action)
    return local, peer


def test_without_sk_lookup_no_spread_and_no_inbound_steering(bare: Mesh) -> None:
    degraded(bare, AttachType.SK_LOOKUP)
    assert dialled(bare, "10.77.0.2") == ("127.0.0.1", ["10.77.0.2", PORT])
    assert dialled(bare, "fd77::2") == ("::1", ["fd77::2", PORT])
    with bare.kernel.maps() as maps:
        maps.set_in_ports([PORT_OF_SERVICE])
    bare.serve(f"{bare.node.ip4}:{PORT_OF_SERVICE}", on=bare.node)
    assert bare.who(bare.node.ip4, PORT_OF_SERVICE, cgroup=bare.node.agent) == "DIRECT"


def test_without_getpeername_the_agents_address_is_seen(bare: Mesh) -> None:
    degraded(bare, AttachType.GETPEERNAME4, AttachType.GETPEERNAME6)
    local, peer = dialled(bare, "10.77.0.2")
    assert peer == [local, 15001]
    assert dialled(bare, "fd77::2") == ("::1", ["::1", 15001])


def test_without_connect6_ipv4_alone_is_redirected(bare: Mesh) -> None:
    degraded(bare, AttachType.CONNECT6)
    assert dialled(bare, "10.77.0.2")[0] is not None
    assert dialled(bare, "fd77::2") == (None, ["fd77::2", PORT])
    assert dialled(bare, "::ffff:10.77.0.2") == (None, ["::ffff:10.77.0.2", PORT])


def test_hook_that_a_newer_kernel_brings_is_attached_by_the_next_install(bare: Mesh) -> None:
    degraded(bare, AttachType.SK_LOOKUP, AttachType.GETPEERNAME4)
    report = bare.kernel.install(bare.settings())
    assert report.missing_hooks == ()
    assert "getpeername4" in bare.kernel.scopes()[0].hooks
    local, peer = dialled(bare, "10.77.0.2")
    assert str(local).startswith("127.64.")
    assert peer == ["10.77.0.2", PORT]


def test_hook_that_was_lost_is_taken_away_by_the_next_install(bare: Mesh) -> None:
    """Else an old program would go on over settings that it does not know."""
    bare.kernel.install(bare.settings())
    bare.kernel.install(bare.settings(), features=without(AttachType.SK_LOOKUP))
    degraded(bare, AttachType.SK_LOOKUP)
    assert dialled(bare, "10.77.0.2")[0] == "127.0.0.1"


def test_this_kernel_has_every_hook_and_map() -> None:
    assert [hook for hook in probe_hooks().hooks if not hook.works] == []
    assert [kind for kind in probe_maps() if not kind.works] == []


# bpffs


def test_bpffs_that_is_not_mounted_is_mounted_and_unmounted_again(bare: Mesh) -> None:
    """In a mount namespace of its own, with the standard place empty."""
    code = f"""
from pathlib import Path
from interceptor.bpffs import mounted_at
from interceptor.cgroup import Cgroup
from interceptor.node import AgentSettings, Node
standard = Path("/sys/fs/bpf")
assert mounted_at(standard / "moa") is None, mounted_at(standard / "moa")
node = Node(standard / "{bare.lab.id}-mount")
node.install(AgentSettings(Cgroup("{bare.node.agent.name}"), 15001, 15006, 0, 10**9))
assert mounted_at(standard / "moa") == standard
node.uninstall()
assert mounted_at(standard / "moa") is None
print("clean")
"""
    script = bare.node.directory / "mount.py"
    script.write_text(code)
    done = bare.node.call(
        *("unshare", "--mount", "sh", "-c", 'umount -l /sys/fs/bpf; exec "$0" "$1"'),
        *(sys.executable, str(script)),
    )
    assert done.stdout == "clean\n", done.stderr


def test_root_outside_bpffs_is_an_error(bare: Mesh, tmp_path: Path) -> None:
    with pytest.raises(InterceptorError, match="is not on a bpf file system"):
        Node(tmp_path / "moa").install(bare.settings())
    assert list(tmp_path.iterdir()) == []


def test_pins_are_for_root_alone(bare: Mesh) -> None:
    bare.kernel.install(bare.settings())
    bare.kernel.add_scope(bare.node.services)
    for path in [bare.node.root, *bare.node.root.rglob("*")]:
        assert path.stat().st_mode & 0o007 == 0, path
