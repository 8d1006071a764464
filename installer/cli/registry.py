"""`moactl registry status`."""

from __future__ import annotations

import time
from typing import Any

import click

from installer.cli import registry_access
from installer.cli.failure import note
from installer.cli.output import Facts, Table, duration, emit
from installer.cli.session import Session, pass_session, shared_options
from installer.client import AgentNotRunning

_EXAMPLES = 5


@click.group()
@shared_options
def registry() -> None:
    """Look at the registry."""


@registry.command()
@shared_options
@pass_session
def status(session: Session) -> None:
    """Show how fresh the agent's services are, and what is wrong with the registry.

    When no agent runs, the registry itself is asked; exit 1 when it does not answer.
    """
    try:
        source, found = "agent", session.client().registry()
    except AgentNotRunning as error:
        if not session.as_json:
            note(f"{error}; this is from the registry itself")
        source, found = "registry", _ask(session)
    since_s = found.get("since_unix_s")
    facts = Facts(
        [
            ("kind", found.get("kind")),
            ("state", found.get("state")),
            ("since", _utc(since_s) if since_s else None),
            ("for", duration(time.time() - since_s) if since_s else None),
            ("services", found.get("services")),
            ("instances", found.get("instances")),
            ("detail", found.get("detail")),
        ]
    )
    broken = Table(
        ("FAULT",),
        [(text,) for text in found.get("broken", [])],
        title=f"members left out: {found.get('broken_members', 0)}",
    )
    blocks = [facts, broken] if found.get("broken_members") else [facts]
    emit(session, "registry.status/1", {"source": source, "registry": found}, *blocks)


def _utc(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_s))


def _ask(session: Session) -> dict[str, Any]:
    snapshot = registry_access.read(session.config())
    services = {key.uri for key, instances in snapshot.instances_by_key.items() if instances}
    return {
        "kind": snapshot.kind,
        "state": "DEGRADED" if snapshot.complaint else "SYNCED",
        "since_unix_s": time.time(),
        "services": len(services),
        "instances": sum(map(len, snapshot.instances_by_key.values())),
        "detail": snapshot.complaint or snapshot.source,
        "broken_members": len(snapshot.broken),
        "broken": list(snapshot.broken[:_EXAMPLES]),
    }
