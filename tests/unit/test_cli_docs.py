"""docs/CLI.md names every command and its JSON; docs/CHECKS.md explains every check."""

from __future__ import annotations

import re

import pytest

from installer.cli.main import root
from installer.doctor.checks import ALL_CHECKS
from tests.support import documented
from tests.support.cli import commands

COMMANDS = [name for name, _ in commands(root)]
RUNS_FOR_EVER = "agent run"


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_documented(command: str) -> None:
    section = documented.sections()[command]
    if command != RUNS_FOR_EVER:
        name = command.replace(" ", ".")
        assert documented.example(command)["schema"] == f"{name}/1", section


def test_no_command_is_documented_that_does_not_exist() -> None:
    assert set(documented.sections()) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_long_options_are_documented_or_shared(command: str) -> None:
    text = (documented.DOCS / "CLI.md").read_text()
    for option in {o for p in dict(commands(root))[command].params for o in p.opts}:
        if option.startswith("--"):
            assert f"{option}" in text, option


def test_check_ids_are_unique() -> None:
    ids = [check.id for check in ALL_CHECKS]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: check.id)
def test_check_has_its_anchor(check: object) -> None:
    text = (documented.DOCS / "CHECKS.md").read_text()
    identity = getattr(check, "id", "")
    found = re.search(rf"^## {identity}\n\n(Required|Advised)\b", text, flags=re.M)
    assert found, identity
    assert found[1].lower() == getattr(check, "severity", "")


def test_checks_that_pre_leaves_out_are_named() -> None:
    text = (documented.DOCS / "CHECKS.md").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("`moactl doctor --pre`"))
    later = {check.id for check in ALL_CHECKS if not check.before_install}
    assert set(re.findall(r"\]\(#([a-z0-9-]+)\)", line)) == later


def test_links_within_the_checks_lead_somewhere() -> None:
    text = (documented.DOCS / "CHECKS.md").read_text()
    anchors = {check.id for check in ALL_CHECKS}
    assert set(re.findall(r"\]\(#([a-z0-9-]+)\)", text)) <= anchors
