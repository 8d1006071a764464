"""`moactl selftest`."""

from __future__ import annotations

from dataclasses import asdict

import click

from installer import selftest as tests
from installer.cli.output import Table, emit
from installer.cli.session import Session, pass_session, shared_options


@click.command()
@shared_options
@pass_session
@click.pass_context
def selftest(ctx: click.Context, session: Session) -> None:
    """Prove here that interception works, and that it fails open.

    With a synthetic service, agent and caller in cgroups of their own; a running agent and its
    services are not touched, and nothing is left. Exit code 1 when anything is not as it must be.
    """
    outcomes = list(tests.run())
    failed = sum(not outcome.passed for outcome in outcomes)
    summary = f"{len(outcomes)} steps: {failed} failed"
    rows = [("ok" if o.passed else "FAIL", o.id, o.title, o.seen) for o in outcomes]
    emit(
        session, "selftest/1",
        {"failed": failed, "steps": [asdict(outcome) for outcome in outcomes]},
        Table(("", "STEP", "EXPECTED", "SEEN"), rows), "", summary,
    )  # fmt: skip
    ctx.exit(1 if failed else 0)
