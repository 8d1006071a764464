"""`moactl bugreport`."""

from __future__ import annotations

import platform
import re
import sys
import time
from pathlib import Path

import click

from installer import report
from installer.cli.doctor import probes_of
from installer.cli.failure import Failure
from installer.cli.output import Table, emit, show
from installer.cli.session import Session, pass_session, shared_options


@click.command()
@click.option(
    "--to",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where to write it [default: moa-bugreport-HOST-TIME.tar.gz here].",
)
@click.option("--dry-run", is_flag=True, help="Only list what would be in it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@shared_options
@pass_session
def bugreport(session: Session, path: Path | None, dry_run: bool, yes: bool) -> None:
    """Pack what a bug report needs, without secrets.

    Lists the contents before it writes anything, and sends nothing anywhere. Passwords in URLs
    and values that sound like secrets are starred; addresses and names of services are not.
    """  # fmt: skip
    config_file = session.config_file
    probes = probes_of(session)
    pages = report.pages(probes.config, config_file, probes.tree.root, probes)
    target = path or _default_path()
    listing = Table(("BYTES", "FILE"), [(len(page.content), page.name) for page in pages])
    if not session.as_json:
        show(listing)
    if not dry_run:
        if not yes and not sys.stdin.isatty():
            raise click.UsageError("stdin is not a terminal to ask on; say --yes, or --dry-run")
        if not yes:
            click.confirm(f"Write this to {target}?", abort=True, err=True)
        try:
            report.write(target, pages)
        except OSError as error:
            raise Failure(f"{target}: {error.strerror}", "moactl bugreport --to FILE") from error
    data = {
        "file": None if dry_run else str(target),
        "contents": [{"name": page.name, "bytes": len(page.content)} for page in pages],
    }
    emit(session, "bugreport/1", data, "nothing was written" if dry_run else f"written: {target}")


def _default_path() -> Path:
    host = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())
    return Path(f"moa-bugreport-{host}-{time.strftime('%Y%m%dT%H%M%S')}.tar.gz")
