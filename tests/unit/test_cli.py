"""The command line without a kernel: options, exit codes, and what it says on errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.agent_lock import LOCK_NAME
from installer.cli import output
from installer.cli.main import COMMANDS, root
from installer.cli.session import DEFAULT_CONFIG
from installer.config import DEFAULT_PATH
from installer.next_steps import TO_INSTALL
from interceptor.errors import Busy
from tests.support.cli import as_json, commands, moactl, write_config
from tests.support.documented import assert_as_documented


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def test_summaries_in_help_are_the_commands_own() -> None:
    for name, lazy in COMMANDS.items():
        assert lazy.load().get_short_help_str(80) == lazy.summary, name


def test_help_imports_no_command() -> None:
    script = (
        "import sys\nfrom installer.cli.main import root\n"
        "root.main(['--help'], standalone_mode=False)\n"
        "heavy = {'pydantic', 'rich.console', 'redis', 'psutil', 'installer.cli.status'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "Commands:" in done.stdout
    assert done.stderr.strip() == "[]"


def test_every_command_takes_the_shared_options_and_says_what_it_does() -> None:
    for name, command in commands(root):
        options = {text for param in command.params for text in param.opts}
        assert {"-c", "--config", "-o", "--output", "--root"} <= options, name
        assert command.help, name


def test_default_configuration_in_the_help_is_the_real_one() -> None:
    assert str(DEFAULT_PATH) == DEFAULT_CONFIG


def test_unknown_command_is_a_usage_error() -> None:
    assert moactl("frobnicate").exit_code == 2


@pytest.mark.parametrize(
    "argv",
    [
        ["status", "-o", "xml"],
        ["mesh", "on", "--force"],
        ["service", "show"],
        ["service", "register", "/service/demo", "localhost:5000"],
        ["service", "register", "/service/demo", "10.0.0.1:5000", "--weight", "-1"],
        ["service", "register", "/service/demo", "10.0.0.1:5000", "--codec", "xml"],
        ["service", "register", "/service/{demo}", "10.0.0.1:5000"],
        ["service", "register", "/service/demo#a", "10.0.0.1:5000", "--group", "b"],
        ["doctor", "no-such-check"],
    ],
)
def test_wrong_usage_exits_with_2_and_prints_no_result(argv: list[str], config: Path) -> None:
    result = moactl("-c", config, *argv)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""


def test_named_configuration_that_is_missing_is_an_error(tmp_path: Path) -> None:
    result = moactl("status", "-c", tmp_path / "none.toml")
    assert result.exit_code == 1
    assert "none.toml: cannot be read" in result.stderr
    assert "next: moactl config check" in result.stderr


@pytest.mark.parametrize("before", [True, False])
def test_shared_options_before_and_after_the_command(before: bool, config: Path) -> None:
    options = ["-c", str(config), "-o", "json"]
    result = moactl(*options, "config", "show") if before else moactl("config", "show", *options)
    assert json.loads(result.stdout)["file"] == str(config)


def test_option_after_the_command_wins(config: Path) -> None:
    result = moactl("-o", "table", "-c", "/nowhere", "config", "show", "-o", "json", "-c", config)
    assert json.loads(result.stdout)["file"] == str(config)


def test_root_option_takes_the_place_of_the_configured_one(config: Path, tmp_path: Path) -> None:
    found = as_json("status", "-c", config, "--root", tmp_path / "other")
    assert found["root"] == str(tmp_path / "other")


@pytest.mark.parametrize("command", ["conns"])
def test_command_that_needs_an_agent_names_the_next_command(command: str, config: Path) -> None:
    result = moactl("-c", config, command)
    assert result.exit_code == 1
    assert "no agent answers at" in result.stderr
    assert "next: moactl agent run" in result.stderr
    assert result.stdout == ""


def test_nothing_installed(config: Path) -> None:
    status = as_json("-c", config, "status")
    assert_as_documented("status", status)
    assert (status["installed"], status["node"], status["agent"]) == (False, None, None)
    assert "no agent answers" in status["agent_error"]

    on = moactl("-c", config, "mesh", "on")
    assert (on.exit_code, on.stdout) == (1, "")
    assert f"next: {TO_INSTALL}" in on.stderr

    off = as_json("-c", config, "mesh", "off")
    assert_as_documented("mesh off", off)
    assert off["changed"] is False
    tap = moactl("-c", config, "tap")
    assert tap.exit_code == 1
    assert tap.stderr.count("moactl agent run") == 1


@pytest.fixture
def running_agent(config: Path, tmp_path: Path) -> Iterator[int]:
    """A process, this one, that holds the agent's lock."""
    with (tmp_path / "run" / LOCK_NAME).open("w") as lock:
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield os.getpid()


