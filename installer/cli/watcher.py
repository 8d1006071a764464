"""`moactl watcher status|log`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from installer.cli import registry_access
from installer.cli.output import Table, duration, emit
from installer.cli.session import Session, pass_session, shared_options

_FACTS = ("addresses", "failing", "offline", "round_s")


@click.group()
@shared_options
def watcher() -> None:
    """Look at the watchers and what they did.

    Both commands ask the registry's Redis; no agent and no watcher need run here.
    """


@watcher.command()
@shared_options
@pass_session
def status(session: Session) -> None:
    """Show the watchers of this registry, and the instances that they have taken out."""
    config = session.config()
    live, now_ms, offline = registry_access.watchers(config)
    watchers = [_watcher(name, facts, now_ms) for name, facts in sorted(live.items())]
    entries = [
        {
            "uri": entry.key.uri, "group": entry.key.group, "address": str(entry.address),
            "member": entry.member, "at_ms": entry.at_ms, "who": entry.who, "why": entry.why,
        }
        for entry in offline
    ]  # fmt: skip
    data = {
        "registry": registry_access.source_of(config), "watchers": watchers, "offline": entries,
    }  # fmt: skip
    headings = ("WATCHER", "STATE", "HEARD", "ADDRESSES", "FAILING", "OFFLINE", "ROUND S")
    rows = [
        (w["name"], w["state"], "now" if w["live"] else "lost", *(w[name] for name in _FACTS))
        for w in watchers
    ]
    out_rows = [
        (str(e.key), e.address, duration((now_ms - e.at_ms) / 1000), e.who, e.why) for e in offline
    ]
    emit(
        session, "watcher.status/1", data,
        Table(headings, rows, empty="no watcher has been heard"),
        Table(("SERVICE", "ADDRESS", "FOR", "BY", "WHY"), out_rows, "none", "taken out"),
    )  # fmt: skip


@watcher.command("log")
@click.option("--service", default="", metavar="NAME", help="Only of this service, or NAME#GROUP.")
@click.option("-n", "count", type=click.IntRange(1, 100_000), default=50, show_default=True)
@shared_options
@pass_session
def show_log(session: Session, service: str, count: int) -> None:
    """Show what was done to instances, when, by whom and why; the newest last."""
    entries = registry_access.watch_log(session.config(), count, service)
    rows = [(_time(e.at_ms), e.who, e.what, e.service, e.address, e.why) for e in entries]
    table = Table(("TIME", "WHO", "WHAT", "SERVICE", "ADDRESS", "WHY"), rows, empty="nothing yet")
    emit(session, "watcher.log/1", {"entries": [asdict(entry) for entry in entries]}, table)


def _watcher(name: str, facts: dict[str, Any], now_ms: int) -> dict[str, Any]:
    known = {key: facts.get(key) for key in ("state", "since_unix_s", "pid", *_FACTS)}
    return {"name": name, "live": facts["lease_ends_ms"] > now_ms, **known}


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
