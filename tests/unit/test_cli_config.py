"""`moactl config`: checked, shown without secrets, and usable again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import as_json, moactl, write_config
from tests.support.documented import assert_as_documented


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def test_missing_default_configuration_means_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("installer.cli.session.DEFAULT_CONFIG", str(tmp_path / "none.toml"))
    found = as_json("config", "show")
    assert found["file"] is None
    assert found["config"]["agent"]["outbound_port"] == 15001
    assert as_json("config", "check")["valid"] is True


def test_configuration_is_shown_without_its_secrets(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('[registry]\nkind = "redis"\nurl = "redis://u:s3cret@h:1/2"\n')
    result = moactl("config", "show", "-c", path)
    assert 'url = "redis://***@h:1/2"' in result.stdout
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


@pytest.mark.parametrize(
    ("url", "mode", "warned"),
    [
        ("redis://:s3cret@h", 0o644, True),
        ("redis://:s3cret@h", 0o640, False),
        ("redis://h", 0o644, False),
    ],
)
def test_password_that_all_can_read_is_a_warning(
    tmp_path: Path, url: str, mode: int, warned: bool
) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f'[registry]\nkind = "redis"\nurl = "{url}"\n')
    path.chmod(mode)
    assert bool(as_json("config", "check", path)["warnings"]) is warned
    result = moactl("config", "check", path)
    assert result.exit_code == 0
    assert ("chmod 600" in result.stderr) is warned
    assert "s3cret" not in result.output


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