def test_agent_that_was_uninstalled_under_its_feet_is_named(
    running_agent: int, config: Path, tmp_path: Path
) -> None:
    on = moactl("-c", config, "mesh", "on")
    assert f"process {running_agent} still runs but was uninstalled" in on.stderr
    assert "next: stop it" in on.stderr
    other = moactl("-c", config, "--root", tmp_path / "other", "mesh", "on")
    assert f"next: {TO_INSTALL}" in other.stderr


def test_second_agent_is_told_of_the_first(
    running_agent: int, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise Busy("lock: an agent runs already")

    monkeypatch.setattr("installer.agent.run", busy)
    result = moactl("-c", config, "agent", "run")
    assert result.exit_code == 1
    assert f"next: moactl status; kill {running_agent}" in result.stderr


def test_looking_at_a_node_makes_nothing(config: Path, tmp_path: Path) -> None:
    for argv in (["status"], ["mesh", "off"], ["mesh", "on"], ["tap"], ["uninstall", "--yes"]):
        moactl("-c", config, *argv)
        assert not (tmp_path / "pins").exists(), argv


def test_version() -> None:
    assert_as_documented("version", as_json("version"))


def test_tables_off_a_terminal_are_ascii_columns(capsys: pytest.CaptureFixture[str]) -> None:
    output.show(output.Table(("A", "LONGER"), [(None, True), ("text", [])], title="things"))
    assert capsys.readouterr().out == "things\nA     LONGER\n-     yes\ntext  -\n"


def test_off_a_terminal_all_of_it_is_ascii(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = (
        output.Table(("A",), [("/service/ü",)], title="ä"),
        output.Table(("A",), [], empty="ö"),
        output.Facts([("path", ["/ü", "/\U0001f600"])]),
        "# ü\nkey = 1",
    )
    output.show(*blocks)
    shown = capsys.readouterr().out
    assert shown.isascii()
    for words in ("/service/\\u00fc", "\\u00e4", "\\u00f6", "/\\U0001f600", "# \\u00fc\nkey = 1"):
        assert words in shown
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.show(*blocks)
    assert "/service/ü" in capsys.readouterr().out


def test_doctor_and_configuration_with_other_letters(tmp_path: Path) -> None:
    path = tmp_path / "ü.toml"
    path.write_text('[registry]\nfile = "/gr\u00fcn\U0001f600"\n', encoding="utf-8")
    assert moactl("-c", path, "doctor", "config").stdout.isascii()
    assert "\\u00fc.toml" in moactl("-c", path, "doctor", "config").stdout
    shown = moactl("-c", path, "config", "show").stdout
    assert shown.isascii()
    assert tomllib.loads(shown)["registry"]["file"] == "/grün\U0001f600"
    assert as_json("-c", path, "config", "show")["file"] == str(path)


def test_tables_on_a_terminal_have_the_same_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.show(
        output.Table(("STATE", "NAME"), [("FAIL", "[red]x[/red]")], title="things"),
        output.Table(("STATE",), [], empty="none at all"),
        output.Facts([("mesh", "on")]),
        "a line",
    )
    shown = capsys.readouterr().out
    for words in ("things", "STATE", "FAIL", "[red]x[/red]", "none at all", "mesh", "a line"):
        assert words in shown


def test_text_from_elsewhere_cannot_move_the_cursor() -> None:
    assert output.cell("a\x1b[2Jb\nc\u202e") == "a\\x1b[2Jb\\nc\\u202e"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.04, "0.0 s"), (59, "59 s"), (600, "10 min"), (9000, "2 h"), (200_000, "2 d")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert output.duration(seconds) == text
