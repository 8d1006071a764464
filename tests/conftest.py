"""Fails a run in which something was skipped, where everything is expected to run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_COMPILE = Path(__file__).parents[1] / ".ci" / "compile.py"

SKIPS_ALLOWED_HINT = "unset CI and MOA_NO_SKIP to allow skipped tests"


def _skips_are_failures() -> bool:
    return os.environ.get("CI", "").lower() == "true" or os.environ.get("MOA_NO_SKIP") == "1"


def pytest_configure(config: pytest.Config) -> None:
    """Agents must not run what was compiled of other sources than those that are here."""
    if hasattr(config, "workerinput"):
        return  # Of a run that has looked already.
    done = subprocess.run(
        [sys.executable, "-I", str(_COMPILE), "--check"], capture_output=True, text=True
    )
    if done.returncode:
        raise pytest.UsageError(done.stderr.strip())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave soak tests out unless the mark expression names them.

    They are deselected and not skipped: a soak test that was not asked for is no gap.
    """
    if "soak" in config.option.markexpr:
        return
    soaks = [item for item in items if item.get_closest_marker("soak")]
    if soaks:
        config.hook.pytest_deselected(items=soaks)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]


def _skipped(reporter: pytest.TerminalReporter) -> list[pytest.TestReport | pytest.CollectReport]:
    return list(reporter.stats.get("skipped", ()))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn a passing run into a failing one when a test was skipped that should have run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        reporter is not None
        and _skips_are_failures()
        and session.exitstatus == pytest.ExitCode.OK
        and _skipped(reporter)
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each skipped test and say why the run failed."""
    skipped = _skipped(terminalreporter)
    if not (skipped and _skips_are_failures()):
        return
    terminalreporter.section("skipped where everything must run", red=True)
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        terminalreporter.write_line(f"{report.nodeid}: {reason}")
    terminalreporter.write_line(SKIPS_ALLOWED_HINT)
