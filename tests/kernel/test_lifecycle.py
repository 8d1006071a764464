"""Install and uninstall, by one or by several at once: the node is as it was before."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from interceptor.abi import Reason
from interceptor.bpffs import locked
from interceptor.cgroup import Cgroup
from interceptor.errors import Busy, InterceptorError
from interceptor.node import Node
from tests.kernel.mesh import Mesh
from tests.support.lab import REPO, wait_until
from tests.support.traces import assert_same, look, open_descriptors

PORT_OF_SERVICE = 6000


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
    (bare.kernel.tree.current / "maps" / "cfg").unlink()
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
    unmount = "while umount -l /sys/fs/bpf; do :; done 2>/dev/null"
    done = bare.node.call(
        *("unshare", "--mount", "sh", "-c", f'{unmount}; exec "$0" "$1"'),
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
