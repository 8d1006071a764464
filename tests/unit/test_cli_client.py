"""What the client says when the agent is gone, hangs, or answers nonsense."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from installer.client import AgentClient, AgentError, AgentNotRunning
from tests.support.fake_agent import http_answer, serving


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


def test_no_socket(path: Path) -> None:
    with pytest.raises(AgentNotRunning, match="no such socket") as caught:
        AgentClient(path).status()
    assert "moactl agent run" in caught.value.next_step


def test_runtime_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(AgentNotRunning):
        AgentClient.of(tmp_path / "run").status()


def test_socket_of_a_killed_agent(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with pytest.raises(AgentNotRunning, match="its agent has gone"):
        AgentClient(path).status()


def test_path_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="too long"):
        AgentClient(tmp_path / ("x" * 120)).status()


def test_hung_agent_is_given_up_after_the_deadline(path: Path) -> None:
    started_s = time.monotonic()
    with serving(path, {"/v1/status": b""}), pytest.raises(AgentError, match=r"within 0\.2 s"):
        AgentClient(path, timeout_s=0.2).status()
    assert time.monotonic() - started_s < 5


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (http_answer(b"not json"), "expected a JSON object"),
        (http_answer(b"[1]"), "expected a JSON object"),
        (http_answer(b"[" * 100_000), "expected a JSON object"),
        (http_answer(b'{"error": "user 7 may not ask"}', "403 Forbidden"), "user 7 may not ask"),
        (b"SSH-2.0-OpenSSH\r\n", "GET /v1/status"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", "cut off after 2 bytes"),
    ],
)
def test_answer_that_is_none(path: Path, raw: bytes, text: str) -> None:
    with serving(path, {"/v1/status": raw}), pytest.raises(AgentError, match=text) as caught:
        AgentClient(path).status()
    assert not isinstance(caught.value, AgentNotRunning)


def test_answer(path: Path) -> None:
    answers = {f"/v1/{name}": http_answer(b'{"x": 1}') for name in ("status", "conns", "services")}
    with serving(path, answers):
        client = AgentClient(path)
        assert client.status() == client.conns() == client.services() == {"x": 1}
        with pytest.raises(AgentError, match="HTTP 404"):
            client.registry()
