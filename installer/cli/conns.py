"""`moactl conns`."""

from __future__ import annotations

from typing import Any

import click

from installer.cli.output import Table, duration, emit
from installer.cli.session import Session, pass_session, shared_options

_HEADINGS = (
    "ID", "DIRECTION", "MODE", "CLIENT", "ORIGINAL", "SERVICE", "UPSTREAM",
    "AGE", "REQUESTS", "IN", "OUT",
)  # fmt: skip


@click.command()
@shared_options
@pass_session
def conns(session: Session) -> None:
    """List the connections that the agent carries.

    ORIGINAL is what the client dialled. IN and OUT are bytes from and to the client.
    """
    found = session.client().conns().get("conns", [])
    table = Table(_HEADINGS, [_row(conn) for conn in found], empty="no connections")
    emit(session, "conns/1", {"conns": found}, table)


def _row(conn: dict[str, Any]) -> tuple[object, ...]:
    names = ("id", "direction", "mode", "client", "original", "service", "upstream")
    return (
        *(conn.get(name) for name in names),
        duration(conn.get("age_s")),
        *(conn.get(name) for name in ("requests", "bytes_in", "bytes_out")),
    )
