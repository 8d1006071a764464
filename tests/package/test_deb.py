"""The .deb on a bare Debian: installed by apt without a network or a compiler, used, and purged.

`make test-package` builds it first. The system is made by debootstrap, in memory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interceptor.cgroup import Cgroup
from tests.support import agents
from tests.support.installs import picture
from tests.support.lab import REPO, Lab, LabNode
from tests.support.traces import assert_same, look

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("debootstrap"), reason="needs debootstrap"),
]

# What apt and dpkg write of every package, whatever it is.
_THEIRS = ("var/log", "var/cache", "var/lib/apt", "var/lib/dpkg", "etc/ld.so.cache", "dev", "tmp")

MANUAL = "/usr/share/man/man1/moactl.1.gz"
_COMPLETE = ". /usr/share/bash-completion/completions/moactl"

_ENTER = r"""
set -e
mount --make-rprivate /
mount -t proc proc "$0/proc"
mount --rbind /sys "$0/sys"
mount --rbind /dev "$0/dev"
echo mounted
exec sleep infinity
"""


class Debian:
    """A bare system below a directory; it has the network of a lab's node, and so none."""

    def __init__(self, node: LabNode, top: Path) -> None:
        self.node = node
        self.top = top
        self._holder = node.start("debian", "unshare", "--mount", "sh", "-c", _ENTER, str(top))
        self._holder.wait_line("mounted")

    def call(self, *argv: str, timeout_s: float = 120) -> str:
        """Run something in it; its output. Fails when it does."""
        mounts = f"/proc/{self._holder.pid}/ns/mnt"
        done = self.node.call(
            *("nsenter", f"--mount={mounts}", "chroot", str(self.top)),
            *("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"),
            *argv,
            cgroup=Cgroup(f"/{self.node.lab.id}/outside"),
            timeout_s=timeout_s,
        )  # fmt: skip
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def json(self, *argv: str) -> Any:
        return json.loads(self.call(*argv, "-o", "json"))

    def picture(self) -> dict[str, tuple[object, ...]]:
        """Every path but what apt and dpkg write of their own."""
        return {
            path: facts
            for path, facts in picture(self.top).items()
            if not path.startswith((*_THEIRS, "proc/", "sys/"))
        }


@pytest.fixture(scope="module")
def bare() -> Iterator[Path]:
    """Debian's smallest system with what our package depends on, from the host's own mirror."""
    top = Path(tempfile.mkdtemp(prefix="moa-debian-", dir="/dev/shm"))
    top.chmod(0o755)
    try:
        mirror = _host("apt-get", "indextargets", "--format", "$(REPO_URI)").split()[0]
        _host("debootstrap", "--variant=minbase", "--include=python3,libbpf1", "bookworm",
              str(top), mirror)  # fmt: skip
        yield top
    finally:
        shutil.rmtree(top)


def _host(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{argv}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_deb_is_installed_used_and_purged_on_a_bare_debian(bare: Path) -> None:
    (package,) = (REPO / "dist").glob("*.deb")
    shutil.copy(package, bare / "tmp")
    with Lab() as lab:
        node, far = lab.add_node("a"), lab.add_node("b")
        agents.start_service(far, 5000)
        debian = Debian(node, bare)
        debian.call("true")
        traces = look(lab)
        before = debian.picture()
        debian.call("apt-get", "install", "--yes", f"/tmp/{package.name}")
        debian.call("sh", "-c", "! command -v cc gcc clang pip")
        version = debian.json("moactl", "version")
        assert version["version"]
        assert version["compiled"], "as it is measured"
        assert debian.json("moactl", "install", "status")["installed"] is False
        assert "moactl" in debian.call("bash", "-c", f"{_COMPLETE}; complete -p moactl")
        assert MANUAL in debian.call("dpkg", "-L", "moa-interceptor")

        _configure(debian, far)
        debian.json("moactl", "install", "--yes")
        assert debian.json("moactl", "status")["node"]["serves"]
        doctor = debian.json("moactl", "doctor")
        assert doctor["failed"] == 0, doctor
        for check in doctor["checks"]:
            path, _, anchor = check["documentation"].partition("#")
            assert f"\n## {anchor}\n" in (bare / path.lstrip("/")).read_text()

        (bare / "etc/moa/services.toml").write_text("# changed by an operator\n")
        debian.call("apt-get", "purge", "--yes", "moa-interceptor")
        assert_same(lab, traces)
        after = debian.picture()
        assert {
            path for path in before.keys() | after if before.get(path) != after.get(path)
        } == set()


def _configure(debian: Debian, far: LabNode) -> None:
    """An operator's own configuration, which the installer finds and leaves as it is."""
    directory = debian.top / "etc/moa"
    directory.mkdir()
    node = debian.node
    (directory / "services.toml").write_text(
        f'[[service]]\nuri = "/service/demo"\ninstances = ["{far.ip4}:5000"]\n'
    )
    (directory / "agent.toml").write_text(
        f'[agent]\ncgroup = "{node.agent.name}-own"\ndrain_timeout_s = 2\n'
        f'[bpf]\nroot = "{node.root}"\n[scope]\ncgroups = ["{node.services.name}"]\n'
    )
