"""`moactl switch` and what is said of it elsewhere, with and without an agent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from installer import switches
from installer.client import SOCKET_NAME
from tests.support.cli import as_json, moactl, write_config
from tests.support.documented import assert_as_documented
from tests.support.fake_agent import http_answer, serving


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def test_damaged_file_is_not_taken_for_all_is_on_and_not_overwritten(
    config: Path, tmp_path: Path
) -> None:
    as_json("switch", "off", "service", "/service/a", "-c", config)
    path = tmp_path / "state" / switches.LOCAL
    for text in ("{bad", path.read_text().replace("off", "of")):
        path.write_text(text)
        for argv in (("list",), ("on", "service", "/service/q"), ("off", "service", "/service/q")):
            result = moactl("switch", *argv, "-c", config)
            assert (result.exit_code, result.stdout) == (1, "")
            assert f"{path}: is damaged" in result.stderr
            assert (
                f"next: mend it, or move it away: then all is on here (mv {path}" in result.stderr
            )
            assert path.read_text() == text


def test_service_that_the_agent_does_not_know_is_told(config: Path, tmp_path: Path) -> None:
    socket = tmp_path / "run" / SOCKET_NAME

    def off(known: bool, similar: list[str]) -> str:
        answers = {
            "/v1/switches/known": {"known": known, "similar": similar},
            "/v1/switches/reload": {"switched_off": []},
        }
        raw = {path: http_answer(json.dumps(found).encode()) for path, found in answers.items()}
        with serving(socket, raw):
            result = moactl("switch", "off", "service", "demo", "-c", config)
        socket.unlink()
        assert result.exit_code == 0
        assert result.stdout == "service demo is off on this node\n"
        return result.stderr

    assert off(True, []) == ""
    assert off(False, []) == "note: the agent here knows no service demo\n"
    assert "did you mean /service/demo?" in off(False, ["/service/demo"])


def test_agent_of_an_older_version_is_not_asked_in_vain(config: Path, tmp_path: Path) -> None:
    raw = {"/v1/switches/reload": http_answer(b'{"switched_off": []}')}
    with serving(tmp_path / "run" / SOCKET_NAME, raw):
        result = moactl("switch", "off", "service", "demo", "-c", config)
    assert (result.exit_code, result.stderr) == (0, "")


def test_status_says_what_is_switched_off_without_an_agent(config: Path, tmp_path: Path) -> None:
    assert as_json("status", "-c", config)["switched_off"] == []
    assert "switched off" not in moactl("status", "-c", config).stdout
    as_json("switch", "off", "service", "/service/a", "-c", config)
    found = as_json("status", "-c", config)
    assert_as_documented("status", found)
    assert [(s["name"], s["where"]) for s in found["switched_off"]] == [("/service/a", "node")]
    assert "switched off: service /service/a (node)" in moactl("status", "-c", config).stdout
    (tmp_path / "state" / switches.LOCAL).write_text("{bad")
    assert as_json("status", "-c", config)["switched_off"] is None
    assert "switched off: cannot be told: " in moactl("status", "-c", config).stdout


@pytest.mark.parametrize(("text", "is_bad"), [("99999h", True), ("25h", True), ("24h", False)])
def test_time_to_confirm_is_a_day_at_most(config: Path, text: str, is_bad: bool) -> None:
    result = moactl("mesh", "on", "--confirm-within", text, "-c", config)
    assert ("expected at most 24h" in result.stderr) == is_bad
    assert result.exit_code == (2 if is_bad else 1)  # nothing is installed
