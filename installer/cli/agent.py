"""`moactl agent run|upgrade|restart|rollback|start|status|versions`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from installer import agent_lock
from installer.cli.failure import Failure
from installer.cli.output import Facts, Table, duration, emit
from installer.cli.session import Session, pass_session, shared_options
from installer.ops_client import OpsClient, SupervisorNotRunning

_SOON_S = 0.5
"""A start that is further away than this is after another crash."""


@click.group()
@shared_options
def agent() -> None:
    """Run the agent, and exchange it for another version."""


@agent.command()
@shared_options
@pass_session
def run(session: Session) -> None:
    """Run the agent in the foreground until SIGTERM or SIGINT.

    Its log goes to stderr. It installs what is missing in the kernel; the switch and the
    scopes of an installed node stay as they are.
    """
    config, file = session.config(), session.config_file
    # Late: it brings the event loop and the whole proxy with it.
    from installer.agent import run as run_agent
    from interceptor.errors import Busy
    from proxy.registry.base import RegistryError

    try:
        run_agent(config, file)
    except PermissionError:
        raise
    except Busy as error:
        other = agent_lock.holder(config.agent.runtime_dir)
        if other is None:  # not the agent's lock, but the one of a command
            raise
        raise Failure(str(error), f"moactl status; kill {other}, or stop its unit") from error
    except (RegistryError, OSError) as error:
        raise Failure(f"agent: {error}", "moactl doctor") from error


_bake = click.option(
    "--bake",
    "bake_s",
    type=click.FloatRange(0, 86_400),
    metavar="SECONDS",
    help="How long the old one can take everything back [default: ops.bake_s].",
)


@agent.command()
@click.option("--to", required=True, metavar="VERSION|PATH", help="What to upgrade to.")
@_bake
@shared_options
@pass_session
def upgrade(session: Session, to: str, bake_s: float | None) -> None:
    """Replace the running agent; services keep every connection.

    TO is a version below /opt/moa/versions, an environment or its bin/moa-agent. The new agent
    takes the sockets over and is watched while it bakes; when it is less well than the old one
    was, everything goes back. Ctrl-C ends this command and not the upgrade.
    """
    where = str(Path(to).absolute()) if "/" in to or os.path.isdir(to) else to
    _follow(session, "agent.upgrade/1", {"do": "upgrade", "to": where, "bake_s": bake_s})


@agent.command()
@_bake
@shared_options
@pass_session
def restart(session: Session, bake_s: float | None) -> None:
    """Replace the running agent by one of the same version, which reads the configuration anew.

    Services keep every connection, as in an upgrade.
    """
    _follow(session, "agent.restart/1", {"do": "restart", "bake_s": bake_s})


@agent.command()
@_bake
@shared_options
@pass_session
def rollback(session: Session, bake_s: float | None) -> None:
    """Go back to the version before.

    While an upgrade bakes the old agent, which still runs, takes everything back. Later this is
    an upgrade to the previous version.
    """
    _follow(session, "agent.rollback/1", {"do": "rollback", "bake_s": bake_s})


@agent.command()
@shared_options
@pass_session
def start(session: Session) -> None:
    """Start an agent now, where the supervisor waits after crashes.

    An open circuit is tried at once. Not an error when an agent runs already.
    """
    client = _client(session)
    started = client.start()
    deadline_s = time.monotonic() + session.config().ops.start_s
    while not (serving := [a["pid"] for a in client.status()["agents"] if a["state"] == "serving"]):
        seen = client.status()
        if time.monotonic() > deadline_s or (seen["next_start_s"] or 0.0) > _SOON_S:
            why = seen["last_crash"] or "it does not serve yet"
            raise Failure(f"no agent serves: {why}", "journalctl -u moa-opsd; moactl doctor")
        time.sleep(0.05)
    sentence = f"agent {serving[0]} {'serves now' if started else 'serves already'}"
    emit(session, "agent.start/1", {"started": started, "pid": serving[0]}, sentence)


@agent.command()
@shared_options
@pass_session
def status(session: Session) -> None:
    """Show the supervisor, its agents and an upgrade under way."""
    seen = _client(session).status()
    data = {key: value for key, value in seen.items() if key not in ("event", "done")}
    emit(session, "agent.status/1", data, *_status_blocks(data))


@agent.command()
@shared_options
@pass_session
def versions(session: Session) -> None:
    """List the versions on this node: which one runs, which one was before it."""
    from installer.opsd import versions as found

    record = found.load(session.config().agent.state_dir)
    running = _running(session)
    paths = [str(found.VERSIONS / name) for name in found.known()]
    paths += sorted({*filter(None, (record.current, record.previous)), *running} - set(paths))
    rows = [
        {
            "version": Path(path).name if Path(path).parent == found.VERSIONS else None,
            "environment": path,
            "running": path in running,
            "current": path == record.current,
            "previous": path == record.previous,
        }
        for path in paths
    ]
    table = Table(
        ("VERSION", "RUNS", "CURRENT", "PREVIOUS", "ENVIRONMENT"),
        [(r["version"], r["running"], r["current"], r["previous"], r["environment"]) for r in rows],
        empty=f"none below {found.VERSIONS}: moactl install puts this one there",
    )
    emit(session, "agent.versions/1", {"versions": rows}, table)


def _client(session: Session) -> OpsClient:
    return OpsClient(session.config().agent.runtime_dir)


def _running(session: Session) -> set[str]:
    """Environments of the agents that run; empty without a supervisor."""
    try:
        agents = _client(session).status()["agents"]
    except SupervisorNotRunning:
        return set()
    return {agent["environment"] for agent in agents if agent["environment"]}


def _follow(session: Session, schema: str, word: dict[str, Any]) -> None:
    """Ask for an upgrade and show it to its end; fails unless it ended as asked."""
    # Late: it may draw.
    from installer.cli.upgrade import follow

    try:
        last = follow(session, schema, _client(session).ask(word))
    except KeyboardInterrupt:
        raise Failure("interrupted; the upgrade goes on", "moactl agent status") from None
    if not last["ok"]:
        raise Failure(f"{last['outcome']}: {last['text']}", last["next"])


def _status_blocks(data: dict[str, Any]) -> list[Facts | Table | str]:
    supervisor, upgrade = data["supervisor"], data["upgrade"]
    next_s = data["next_start_s"]
    facts = Facts(
        [
            ("supervisor", f"process {supervisor['pid']}, {supervisor['pss_mb']} MB"),
            ("current", data["current"]),
            ("previous", data["previous"]),
            ("circuit", data["circuit"]),
            ("crashes in a row", data["crashes"]),
            ("last crash", data["last_crash"]),
            ("next start in", None if next_s is None else duration(next_s)),
            ("upgrade", None if upgrade is None else f"{upgrade['stage']}, to {_to(upgrade)}"),
        ]
    )
    rows = [
        (a["pid"], a["version"], a["state"], a["connections"], a["requests"], a["errors"],
         duration(a["heard_s"]))
        for a in data["agents"]
    ]  # fmt: skip
    headings = ("AGENT", "VERSION", "STATE", "CONNECTIONS", "REQUESTS", "ERRORS", "HEARD")
    return [facts, Table(headings, rows, empty="no agent: traffic goes direct")]


def _to(line: dict[str, Any]) -> str:
    return str(line["to"]["environment"] or line["to"]["version"])
