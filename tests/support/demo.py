"""The sample service as a process for tests: starts, ends politely, dies, freezes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

DEMO_SERVICE = Path(__file__).parents[1] / "samples" / "demo_service.py"
READY_WITHIN_S = 10.0
ENDED_WITHIN_S = 10.0


class DemoProcess:
    """One `tests/samples/demo_service.py`; `arguments` are its command line's.

    Used as a context manager it is ended by its pid, also when it is frozen. `prefix` is put
    before the command, as in `("ip", "netns", "exec", "b")`.
    """

    def __init__(self, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
        self._command = [*prefix, sys.executable, str(DEMO_SERVICE), *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""
        """`host:port`, known once it has started."""

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.address.rpartition(":")[2])

    @property
    def pid(self) -> int:
        """The running process's; raises RuntimeError when there is none."""
        if self._process is None:
            raise RuntimeError("the demo service is not running")
        return self._process.pid

    def start(self) -> DemoProcess:
        """Start and wait for its line `ready host:port`."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        line, deadline_s = b"", time.monotonic() + READY_WITHIN_S
        while not line.endswith(b"\n"):
            left_s = deadline_s - time.monotonic()
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, left_s))
            byte = os.read(self._process.stdout.fileno(), 1) if ready else b""
            if not byte:
                self.kill()
                raise RuntimeError(f"{self._command}: said {line!r} and not 'ready host:port'")
            line += byte
        self.address = line.decode().split()[1]
        return self

    def terminate(self) -> int:
        """SIGTERM; returns the exit code once it has ended."""
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(timeout=ENDED_WITHIN_S)
        self._forget()
        return code

    def kill(self) -> None:
        """SIGKILL, also when it is frozen; no error when it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=ENDED_WITHIN_S)
            self._forget()

    def freeze(self) -> None:
        """SIGSTOP: the kernel goes on accepting connections, nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT after `freeze`."""
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> DemoProcess:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def _forget(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
