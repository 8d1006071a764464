"""The command line without a kernel: options, exit codes, output, and what it says on errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from installer.cli import output
from installer.cli.lazy import LazyGroup
from installer.cli.main import COMMANDS, root
from installer.cli.session import DEFAULT_CONFIG
from installer.client import SOCKET_NAME
from installer.config import DEFAULT_PATH
from tests.support import documented
from tests.support.documented import assert_as_documented
from tests.support.fake_agent import http_answer, serving

SERVICES = """
[[service]]
uri = "/service/demo"
instances = ["10.0.0.1:5000?weight=50", "10.0.0.2:5000"]
[[service]]
uri = "/service/demo"
group = "blue"
instances = []
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A node that is all in a temporary directory, with a static registry."""
    (tmp_path / "services.toml").write_text(SERVICES)
    (tmp_path / "run").mkdir()
    path = tmp_path / "agent.toml"
    path.write_text(
        f"""
        [agent]
        cgroup = "/moa-of-no-test"
        runtime_dir = "{tmp_path}/run"
        state_dir = "{tmp_path}/state"
        [bpf]
        root = "{tmp_path}/pins"
        [registry]
        file = "{tmp_path}/services.toml"
        """
    )
    return path


@pytest.fixture
def agent(tmp_path: Path, config: Path) -> Iterator[None]:
    """An agent that answers as docs/CLI.md says."""
    del config
    answers = {
        "/v1/status": documented.example("status")["agent"],
        "/v1/conns": {"conns": documented.example("conns")["conns"]},
        "/v1/services": {"services": documented.example("service list")["services"]},
        "/v1/registry": documented.example("registry status")["registry"],
    }
    raw = {path: http_answer(json.dumps(answer).encode()) for path, answer in answers.items()}
    with serving(tmp_path / "run" / SOCKET_NAME, raw):
        yield


def moactl(*argv: str | Path, stdin: str = "") -> Result:
    return CliRunner().invoke(root, [str(a) for a in argv], input=stdin, prog_name="moactl")


def as_json(*argv: str | Path) -> dict[str, Any]:
    result = moactl(*argv, "-o", "json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def commands(group: click.Group, path: Sequence[str] = ()) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


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


def test_missing_default_configuration_means_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("installer.cli.session.DEFAULT_CONFIG", str(tmp_path / "none.toml"))
    found = as_json("config", "show")
    assert found["file"] is None
    assert found["config"]["agent"]["outbound_port"] == 15001
    assert as_json("config", "check")["valid"] is True


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
    assert "next: moactl agent run" in on.stderr

    off = as_json("-c", config, "mesh", "off")
    assert_as_documented("mesh off", off)
    assert off["changed"] is False
    assert moactl("-c", config, "tap").exit_code == 1


def test_looking_at_a_node_makes_nothing(config: Path, tmp_path: Path) -> None:
    for argv in (["status"], ["mesh", "off"], ["mesh", "on"], ["tap"], ["uninstall", "--yes"]):
        moactl("-c", config, *argv)
        assert not (tmp_path / "pins").exists(), argv


def test_answers_of_an_agent_in_the_documented_form(agent: None, config: Path) -> None:
    for command, argv in (
        ("status", []),
        ("conns", []),
        ("service list", []),
        ("service show", ["/service/demo"]),
        ("registry status", []),
    ):
        assert_as_documented(command, as_json("-c", config, *command.split(), *argv))


def test_answers_of_an_agent_as_tables(agent: None, config: Path) -> None:
    assert "10.0.0.2:5000  /service/demo" in moactl("-c", config, "conns").stdout
    assert "/service/demo  *      1          1" in moactl("-c", config, "service", "list").stdout
    shown = moactl("-c", config, "service", "show", "/service/demo").stdout
    assert "10.0.0.2:5000  100     -     no   resp       healthy  0" in shown
    registry = moactl("-c", config, "registry", "status").stdout
    assert "members left out: 1" in registry
    assert "host 'app' is a name" in registry
    status = moactl("-c", config, "status").stdout
    assert "0.1.0, process 4711, /etc/moa/agent.toml" in status


def test_services_come_from_the_registry_when_no_agent_runs(config: Path) -> None:
    found = as_json("-c", config, "service", "list")
    assert_as_documented("service list", found)
    assert found["source"] == "registry"
    assert [(s["group"], len(s["instances"])) for s in found["services"]] == [("*", 2), ("blue", 0)]
    assert found["services"][0]["instances"][0]["weight"] == 50
    one_group = as_json("-c", config, "service", "show", "/service/demo#blue")
    assert [s["group"] for s in one_group["services"]] == ["blue"]
    registry = as_json("-c", config, "registry", "status")
    assert_as_documented("registry status", registry)
    assert (registry["registry"]["services"], registry["registry"]["instances"]) == (1, 2)


def test_unknown_service_fails(config: Path) -> None:
    result = moactl("-c", config, "service", "show", "/service/none")
    assert result.exit_code == 1
    assert "next: moactl service list" in result.stderr


@pytest.mark.parametrize("verb", ["register", "deregister"])
def test_static_registry_is_not_written(verb: str, config: Path) -> None:
    before = (config.parent / "services.toml").read_bytes()
    result = moactl("-c", config, "service", verb, "/service/demo", "10.0.0.9:5000")
    assert result.exit_code == 1
    assert "services.toml" in result.stderr
    assert (config.parent / "services.toml").read_bytes() == before


def test_silent_redis_fails_within_its_deadline_and_shows_no_password(
    config: Path, tmp_path: Path
) -> None:
    path = tmp_path / "redis.toml"
    path.write_text(
        config.read_text().replace(
            "[registry]",
            '[registry]\nkind = "redis"\nurl = "redis://u:s3cret@127.0.0.1:1/0"\n',
        )
    )
    for argv in (["registry", "status"], ["service", "list"], ["doctor", "registry"]):
        result = moactl("-c", path, *argv)
        assert result.exit_code == 1, argv
        assert "127.0.0.1:1" in result.output
        assert "s3cret" not in result.output
    result = moactl("-c", path, "service", "register", "/service/demo", "10.0.0.9:5000")
    assert result.exit_code == 1
    assert "s3cret" not in result.output


def test_configuration_is_shown_without_its_secrets(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('[registry]\nkind = "redis"\nurl = "redis://u:s3cret@h:1/2?password=s3cret"\n')
    result = moactl("config", "show", "-c", path)
    assert 'url = "redis://***@h:1/2?***"' in result.stdout
    assert "s3cret" not in result.output
    assert_as_documented("config show", as_json("config", "show", "-c", path))


def test_shown_configuration_can_be_used_again(config: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.toml"
    again.write_text(moactl("config", "show", "-c", config).stdout)
    assert (
        as_json("config", "show", "-c", again)["config"]
        == (as_json("config", "show", "-c", config)["config"])
    )


def test_example_configuration_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "example.toml"
    path.write_text(moactl("config", "example").stdout)
    result = moactl("config", "check", path)
    assert (result.exit_code, result.stdout) == (0, f"{path}: valid\n")
    assert_as_documented("config example", as_json("config", "example"))


def test_broken_configuration_fails_its_check(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("[agent]\noutbound_prot = 1\n")
    result = moactl("config", "check", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "outbound_prot: unknown key; the nearest known key is agent.outbound_port" in (
        result.stderr
    )
    verdict = moactl("config", "check", path, "-o", "json")
    assert verdict.exit_code == 1
    assert_as_documented("config check", json.loads(verdict.stdout))


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


def test_version() -> None:
    assert_as_documented("version", as_json("version"))


def test_tables_off_a_terminal_are_ascii_columns(capsys: pytest.CaptureFixture[str]) -> None:
    output.show(output.Table(("A", "LONGER"), [(None, True), ("text", [])], title="things"))
    assert capsys.readouterr().out == "things\nA     LONGER\n-     yes\ntext  -\n"


def test_text_from_elsewhere_cannot_move_the_cursor() -> None:
    assert output.cell("a\x1b[2Jb\nc\u202e") == "a\\x1b[2Jb\\nc\\u202e"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.04, "0.0 s"), (59, "59 s"), (600, "10 min"), (9000, "2 h"), (200_000, "2 d")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert output.duration(seconds) == text


def test_root_is_a_lazy_group() -> None:
    assert isinstance(root, LazyGroup)
