"""A check is data: what it is called, how much its failure matters, and how to run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from installer.doctor.probes import Probes

PACKAGED = Path("/usr/share/doc/moa-interceptor/CHECKS.md")
"""Where the Debian package has the explanations (installer/debian/nfpm.yaml)."""


class Status(StrEnum):
    """What a check found."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"
    """It could not be tried, because of something that another check says."""


class Severity(StrEnum):
    """The most that a check may find."""

    REQUIRED = "required"
    ADVISED = "advised"
    """The mesh works without; a failure is shown as a warning."""


@dataclass(frozen=True, slots=True)
class Result:
    """`seen` is what is there; `todo` is what to do, empty when there is nothing."""

    status: Status
    seen: str
    todo: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """`id` is also its anchor in docs/CHECKS.md; `before_install` says whether it makes sense
    on a node that has nothing of ours yet."""

    id: str
    title: str
    run: Callable[[Probes], Result]
    severity: Severity = Severity.REQUIRED
    before_install: bool = True

    @property
    def documentation(self) -> str:
        file = PACKAGED if PACKAGED.exists() else "docs/CHECKS.md"
        return f"{file}#{self.id}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A check and what came of it."""

    check: Check
    result: Result


def run(checks: Iterable[Check], probes: Probes) -> Iterator[Finding]:
    """Run each check in order; one that breaks is a finding of its own and stops no other."""
    for check in checks:
        try:
            result = check.run(probes)
        except Exception as error:
            words = str(error) or type(error).__name__
            todo = "run it as root" if isinstance(error, PermissionError) else "report this"
            result = Result(Status.FAIL, f"the check itself failed: {words}", todo)
        if result.status is Status.FAIL and check.severity is Severity.ADVISED:
            result = Result(Status.WARN, result.seen, result.todo)
        yield Finding(check, result)


def ok(seen: str) -> Result:
    return Result(Status.OK, seen)


def warn(seen: str, todo: str) -> Result:
    return Result(Status.WARN, seen, todo)


def fail(seen: str, todo: str) -> Result:
    return Result(Status.FAIL, seen, todo)


def skip(seen: str) -> Result:
    return Result(Status.SKIP, seen)
