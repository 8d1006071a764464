"""`moactl conns`."""

from __future__ import annotations

from typing import Any

import click

from installer.cli.output import Table, duration, emit
from installer.cli.session import Session, pass_session, shared_options

_HEADINGS = (
    "ID", "DIRECTION", "MODE", "PROTOCOL", "CLIENT", "ORIGINAL", "SERVICE", "UPSTREAM",
    "AGE", "REQUESTS", "IN", "OUT",
)  # fmt: skip
_PEER_HEADINGS = ("PEER", "STATE", "CONNECTIONS", "IN FLIGHT", "LOAD THERE")


@click.command()
@shared_options
@pass_session
def conns(session: Session) -> None:
    """List the connections that the agent carries.

    ORIGINAL is what the client dialled. IN and OUT are bytes from and to the client. A PEER
    is an instance whose registry entry says that it has an agent.
    """
    answer = session.client().conns()
    found, peers = answer.get("conns", []), answer.get("peers", [])
    table = Table(_HEADINGS, [_row(conn) for conn in found], empty="no connections")
    blocks = [table]
    if peers:
        blocks.append(Table(_PEER_HEADINGS, [_peer(peer) for peer in peers]))
    emit(session, "conns/1", {"conns": found, "peers": peers}, *blocks)


def _row(conn: dict[str, Any]) -> tuple[object, ...]:
    names = ("id", "direction", "mode", "protocol", "client", "original", "service", "upstream")
    return (
        *(conn.get(name) for name in names),
        duration(conn.get("age_s")),
        *(conn.get(name) for name in ("requests", "bytes_in", "bytes_out")),
    )


def _peer(peer: dict[str, Any]) -> tuple[object, ...]:
    names = ("address", "state", "connections", "in_flight", "load_hint")
    return tuple(peer.get(name) for name in names)
