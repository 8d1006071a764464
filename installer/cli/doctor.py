"""`moactl doctor`."""

from __future__ import annotations

from dataclasses import asdict

import click

from installer.cli.output import Block, Table, cell, emit
from installer.cli.session import SHORT, Session, pass_session, shared_options_and_short
from installer.config import Config, ConfigError, load
from installer.doctor import check as doctor_check
from installer.doctor import probes as doctor_probes
from installer.doctor.check import Check, Finding, Status
from installer.doctor.checks import ALL_CHECKS
from installer.doctor.probes import Probes


@click.command()
@click.argument("ids", metavar="[CHECK]...", nargs=-1)
@click.option("--pre", is_flag=True, help="Only what makes sense before an installation.")
@shared_options_and_short
@pass_session
@click.pass_context
def doctor(ctx: click.Context, session: Session, ids: tuple[str, ...], pre: bool) -> None:
    """Say what is wrong here and what to do.

    Changes nothing. Exit code 1 when any check fails; warnings do not count. CHECK names
    checks to run alone. With -o short one line for each that is not ok. CHECKS.md explains
    each: in docs/, or in /usr/share/doc/moa-interceptor/ of the package.
    """
    findings = list(doctor_check.run(_chosen(ids, pre), probes_of(session)))
    failed = sum(finding.result.status is Status.FAIL for finding in findings)
    warned = sum(finding.result.status is Status.WARN for finding in findings)
    data = {
        "failed": failed,
        "warned": warned,
        "checks": [_json(finding) for finding in findings],
    }
    drawn = _short(findings) if session.output == SHORT else _blocks(findings, failed, warned)
    emit(session, "doctor/1", data, *drawn)
    ctx.exit(1 if failed else 0)


def _chosen(ids: tuple[str, ...], pre: bool) -> list[Check]:
    known = {check.id for check in ALL_CHECKS}
    if unknown := [name for name in ids if name not in known]:
        raise click.UsageError(f"no check {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return [
        check
        for check in ALL_CHECKS
        if (not ids or check.id in ids) and (check.before_install or not pre)
    ]


def probes_of(session: Session) -> Probes:
    """A broken configuration is a finding here, not an error."""
    config = Config()
    problems: tuple[str, ...] = ()
    path = session.config_file
    if path is not None:
        try:
            config = load(path)
        except ConfigError as error:
            problems = error.problems
    root = session.root or config.bpf.root
    return doctor_probes.of_this_machine(config, path, problems, root)


def _json(finding: Finding) -> dict[str, object]:
    check = finding.check
    return {
        "id": check.id,
        "title": check.title,
        "severity": check.severity,
        **asdict(finding.result),
        "documentation": check.documentation,
    }


def _blocks(findings: list[Finding], failed: int, warned: int) -> list[Block]:
    rows = [(_word(f.result.status), f.check.id, f.result.seen) for f in findings]
    blocks: list[Block] = [Table(("", "CHECK", "SEEN"), rows)]
    for finding in findings:
        if finding.result.todo:
            blocks += [
                "",
                f"{_word(finding.result.status)} {finding.check.id}: {finding.check.title}",
                f"  seen: {cell(finding.result.seen)}",
                f"  todo: {cell(finding.result.todo)}",
                f"  more: {finding.check.documentation}",
            ]
    return [*blocks, "", f"{len(findings)} checks: {failed} failed, {warned} warnings"]


def _short(findings: list[Finding]) -> list[Block]:
    """A line for each check that is not ok, or one for all of them."""
    lines: list[Block] = [
        " ".join((_word(result.status), finding.check.id, cell(result.seen)))
        + (f" -> {cell(result.todo)}" if result.todo else "")
        for finding in findings
        if (result := finding.result).status is not Status.OK
    ]
    return lines or [f"ok: {len(findings)} checks"]


def _word(status: Status) -> str:
    return "FAIL" if status is Status.FAIL else str(status)
