"""Asks the supervisor over `<agent.runtime_dir>/opsd.sock`: one line of JSON, lines of JSON back.

Blocking and free of dependencies, so that a command starts fast.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from installer.client import AgentError

SOCKET_NAME = "opsd.sock"
SILENT_S = 30.0
"""It says something each second while an upgrade is under way."""

_MAX_LINE = 1 << 20


class SupervisorNotRunning(AgentError):
    """Nobody serves the socket."""


class OpsClient:
    """One request a connection."""

    def __init__(self, runtime_dir: Path, silent_s: float = SILENT_S) -> None:
        self.path = runtime_dir / SOCKET_NAME
        self._silent_s = silent_s

    def ask(self, word: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Each line of the answer, the last with `done`; raises AgentError when it refuses, and
        SupervisorNotRunning. Closing the iterator hangs up and stops nothing."""
        with closing(self._connect()) as sock:
            try:
                sock.sendall(json.dumps(word).encode() + b"\n")
                yield from self._lines(sock)
            except TimeoutError:
                raise self._error(f"said nothing for {self._silent_s:g} s") from None
            except OSError as error:
                raise self._error(error.strerror or str(error)) from None

    def status(self) -> dict[str, Any]:
        """How things stand."""
        return list(self.ask({"do": "status"}))[-1]

    def start(self) -> bool:
        """Have an agent started now; False when there is one."""
        return bool(list(self.ask({"do": "start"}))[-1]["started"])

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self._silent_s)
        try:
            sock.connect(str(self.path))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            sock.close()
            why = "no such socket" if isinstance(error, FileNotFoundError) else "nobody is there"
            raise SupervisorNotRunning(
                f"no supervisor answers at {self.path}: {why}; an agent that runs without one "
                "cannot be upgraded",
                "systemctl start moa-opsd, or run moa-opsd",
            ) from None
        except PermissionError:
            sock.close()
            raise AgentError(f"{self.path}: permission denied", "run it as root") from None
        except BaseException:
            sock.close()
            raise
        return sock

    def _lines(self, sock: socket.socket) -> Iterator[dict[str, Any]]:
        with sock.makefile("rb") as file:
            while line := file.readline(_MAX_LINE):
                try:
                    word = json.loads(line)
                except ValueError:
                    raise self._error(f"expected JSON, saw {line[:60]!r}") from None
                if word.get("event") == "error":
                    raise AgentError(str(word.get("error")), str(word.get("next")))
                yield word
                if word.get("done"):
                    return
        raise self._error("hung up in the middle; the upgrade goes on")

    def _error(self, what: str) -> AgentError:
        return AgentError(f"supervisor at {self.path}: {what}", "moactl agent status")
