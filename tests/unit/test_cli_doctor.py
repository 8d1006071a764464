"""`moactl doctor`: what it prints, how it exits, and that no check stops another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from installer.cli import doctor as command
from installer.cli.main import root
from installer.doctor import check as doctor_check
from installer.doctor.check import Check, Severity, Status
from installer.doctor.checks import ALL_CHECKS
from installer.doctor.probes import Probes
from tests.support.documented import assert_as_documented
from tests.support.machines import (
    healthy_machine,
    raising,
)


@pytest.fixture
def healthy(tmp_path: Path) -> Probes:
    return healthy_machine(tmp_path)


def test_check_that_breaks_stops_no_other(healthy: Probes) -> None:
    broken = Check("broken", "Breaks", raising(ZeroDivisionError("oops")))
    findings = list(doctor_check.run([broken, ALL_CHECKS[0]], healthy))
    assert [f.result.status for f in findings] == [Status.FAIL, Status.OK]
    assert "the check itself failed: oops" in findings[0].result.seen


def test_advised_check_never_fails(healthy: Probes) -> None:
    advised = Check("x", "X", lambda _: doctor_check.fail("bad", "mend it"), Severity.ADVISED)
    (finding,) = doctor_check.run([advised], healthy)
    assert finding.result == doctor_check.warn("bad", "mend it")


GOLDEN = """\
      CHECK   SEEN
FAIL  python  3.9.0, expected at least 3.11
ok    caps    enough to load and attach programs
warn  bpffs   not mounted at /sys/fs/bpf

FAIL python: Python is recent enough
  seen: 3.9.0, expected at least 3.11
  todo: install python3.11 and make the .venv anew
  more: docs/CHECKS.md#python

warn bpffs: A bpf file system for the pins
  seen: not mounted at /sys/fs/bpf
  todo: nothing: the agent mounts it when it starts
  more: docs/CHECKS.md#bpffs

3 checks: 1 failed, 1 warnings
"""


def test_golden_output_and_exit_code(
    healthy: Probes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    probes = replace(healthy, python_version=lambda: (3, 9, 0), bpffs_at=lambda _: None)
    monkeypatch.setattr(command, "probes_of", lambda _: probes)
    monkeypatch.setattr(doctor_check, "PACKAGED", tmp_path / "CHECKS.md")
    argv = ["doctor", "python", "caps", "bpffs"]
    result = CliRunner().invoke(root, argv)
    assert (result.exit_code, result.stdout) == (1, GOLDEN)
    as_json = CliRunner().invoke(root, [*argv, "-o", "json"])
    assert as_json.exit_code == 1
    assert_as_documented("doctor", json.loads(as_json.stdout))


def test_documentation_is_where_the_package_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor_check, "PACKAGED", tmp_path / "CHECKS.md")
    assert ALL_CHECKS[0].documentation == "docs/CHECKS.md#python"
    (tmp_path / "CHECKS.md").touch()
    assert ALL_CHECKS[0].documentation == f"{tmp_path}/CHECKS.md#python"


def test_short_form_has_a_line_for_each_that_is_not_ok(
    healthy: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = replace(healthy, python_version=lambda: (3, 9, 0), bpffs_at=lambda _: None)
    monkeypatch.setattr(command, "probes_of", lambda _: probes)
    result = CliRunner().invoke(root, ["doctor", "python", "caps", "bpffs", "-o", "short"])
    assert (result.exit_code, result.stdout.splitlines()) == (
        1,
        [
            "FAIL python 3.9.0, expected at least 3.11"
            " -> install python3.11 and make the .venv anew",
            "warn bpffs not mounted at /sys/fs/bpf -> nothing: the agent mounts it when it starts",
        ],
    )
    fine = CliRunner().invoke(root, ["-o", "short", "doctor", "caps", "map-ringbuf"])
    assert (fine.exit_code, fine.stdout) == (0, "ok: 2 checks\n")


def test_short_form_keeps_what_a_check_saw_on_its_line(
    healthy: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Check("odd", "Odd", lambda _: doctor_check.skip("two\nlines"))
    monkeypatch.setattr(command, "ALL_CHECKS", (odd,))
    monkeypatch.setattr(command, "probes_of", lambda _: healthy)
    result = CliRunner().invoke(root, ["doctor", "-o", "short"])
    assert (result.exit_code, result.stdout) == (0, "skip odd two\\nlines\n")


@pytest.mark.parametrize("argv", [["-o", "short", "status"], ["version", "-o", "short"]])
def test_short_form_is_for_the_doctor_alone(argv: list[str]) -> None:
    result = CliRunner().invoke(root, argv)
    assert result.exit_code == 2
    assert "short" in result.stderr


def test_warnings_alone_exit_with_0(healthy: Probes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "probes_of", lambda _: replace(healthy, bpffs_at=lambda _: None))
    assert CliRunner().invoke(root, ["doctor"]).exit_code == 0


def test_pre_leaves_out_what_needs_an_installation(
    healthy: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "probes_of", lambda _: replace(healthy, installed=lambda: None))
    result = CliRunner().invoke(root, ["doctor", "--pre", "-o", "json"])
    assert result.exit_code == 0
    shown = {check["id"] for check in json.loads(result.stdout)["checks"]}
    assert {c.id for c in ALL_CHECKS} - shown == {
        "agent",
        "stale-pins",
        "switch",
        "scopes",
        "peers",
        "installation",
    }


def test_broken_configuration_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("[agent]\nports = 1\n")
    result = CliRunner().invoke(root, ["doctor", "config", "python", "-c", str(path)])
    assert result.exit_code == 1
    assert "agent.ports: unknown key" in result.stdout
    assert "ok    python" in result.stdout
