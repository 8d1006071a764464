"""Several nodes on one machine: network namespaces on one bridge, and cgroups of their own.

Everything that a `Lab` makes carries its random id and is removed by `close`, also after a
failure: processes (only those it started, by id), cgroups, namespaces, pins, directories.
"""

from __future__ import annotations

import ctypes
import encodings.idna  # noqa: F401  (see LabNode.do)
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from interceptor.cgroup import Cgroup

REPO = Path(__file__).resolve().parents[2]
_CLONE_NEWNET = 0x40000000
_NETNS_DIR = Path("/run/netns")
_ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


class LabError(Exception):
    """The lab could not be built, or a process in it did not do what it should."""


def run(*argv: str, check: bool = True) -> str:
    """Run a command to its end; its output, or `LabError` with its words."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


@dataclass(slots=True)
class Running:
    """A process that the lab started; its output goes to a file and can be waited for."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    _seen: int = 0

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_line(self, text: str, timeout_s: float = 20.0) -> str:
        """The first line that holds `text`, as soon as it is written."""

        def found() -> str | None:
            return next((line for line in self.output.splitlines() if text in line), None)

        line = wait_until(
            lambda: found() or (self.popen.poll() is not None and (found() or "\0exited")),
            timeout_s,
            f"{self.name}: no line with {text!r}; output:\n{self.output}",
        )
        if line == "\0exited":
            raise LabError(f"{self.name}: exited {self.popen.returncode}; output:\n{self.output}")
        return str(line)

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """End it with -9 and reap it."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()

    def stop(self, timeout_s: float = 10.0) -> int:
        """End it with SIGTERM; its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.terminate()
            try:
                self.popen.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
                raise LabError(f"{self.name}: did not end on SIGTERM in {timeout_s} s") from None
        return self.popen.returncode


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Poll until the condition is true and return its value; `LabError` after the deadline."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise LabError(f"not within {timeout_s} s: {what}")
        select.select([], [], [], 0.01)


