"""Writes the table of docs/KERNELS.md from what `kernels.sh` collected.

`kernels.py RESULTS`: one directory a suite, as ../guest/kernel.sh lays them out. Only the part
between the two marks of the document is replaced.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[2] / "docs" / "KERNELS.md"
BEGIN = "<!-- made by make kernels: begin -->\n"
END = "<!-- made by make kernels: end -->\n"
SUITES = ("bullseye", "bookworm", "bookworm-backports")
_KERNEL_CHECKS = ("cgroup2", "bpffs", "memlock", "net-cls")
_SIGNS = {"ok": "works", "warn": "warns", "fail": "**missing**", "skip": "not tried"}


@dataclass(frozen=True, slots=True)
class Trial:
    """One kernel: its release, the checks of doctor by id, selftest's steps by id."""

    suite: str
    release: str
    checks: dict[str, dict[str, Any]]
    steps: dict[str, dict[str, Any]]
    exit_codes: dict[str, int]
    left: int | None


def read(directory: Path) -> Trial:
    """One suite's results; a command that printed nothing, or was not reached, has none."""
    codes = (line.split() for line in (directory / "exit-codes").read_text().splitlines())
    return Trial(
        directory.name,
        (directory / "kernel").read_text().strip(),
        {
            check["id"]: check
            for name in (
                "doctor-pre.json",
                "doctor.json",
            )  # the latter's count, where it came so far
            for check in _listed(directory / name, "checks")
        },
        {step["id"]: step for step in _listed(directory / "selftest.json", "steps")},
        {name: int(code) for name, code in codes},
        _left(directory / "left"),
    )


def _left(path: Path) -> int | None:
    return len(path.read_text().splitlines()) if path.exists() else None


def _listed(path: Path, key: str) -> list[dict[str, Any]]:
    text = path.read_text() if path.exists() else ""
    return list(json.loads(text)[key]) if text.strip() else []


def table(trials: list[Trial]) -> str:
    """Hooks and what else depends on the kernel, one column a kernel."""
    lines = [
        "| | " + " | ".join(f"{t.release} ({t.suite})" for t in trials) + " |",
        "|---|" + "---|" * len(trials),
    ]
    ids = {
        name: None
        for trial in trials
        for name in trial.checks
        if name.startswith(("hook-", "map-")) or name in _KERNEL_CHECKS
    }
    lines += [_row(f"[{name}](CHECKS.md#{name})", trials, _check(name)) for name in ids]
    steps = {name: None for trial in trials for name in trial.steps}
    lines += [_row(f"selftest {name}", trials, _step(name)) for name in steps]
    lines.append(_row("`moactl install`", trials, lambda t: _code(t, "install")))
    lines.append(_row("`dpkg --purge`", trials, lambda t: _code(t, "purge")))
    lines.append(
        _row(
            "paths left after it",
            trials,
            lambda t: "not reached" if t.left is None else str(t.left),
        )
    )
    return "\n".join(lines) + "\n"


def _paths_left(trial: Trial) -> str:
    return "not reached" if trial.left is None else str(trial.left)


def _row(title: str, trials: list[Trial], cell: Callable[[Trial], str]) -> str:
    return f"| {title} | " + " | ".join(cell(trial) for trial in trials) + " |"


def _check(name: str) -> Callable[[Trial], str]:
    def cell(trial: Trial) -> str:
        check = trial.checks.get(name)
        return "-" if check is None else _SIGNS[check["status"]]

    return cell


def _step(name: str) -> Callable[[Trial], str]:
    def cell(trial: Trial) -> str:
        step = trial.steps.get(name)
        return "-" if step is None else ("passed" if step["passed"] else "**failed**")

    return cell


def _code(trial: Trial, name: str) -> str:
    code = trial.exit_codes.get(name)
    if code is None:
        return "not reached"
    return "done" if code == 0 else f"**exit code {code}**"


def main(results: Path) -> None:
    trials = [read(results / suite) for suite in SUITES if (results / suite / "kernel").exists()]
    if not trials:
        raise SystemExit(f"kernels: no results in {results}; run vagrant/vm/kernels.sh first")
    text = DOCUMENT.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    DOCUMENT.write_text(f"{head}{BEGIN}{table(trials)}{END}{tail}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
