"""`moactl agent upgrade` and its kin before a supervisor that says what a test tells it to."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from installer.cli import upgrade
from installer.cli.session import Session
from tests.support import documented
from tests.support.cli import moactl, write_config
from tests.support.documented import assert_as_documented

Line = dict[str, Any]

BAKING: Line = {k: v for k, v in documented.example("agent upgrade").items() if k != "schema"}
MOVING: Line = {
    **BAKING, "event": "progress", "stage": "giving", "text": "", "moved": 500, "total": 2041,
    "in_flight": 12, "elapsed_s": 9.5, "left_s": 1.5, "baked_s": None, "after": None,
}  # fmt: skip
DONE: Line = {
    **BAKING, "event": "done", "stage": "done", "text": "", "elapsed_s": 32.4, "left_s": None,
    "baked_s": None, "outcome": "upgraded", "ok": True, "done": True,
}  # fmt: skip
UNDONE: Line = {
    **DONE, "text": "the new agent does not pass: its loop is 900 ms late", "ok": False,
    "outcome": "rolled back", "next": "moactl agent status",
}  # fmt: skip


@contextmanager
def answering(path: Path, lines: Sequence[Line], asked: list[Line]) -> Iterator[None]:
    """One caller is answered with these lines."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))
        sock.listen()

        def serve() -> None:
            caller, _ = sock.accept()
            with caller, caller.makefile("rb") as file:
                asked.append(json.loads(file.readline()))
                caller.sendall(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(10)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def opsd(config: Path) -> Path:
    return config.parent / "run" / "opsd.sock"


def test_upgrade_that_goes_well(config: Path) -> None:
    asked: list[Line] = []
    with answering(opsd(config), [MOVING, BAKING, DONE], asked):
        seen = moactl("-c", config, "agent", "upgrade", "--to", "0.2.0", "--bake", "30")
    assert seen.exit_code == 0, seen.stderr
    assert asked == [{"do": "upgrade", "to": "0.2.0", "bake_s": 30.0}]
    assert "500/2041 connections, 12 requests in flight, 1.5 s left" in seen.stdout
    assert "the new agent serves; the old one can take everything back" in seen.stdout
    assert "0.1.0 (process 4711) to 0.2.0 (process 5120)" in seen.stdout
    assert "1.2 ms before, 1.3 ms after" in seen.stdout
    assert seen.stdout.isascii()


def test_upgrade_that_is_taken_back(config: Path) -> None:
    with answering(opsd(config), [BAKING, UNDONE], []):
        seen = moactl("-c", config, "agent", "upgrade", "--to", "0.2.0")
    assert seen.exit_code == 1
    assert "rolled back: the new agent does not pass: its loop is 900 ms late" in seen.stderr
    assert "next: moactl agent status" in seen.stderr


@pytest.mark.parametrize("command", ["upgrade --to /x", "restart", "rollback"])
def test_lines_of_json(config: Path, command: str) -> None:
    words = command.split()
    with answering(opsd(config), [MOVING, BAKING, UNDONE], []):
        seen = moactl("-c", config, "agent", *words, "-o", "json")
    assert seen.exit_code == 1
    lines = [json.loads(line) for line in seen.stdout.splitlines()]
    assert [line["event"] for line in lines] == ["progress", "stage", "done"]
    for line in lines:
        assert_as_documented(f"agent {words[0]}", line)


def test_path_is_made_absolute(config: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[Line] = []
    with answering(opsd(config), [DONE], asked):
        moactl("-c", config, "agent", "upgrade", "--to", "./venv")
    assert asked[0]["to"] == str(tmp_path / "venv")


def test_refusal(config: Path) -> None:
    line = {"event": "error", "error": "one at a time", "next": "wait", "done": True}
    with answering(opsd(config), [line], []):
        seen = moactl("-c", config, "agent", "rollback")
    assert (seen.exit_code, seen.stdout) == (1, "")
    assert "one at a time\n  next: wait" in seen.stderr


def test_supervisor_that_hangs_up(config: Path) -> None:
    with answering(opsd(config), [BAKING], []):
        seen = moactl("-c", config, "agent", "restart")
    assert seen.exit_code == 1
    assert "hung up in the middle" in seen.stderr


@pytest.mark.parametrize("command", ["upgrade --to 1", "restart", "rollback", "start", "status"])
def test_without_a_supervisor(config: Path, command: str) -> None:
    seen = moactl("-c", config, "agent", *command.split())
    assert seen.exit_code == 1
    assert "no supervisor answers" in seen.stderr
    assert "next: systemctl start moa-opsd" in seen.stderr


def test_wrong_usage(config: Path) -> None:
    assert moactl("-c", config, "agent", "upgrade").exit_code == 2
    assert moactl("-c", config, "agent", "upgrade", "--to", "1", "--bake", "-1").exit_code == 2


def test_versions_without_a_supervisor(config: Path) -> None:
    state = config.parent / "state"
    state.mkdir()
    (state / "opsd.json").write_text('{"current": "/a/b", "previous": null}')
    seen = moactl("-c", config, "agent", "versions", "-o", "json")
    assert seen.exit_code == 0, seen.stderr
    versions = json.loads(seen.stdout)["versions"]
    assert [(v["environment"], v["current"], v["running"]) for v in versions][-1:] == [
        ("/a/b", True, False)
    ]


def test_status(config: Path) -> None:
    example = {k: v for k, v in documented.example("agent status").items() if k != "schema"}
    line = {"event": "status", **example, "upgrade": MOVING, "done": True}
    with answering(opsd(config), [line], []):
        seen = moactl("-c", config, "agent", "status")
    assert seen.exit_code == 0, seen.stderr
    assert "giving, to /opt/moa/versions/0.2.0" in seen.stdout
    assert "2041" in seen.stdout


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    warning = {**BAKING, "event": "warning", "text": "the old agent died"}
    last = upgrade.follow(Session(), "agent.upgrade/1", iter([MOVING, BAKING, warning, DONE]))
    seen = capsys.readouterr().out
    assert last is DONE
    assert "the old agent died" in seen
    assert "upgraded" in seen