@dataclass(slots=True)
class LabNode:
    """A node: a network namespace with one address of each family, and two cgroups."""

    lab: Lab
    name: str
    ip4: str
    ip6: str
    services: Cgroup
    agent: Cgroup
    root: Path
    """Of its pins in bpffs."""
    directory: Path
    """For its files."""

    @property
    def netns(self) -> Path:
        return _NETNS_DIR / f"{self.lab.id}-{self.name}"

    def command(self, argv: Sequence[str], cgroup: Cgroup | None) -> list[str]:
        """How to run something on this node: in its namespace, in this cgroup."""
        entered = ["nsenter", f"--net={self.netns}"]
        if cgroup is not None:
            cgroup.create()
            entered += ["sh", "-c", _ENTER, str(cgroup.path)]
        return [*entered, *argv]

    def start(
        self,
        name: str,
        *argv: str,
        cgroup: Cgroup | None = None,
        env: dict[str, str] | None = None,
    ) -> Running:
        """Start a process; in the services' cgroup unless told otherwise."""
        log = self.directory / f"{name}-{len(self.lab.processes)}.log"
        with log.open("wb") as out:
            popen = subprocess.Popen(
                self.command(argv, cgroup or self.services),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(REPO), **(env or {})},
                start_new_session=True,
            )
        running = Running(f"{self.name}/{name}", popen, log)
        self.lab.processes.append(running)
        return running

    def python(self, name: str, *argv: str, cgroup: Cgroup | None = None) -> Running:
        return self.start(name, sys.executable, *argv, cgroup=cgroup)

    def call(
        self, *argv: str, cgroup: Cgroup | None = None, timeout_s: float = 30.0, input: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this node to its end."""
        return subprocess.run(
            self.command(argv, cgroup or self.services),
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )

    def do(
        self, action: Callable[[], Any], *, cgroup: Cgroup | None = None, timeout_s: float = 30.0
    ) -> Any:
        """Run a function in a forked child on this node; its JSON-able result.

        The child's exception comes back as `LabError` with its traceback. A fork while another
        thread imports leaves the child with a lock that nobody releases: what connect() would
        import first, the name codec, is imported above.
        """
        chosen = cgroup or self.services
        chosen.create()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _child(self.netns, chosen, action, writer)
        os.close(writer)
        try:
            return _collect(reader, timeout_s)
        finally:
            os.close(reader)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _child(netns: Path, cgroup: Cgroup, action: Callable[[], Any], writer: int) -> None:
    code = 0
    try:
        enter_netns(netns)
        cgroup.add(os.getpid())
        payload = json.dumps({"value": action()})
    except BaseException:
        payload, code = json.dumps({"error": traceback.format_exc()}), 1
    with os.fdopen(writer, "w") as out:
        out.write(payload)
    os._exit(code)


def _collect(reader: int, timeout_s: float) -> Any:
    chunks, deadline_s = [], time.monotonic() + timeout_s
    while True:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not select.select([reader], [], [], left_s)[0]:
            raise LabError(f"a function on a node did not return in {timeout_s} s")
        chunk = os.read(reader, 65536)
        if not chunk:
            break
        chunks.append(chunk)
    answer = json.loads(b"".join(chunks))
    if "error" in answer:
        raise LabError(answer["error"])
    return answer["value"]


def enter_netns(path: Path) -> None:
    """Move the calling thread into a network namespace (os.setns is Python 3.12)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {path}")
    finally:
        os.close(fd)


@dataclass(slots=True)
class Lab:
    """A set of nodes on one bridge: 10.77.0.0/24 and fd77::/64."""

    id: str = field(default_factory=lambda: f"moa{secrets.token_hex(3)}")
    nodes: dict[str, LabNode] = field(default_factory=dict)
    processes: list[Running] = field(default_factory=list)
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="moa-lab-")))
    at_close: list[Callable[[], None]] = field(default_factory=list)

    def __enter__(self) -> Self:
        try:
            self._netns_add("switch")
            self._ip("switch", "link add br0 type bridge", "link set br0 up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _netns_add(self, name: str) -> None:
        run("ip", "netns", "add", f"{self.id}-{name}")

    def _ip(self, node: str, *lines: str) -> None:
        subprocess.run(
            ["ip", "-n", f"{self.id}-{node}", "-batch", "-"],
            input="\n".join(lines),
            text=True,
            check=True,
            capture_output=True,
        )

    def add_node(self, name: str) -> LabNode:
        """A new node, reachable from the others."""
        number = len(self.nodes) + 1
        ip4, ip6 = f"10.77.0.{number}", f"fd77::{number}"
        self._netns_add(name)
        switch, port = f"{self.id}-switch", f"p{number}"
        self._ip(name, f"link add eth0 type veth peer name {port} netns {switch}")
        self._ip("switch", f"link set {port} master br0", f"link set {port} up")
        self._ip(
            name,
            "link set lo up",
            "link set eth0 up",
            f"addr add {ip4}/24 dev eth0",
            f"addr add {ip6}/64 dev eth0 nodad",
        )
        directory = self.directory / name
        directory.mkdir()
        node = LabNode(
            lab=self,
            name=name,
            ip4=ip4,
            ip6=ip6,
            services=Cgroup(f"/{self.id}/{name}/services"),
            agent=Cgroup(f"/{self.id}/{name}-agent"),
            root=Path(f"/sys/fs/bpf/{self.id}-{name}"),
            directory=directory,
        )
        self.nodes[name] = node
        node.services.create()
        return node

    def close(self) -> None:
        """Undo everything; goes on when a step fails, and fails at the end."""
        for action in reversed(self.at_close):
            with suppress(Exception):
                action()
        for process in reversed(self.processes):
            with suppress(ProcessLookupError):
                process.kill()
        _uninstall_nodes(list(self.nodes.values()))
        for pid in Cgroup(f"/{self.id}").processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in [*self.nodes, "switch"]:
            run("ip", "netns", "del", f"{self.id}-{name}", check=False)
        wait_until(lambda: _remove_cgroups(Cgroup(f"/{self.id}")), 10, "cgroups removed")
        shutil.rmtree(self.directory, ignore_errors=True)


def _uninstall_nodes(nodes: list[LabNode]) -> None:
    from interceptor.node import Node

    for node in nodes:
        with suppress(Exception):
            Node(node.root).uninstall()


def _remove_cgroups(top: Cgroup) -> bool:
    if not top.exists():
        return True
    for directory, _, _ in os.walk(top.path, topdown=False):
        with suppress(OSError):
            os.rmdir(directory)
    return not top.exists()


def connect(host: str, port: int, timeout_s: float = 5.0) -> socket.socket:
    """A plain connect(), as a service does it."""
    return socket.create_connection((host, port), timeout=timeout_s)
