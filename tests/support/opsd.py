"""A real moa-opsd with scripted agents, in a directory of its own; needs no root."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from installer.client import AgentError
from installer.ops_client import OpsClient
from tests.support.lab import LabError, wait_until
from tests.support.scripted_agent import make_environment


class OpsdWorld:
    """`home` is short, as names of unix sockets must be; `ops` overrides `[ops]`."""

    def __init__(self, home: Path, **ops: Any) -> None:
        self.home = home
        self.runtime_dir, self.state_dir = home / "run", home / "state"
        self.state_dir.mkdir()
        self.runtime_dir.mkdir()
        quick = {
            "restart_ms": 20, "bake_s": 0, "start_s": 10, "check_s": 10, "move_s": 10,
            "adopt_s": 5, "gate_silent_s": 2, "gate_min_requests": 20,
        }  # fmt: skip
        keys = "\n".join(f"{name} = {value}" for name, value in {**quick, **ops}.items())
        self.config = home / "agent.toml"
        self.config.write_text(
            f'[node]\nname = "n"\n[agent]\nruntime_dir = "{self.runtime_dir}"\n'
            f'state_dir = "{self.state_dir}"\ndrain_timeout_s = 1\nhandover_timeout_s = 5\n'
            f'[bpf]\nroot = "{home}/bpf"\n[ops]\n{keys}\n'
        )
        self.log = home / "opsd.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.client = OpsClient(self.runtime_dir)

    def environment(self, name: str, **script: Any) -> Path:
        return make_environment(self.home / name, **script)

    def confirm(self, path: Path) -> None:
        """What is started when nothing runs."""
        (self.state_dir / "opsd.json").write_text(json.dumps({"current": str(path)}))

    def record(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.state_dir / "opsd.json").read_text())
        return document

    def start(
        self, env: dict[str, str] | None = None, stored: dict[str, int] | None = None
    ) -> None:
        """`stored` are descriptors that systemd kept, by name: handed over as it does."""
        argv = [sys.executable, "-I", "-m", "installer.opsd", str(self.config)]
        fds = list((stored or {}).values())
        if stored:
            moves = " ".join(f"{3 + n}<&{fd}" for n, fd in enumerate(fds))
            script = f'exec {moves}; LISTEN_PID=$$ exec "$@"'
            argv = ["bash", "-c", script, "bash", *argv]
            env = {**(env or {}), "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(stored)}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                argv,
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    def wait_serving(self) -> dict[str, Any]:
        """The agent that serves, as soon as one does."""
        try:
            found: dict[str, Any] = wait_until(self.serving, 20, "an agent serves")
        except LabError as error:
            raise LabError(f"{error}; supervisor: {self.words()}") from None
        return found

    def serving(self) -> dict[str, Any] | None:
        for agent in self.agents():
            if agent["state"] == "serving" and agent["linked"]:
                return agent
        return None

    def agents(self) -> list[dict[str, Any]]:
        with suppress(AgentError):
            agents: list[dict[str, Any]] = self.client.status()["agents"]
            return agents
        return []

    def last_crash(self) -> str | None:
        with suppress(AgentError):
            crash: str | None = self.client.status()["last_crash"]
            return crash
        return None

    def upgrade(self, to: Path | str, **more: Any) -> dict[str, Any]:
        """The last line."""
        return list(self.client.ask({"do": "upgrade", "to": str(to), **more}))[-1]

    def words(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def kill(self) -> None:
        """kill -9 of the supervisor."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)

    def pids_of_agents(self) -> set[int]:
        """Of every agent and keeper of this world that lives."""
        found = set()
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with suppress(OSError):
                if str(self.config).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(pid)
        return found

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self.stop()
            self.process.kill()
            self.process.wait()
        for pid in self.pids_of_agents():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def notify_socket(path: Path) -> Iterator[socket.socket]:
    """What a process with NOTIFY_SOCKET set to this path tells."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(20)
        yield sock


class Store:
    """systemd's store of descriptors, and what it was told."""

    def __init__(self, sock: socket.socket) -> None:
        self.fds: dict[str, int] = {}
        self.words = ""
        self._sock = sock

    def until(self, text: str) -> None:
        """Read until somebody says this."""
        while text not in self.words:
            words, fds, _, _ = socket.recv_fds(self._sock, 4096, 4)
            told = words.decode()
            self.words += told + "\n"
            lines = dict(line.partition("=")[::2] for line in told.splitlines())
            # High, so that they are in nobody's way when they are handed over from 3 on.
            for fd in fds:
                self.fds[lines["FDNAME"]] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100)
                os.close(fd)

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)


@contextmanager
def short_home() -> Iterator[Path]:
    """A directory with a short name, as names of unix sockets must be."""
    with tempfile.TemporaryDirectory(prefix="moa-opsd-") as made:
        yield Path(made)


@contextmanager
def serving_world(home: Path) -> Iterator[OpsdWorld]:
    """With an agent of version 1 that serves."""
    world = OpsdWorld(home)
    world.confirm(world.environment("1"))
    world.start()
    try:
        world.wait_serving()
        yield world
    finally:
        world.close()
