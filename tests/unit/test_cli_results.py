"""What moactl shows of an agent, and of the registry when none runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.client import SOCKET_NAME
from tests.support.cli import answering_agent, as_json, moactl, write_config
from tests.support.documented import assert_as_documented
from tests.support.fake_agent import http_answer, serving


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@pytest.fixture
def agent(tmp_path: Path, config: Path) -> Iterator[None]:
    del config
    with answering_agent(tmp_path):
        yield


def test_answers_of_an_agent_in_the_documented_form(agent: None, config: Path) -> None:
    for command, argv in (
        ("status", []),
        ("conns", []),
        ("service list", []),
        ("service show", ["/service/demo"]),
        ("route explain", ["--service", "/service/demo", "--prop", "hashid=7"]),
        ("registry status", []),
    ):
        assert_as_documented(command, as_json("-c", config, *command.split(), *argv))


def test_answers_of_an_agent_as_tables(agent: None, config: Path) -> None:
    assert "10.0.0.2:5000  /service/demo" in moactl("-c", config, "conns").stdout
    assert "/service/demo  *      1          1" in moactl("-c", config, "service", "list").stdout
    shown = moactl("-c", config, "service", "show", "/service/demo").stdout
    assert "10.0.0.2:5000  100     100.0  -     no   -      resp       json   healthy  -" in shown
    told = moactl("-c", config, "route", "explain", "--service", "/service/demo").stdout
    assert "1     /service/demo: 2 registered" in told
    assert "10.0.0.2:5000  -     100.0%" in told
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


@pytest.mark.parametrize("state", ["STARTING", "DEGRADED", "SYNCED"])
def test_no_services_are_explained_when_the_registry_is_why(
    state: str, config: Path, tmp_path: Path
) -> None:
    registry = {"state": state, "detail": "redis://h:1/0: refused"}
    raw = {
        "/v1/services": http_answer(b'{"services": []}'),
        "/v1/registry": http_answer(json.dumps(registry).encode()),
    }
    with serving(tmp_path / "run" / SOCKET_NAME, raw):
        result = moactl("-c", config, "service", "list")
    assert (result.exit_code, result.stdout.strip()) == (0, "no services")
    assert ("redis://h:1/0: refused" in result.stderr) == (state != "SYNCED")


def test_unknown_service_fails(config: Path) -> None:
    result = moactl("-c", config, "service", "show", "/service/none")
    assert result.exit_code == 1
    assert "next: moactl service list" in result.stderr


@pytest.mark.parametrize("verb", ["register", "deregister"])
def test_static_registry_is_not_written(verb: str, config: Path) -> None:
    before = (config.parent / "services.toml").read_bytes()
    result = moactl("-c", config, "service", verb, "/service/demo", "10.0.0.9:5000")
    assert result.exit_code == 1
    assert f"next: edit {config.parent}/services.toml" in result.stderr
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


@pytest.mark.parametrize("argv", [["--prop", "x"], ["--group", "b", "--service", "/s#c"], []])
def test_route_explain_says_how_it_is_used(config: Path, argv: list[str]) -> None:
    given = argv if "--service" in argv or not argv else [*argv, "--service", "/s"]
    assert moactl("-c", config, "route", "explain", *given).exit_code == 2
