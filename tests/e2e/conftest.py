"""End to end: nodes of a lab, real agents on them, real services, and clients that know of none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from interceptor.programs import OBJECT_PATH
from tests.support.lab import Lab

Measured = Callable[..., None]
_MEASURED = "measured"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Shared by a module: what a test breaks, it mends before it ends."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces and loads eBPF programs")
    if not OBJECT_PATH.exists():
        pytest.skip(f"needs {OBJECT_PATH}: run `make build`")
    with Lab() as made:
        yield made


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measured:
    """`measured("what happened", seconds=1.5)`: a row of the table at the end of the run."""

    def add(what: str, **numbers: object) -> None:
        texts = (
            f"{value:.3f}" if isinstance(value, float) else value for value in numbers.values()
        )
        columns = "  ".join(f"{k}={t}" for k, t in zip(numbers, texts, strict=True))
        record_property(_MEASURED, f"{what}\t{columns}")

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The measurements of a run; a number that no bound holds is still worth a look."""
    rows = [
        str(value).split("\t")
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == _MEASURED
    ]
    if rows:
        terminalreporter.section("measured")
        width = max(len(what) for what, _ in rows)
        for what, numbers in rows:
            terminalreporter.write_line(f"{what:{width}}  {numbers}")
