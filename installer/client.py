"""Asks the running agent, over HTTP on its unix socket `<agent.runtime_dir>/agent.sock`.

Blocking and free of dependencies, so that a command starts fast. Answers are the agent's JSON
as it is (docs/CLI.md); a newer agent may say more than this version knows.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

SOCKET_NAME = "agent.sock"
"""Leads to the socket of the agent that serves."""
TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 64 << 20


def own_socket_name(pid: int) -> str:
    """The name of one agent's own socket, whether it serves or not."""
    return f"agent-{pid}.sock"


class AgentError(Exception):
    """The agent did not answer as it should; `next_step` is what to do about it."""

    def __init__(self, text: str, next_step: str) -> None:
        super().__init__(text)
        self.next_step = next_step


class AgentNotRunning(AgentError):
    """Nobody serves the socket."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("agent", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(str(self._path))


class AgentClient:
    """One request a connection; each wait for the agent ends after `timeout_s`."""

    def __init__(self, socket_path: Path, timeout_s: float = TIMEOUT_S) -> None:
        self.socket_path = socket_path
        self._timeout_s = timeout_s

    @classmethod
    def of(cls, runtime_dir: Path) -> AgentClient:
        """The agent whose control socket is in this directory."""
        return cls(runtime_dir / SOCKET_NAME)

    def status(self) -> dict[str, Any]:
        """`GET /v1/status`."""
        return self.get("/v1/status")

    def conns(self) -> dict[str, Any]:
        """`GET /v1/conns`."""
        return self.get("/v1/conns")

    def services(self) -> dict[str, Any]:
        """`GET /v1/services`."""
        return self.get("/v1/services")

    def explain(
        self, service: str, group: str, method: str, props: Iterable[str]
    ) -> dict[str, Any]:
        """`GET /v1/explain`; each of `props` is `name=value`."""
        query = [("service", service), ("group", group), ("method", method)]
        query += [("prop", prop) for prop in props]
        return self.get(f"/v1/explain?{urlencode(query)}")

    def registry(self) -> dict[str, Any]:
        """`GET /v1/registry`."""
        return self.get("/v1/registry")

    def knows(self, service: str) -> dict[str, Any]:
        """`GET /v1/switches/known`."""
        return self.get(f"/v1/switches/known?{urlencode({'service': service})}")

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`; raises AgentNotRunning and AgentError."""
        return self._ask("GET", path)

    def post(self, path: str) -> dict[str, Any]:
        """Ask for a change; the JSON object that answers. Raises as `get` does."""
        return self._ask("POST", path)

    def _ask(self, method: str, path: str) -> dict[str, Any]:
        status, body = self._exchange(method, path)
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self._error(f"{method} {path}: expected a JSON object, saw {body[:60]!r}")
        if status != http.client.OK:
            reason = answer.get("error", "no reason given")
            raise self._error(f"{method} {path}: HTTP {status}: {reason}")
        return answer

    def _exchange(self, method: str, path: str) -> tuple[int, bytes]:
        connection = _UnixConnection(self.socket_path, self._timeout_s)
        try:
            connection.request(method, path, headers={"Connection": "close"})
            response = connection.getresponse()
            body = response.read(MAX_ANSWER_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            raise self._not_running("no such socket") from None
        except ConnectionRefusedError:
            raise self._not_running("the socket is there, its agent has gone") from None
        except PermissionError:
            raise AgentError(f"{self.socket_path}: permission denied", "run it as root") from None
        except TimeoutError:
            raise self._error(f"{method} {path}: no answer within {self._timeout_s:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._error(f"{method} {path}: {str(error) or type(error).__name__}") from None
        finally:
            connection.close()
        if len(body) > MAX_ANSWER_BYTES:
            raise self._error(f"{method} {path}: an answer of more than {MAX_ANSWER_BYTES} bytes")
        if response.length:  # what is still to come, where http.client can tell
            raise self._error(f"{method} {path}: the answer was cut off after {len(body)} bytes")
        return response.status, body

    def _not_running(self, why: str) -> AgentNotRunning:
        return AgentNotRunning(
            f"no agent answers at {self.socket_path}: {why}", "moactl agent run, or moactl doctor"
        )

    def _error(self, what: str) -> AgentError:
        return AgentError(f"agent at {self.socket_path}: {what}", "moactl doctor agent")
