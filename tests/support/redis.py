"""A real redis-server for tests: starts, dies, freezes, comes back with its data or empty."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import redis

READY_WITHIN_S = 10.0


class RedisServer:
    """One redis-server on a loopback port, its files in `directory`.

    It appends every write to a file, so that a restart after `kill` has all data. Used as a
    context manager it is ended by its pid, also when it is frozen.
    """

    def __init__(
        self, directory: Path, port: int = 0, password: str = "", options: tuple[str, ...] = ()
    ) -> None:
        self.directory = directory
        self.port = port
        self._password = password
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What an agent is configured with."""
        secret = f":{self._password}@" if self._password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The running server's; raises RuntimeError when there is none."""
        if self._process is None:
            raise RuntimeError("redis-server is not running")
        return self._process.pid

    def client(self) -> redis.Redis:
        """A plain client to look and to meddle with; the caller closes it."""
        return redis.Redis(
            port=self.port, password=self._password or None, socket_timeout=5, protocol=2
        )

    def start(self) -> RedisServer:
        """Start and wait until it answers; takes a free port when none was given."""
        for _ in range(5):  # another process may take the free port first
            port = self.port or _free_port()
            if self._start(port):
                self.port = port
                return self
            if self.port:
                break
        raise RuntimeError(f"redis-server did not start: {self._log_tail()}")

    def kill(self) -> None:
        """End it at once (SIGKILL), also when it is frozen; no error when it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=10)
            self._process = None

    def restart(self) -> None:
        """Start again on the same port with the data it had."""
        self.kill()
        self.start()

    def restart_empty(self) -> None:
        """Start again on the same port with nothing."""
        self.kill()
        shutil.rmtree(self.directory / "data")
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: the kernel goes on accepting connections, nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT after `freeze`."""
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def _start(self, port: int) -> bool:
        data = self.directory / "data"
        data.mkdir(parents=True, exist_ok=True)
        command = [
            "redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(data),
            "--appendonly", "yes", "--save", "", "--logfile", str(self.directory / "redis.log"),
            *self._options,
        ]  # fmt: skip
        if self._password:
            command += ["--requirepass", self._password]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline_s = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            if _answers(port, self._process.pid, self._password):
                return True
            time.sleep(0.01)
        self.kill()
        return False

    def _log_tail(self) -> str:
        try:
            return (self.directory / "redis.log").read_text()[-500:]
        except OSError as error:
            return str(error)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int, pid: int, password: str) -> bool:
    client = redis.Redis(port=port, password=password or None, socket_timeout=1, protocol=2)
    try:
        # Ours, and not somebody else's server on the same port.
        return int(client.info("server")["process_id"]) == pid
    except redis.RedisError:
        return False
    finally:
        client.close()
