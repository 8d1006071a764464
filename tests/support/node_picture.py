"""A picture of a node: what an install may touch, and what it must not.

A `Machine` is a lab's node with file systems of its own: what is written below /etc, /opt, /var,
/usr/local and /run goes to memory and is gone with it.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from interceptor.cgroup import Cgroup
from tests.support.lab import REPO, LabNode, Running

WRITABLE = ("/etc", "/opt", "/var", "/usr/local", "/run")

_MOUNTS = r"""
set -e
mount --make-rprivate /
mount -t tmpfs none "$1"
shift
for place in "$@"; do
    layer=$0$place
    mkdir -p "$layer.new" "$layer.work"
    mount -t overlay overlay \
        -o "lowerdir=$place,upperdir=$layer.new,workdir=$layer.work" "$place"
done
echo mounted
exec sleep infinity
"""

# Of the machine as a whole, and changed by whoever works on it.
_VOLATILE = (
    "fs.dentry-state", "fs.file-nr", "fs.inode", "fs.aio-nr", "fs.quota", "kernel.random",
    "kernel.ns_last_pid", "kernel.pty.nr", "kernel.perf", "kernel.tainted", "kernel.usermodehelper",
    "net.netfilter.nf_conntrack_count", "vm.stat_refresh", "fs.binfmt_misc", "user.",
)  # fmt: skip


class Machine:
    """A node whose files are its own until the lab is closed."""

    def __init__(self, node: LabNode) -> None:
        self.node = node
        memory = node.directory / "memory"
        memory.mkdir()
        self._memory = memory
        self._holder: Running = node.start(
            "mounts", "unshare", "--mount", "sh", "-c", _MOUNTS, str(memory), str(memory), *WRITABLE
        )
        self._holder.wait_line("mounted")

    def command(self, *argv: str) -> list[str]:
        """How to run something here."""
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", *argv]

    def call(self, *argv: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run something here to its end, as an operator's shell outside of the mesh does."""
        outside = Cgroup(f"/{self.node.lab.id}/outside")
        return self.node.call(*self.command(*argv), cgroup=outside, timeout_s=timeout_s)

    def start(self, name: str, *argv: str) -> Running:
        outside = Cgroup(f"/{self.node.lab.id}/outside")
        return self.node.start(name, *self.command(*argv), cgroup=outside)

    def path(self, name: str) -> Path:
        """A path of this machine, as it is seen from outside."""
        return Path(f"/proc/{self._holder.pid}/root", name.lstrip("/"))

    def exists(self, pattern: str) -> bool:
        """Whether there is a path of this machine that is like this one."""
        parent = self.path(os.path.dirname(pattern))
        return any(parent.glob(os.path.basename(pattern)))

    def picture(self) -> dict[str, Any]:
        """Files, users, sockets, links, sysctls and packet filters, each as a set of texts."""
        done = self.call(sys.executable, "-m", "tests.support.node_picture", timeout_s=120)
        assert done.returncode == 0, done.stderr
        pictured: dict[str, Any] = json.loads(done.stdout)
        return {"files": list(self._files()), **pictured}

    def _files(self) -> Iterator[str]:
        """What is written over the machine's files: new, changed and removed ones. The files
        below are of whoever else works here, and move."""
        for place in WRITABLE:
            layer = self.path(f"{self._memory}{place}.new")
            for path in layer.rglob("*"):
                below = Path(place, path.relative_to(layer))
                status = path.lstat()
                facts = f"{stat.filemode(status.st_mode)} {status.st_uid} {status.st_gid}"
                if path.is_dir() and not path.is_symlink():
                    # Copied up when something is made in it, and removed again.
                    if not below.is_dir() or below.stat().st_mode != status.st_mode:
                        yield f"{below}/ {facts}"
                elif _is_removal(status) and not below.exists():
                    # Of what somebody else had below for a moment: it is gone there as well.
                    continue
                else:
                    yield f"{below} {facts} {status.st_size} {status.st_mtime_ns}"


def _is_removal(status: os.stat_result) -> bool:
    """What an overlay has in place of a path that was removed (a *whiteout*)."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What is in one picture only, by kind; empty when there is no difference."""
    found = {kind: sorted(set(before[kind]) ^ set(after[kind])) for kind in before}
    return {kind: lines for kind, lines in found.items() if lines}


def _run(*argv: str) -> list[str]:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def _sysctls() -> list[str]:
    found = []
    for path in Path("/proc/sys").rglob("*"):
        name = str(path.relative_to("/proc/sys")).replace("/", ".")
        if not name.startswith(_VOLATILE) and path.is_file():
            with suppress(OSError):  # some can only be written
                found.append(f"{name} = {path.read_bytes()!r}")
    return found


def _settled(lines: list[str]) -> list[str]:
    """Without link-local addresses, which a new node still checks for duplicates."""
    return [line for line in lines if "fe80:" not in line]


def _legacy_tables() -> list[str]:
    """Of the old kind, which nft does not list."""
    paths = (Path("/proc/net/ip_tables_names"), Path("/proc/net/ip6_tables_names"))
    return [line for path in paths if path.exists() for line in path.read_text().splitlines()]


def _take() -> dict[str, list[str]]:
    return {
        "users": [*_run("getent", "passwd"), *_run("getent", "group")],
        "listening": _run("ss", "-Hltun"),
        "unix sockets": _run("ss", "-Hlx"),
        "links": _settled(_run("ip", "-o", "addr")),
        "routes": _settled([*_run("ip", "route", "show", "table", "all"), *_run("ip", "rule")]),
        "sysctls": _sysctls(),
        "nftables": _run("nft", "list", "ruleset"),
        "iptables": _legacy_tables(),
        "mounts": [
            m for m in Path("/proc/self/mounts").read_text().splitlines() if "nsfs" not in m
        ],
    }


if __name__ == "__main__":
    sys.path.insert(0, str(REPO))
    print(json.dumps(_take()))
