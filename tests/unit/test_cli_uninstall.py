"""`moactl uninstall` of what needs no kernel: questions, files, broken configurations."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from installer.client import SOCKET_NAME
from tests.support.cli import as_json, moactl, write_config
from tests.support.documented import assert_as_documented


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def test_uninstall_asks_only_on_a_terminal(config: Path) -> None:
    result = moactl("-c", config, "uninstall")
    assert result.exit_code == 2
    assert "--yes" in result.stderr


def test_uninstall_of_nothing_with_a_broken_configuration(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("nonsense")
    result = moactl("-c", path, "--root", tmp_path / "pins", "uninstall", "--yes", "-o", "json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert_as_documented("uninstall", found)
    assert str(path) in found["left"]
    assert "built-in defaults" in result.stderr


def test_files_of_an_agent_with_other_pins_stay(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.lock"
    with path.open("w") as lock:
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        found = as_json("-c", config, "--root", tmp_path / "other", "uninstall", "--yes")
    assert path.exists()
    assert found["agent_pids"] == []
    assert any(f"process {os.getpid()}" in left for left in found["left"])


def test_uninstall_removes_what_a_killed_agent_left(config: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / SOCKET_NAME).touch()
    (tmp_path / "run" / "agent.lock").write_text("999999999\n")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "registry.json").touch()
    (tmp_path / "state" / "notes.txt").touch()
    first = as_json("-c", config, "uninstall", "--yes")
    assert first["agent_pids"] == []
    assert not (tmp_path / "run").exists()
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["notes.txt"]
    assert str(tmp_path / "state" / "notes.txt") in first["left"]
    again = as_json("-c", config, "uninstall", "--yes")
    assert (again["removed"], again["left"]) == ([], first["left"])
