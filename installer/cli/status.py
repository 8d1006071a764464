"""`moactl status`: the node from its pins, the agent from its socket."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from installer import node_state
from installer.cli.output import Block, Facts, Table, duration, emit
from installer.cli.session import Session, pass_session, shared_options
from installer.client import AgentError
from installer.next_steps import TO_INSTALL
from installer.node_state import Installed

RENEW_HINT = (
    "These connections were made before interception, or while no agent served, and stay as "
    "they are.\nTo renew them restart or reload the service; `ss -K dst ADDRESS dport = PORT` in "
    "its network\nnamespace breaks one, for clients that reconnect by themselves."
)


@click.command()
@shared_options
@pass_session
def status(session: Session) -> None:
    """Show the node's interception and its agent.

    The first part is read from the kernel and needs no agent. Exit code 0 whatever is found:
    `moactl doctor` judges.
    """
    node = session.node()
    state = node_state.read(node)
    agent, agent_error = _ask_agent(session)
    switched_off, unread = _switched_off(session, agent)
    data = {
        "root": str(node.tree.root),
        "installed": state is not None,
        "node": _node_json(state),
        "agent": agent,
        "agent_error": agent_error,
        "switched_off": switched_off,
    }
    emit(
        session, "status/1", data,
        *_node_blocks(state, str(node.tree.root)), "", *_agent_blocks(agent, agent_error),
        *_switch_blocks(switched_off, unread),
    )  # fmt: skip


def _ask_agent(session: Session) -> tuple[dict[str, Any] | None, str | None]:
    try:
        return session.client().status(), None
    except AgentError as error:
        return None, str(error)


def _switched_off(
    session: Session, agent: dict[str, Any] | None
) -> tuple[list[dict[str, Any]] | None, str]:
    """Of the agent, or of the files that the next one will read; None and why when damaged."""
    if agent is not None:
        return agent.get("switched_off", []), ""
    from installer import switches  # late: it brings the registry's client with it

    try:
        return switches.kept_off(session.config().agent.state_dir), ""
    except switches.SwitchesError as error:
        return None, str(error)


def _node_json(state: Installed | None) -> dict[str, Any] | None:
    if state is None:
        return None
    bypassing = [asdict(b) for b in state.bypassing]
    return {
        **asdict(state),
        "heartbeat": {**asdict(state.heartbeat), "fresh": state.heartbeat.fresh},
        "serves": state.serves,
        "bypassing": {"count": sum(b.count for b in state.bypassing), "processes": bypassing},
    }


def _node_blocks(state: Installed | None, root: str) -> list[Block]:
    if state is None:
        return [f"node: nothing is installed at {root}: {TO_INSTALL}"]
    switch = ("shadow" if state.shadow else "on") if state.enabled else "off"
    if state.confirm_left_s is not None:
        switch += (
            f", off in {duration(state.confirm_left_s)} unless confirmed (moactl mesh confirm)"
            if state.enabled
            else ": it was not confirmed in time (moactl mesh on)"
        )
    beat = state.heartbeat
    pulse = f"{duration(beat.age_s)} ago" if beat.age_s is not None else "never"
    facts = Facts(
        [
            ("pins", root),
            ("mesh", switch),
            ("heartbeat", "fresh" if beat.fresh else "stale"),
            ("last beat", f"{pulse} (limit {beat.max_age_s:g} s)"),
            ("listeners", state.listeners),
            ("ports", f"outbound {state.outbound_port}, inbound {state.inbound_port}"),
            ("service ports", state.in_ports),
            ("destinations", f"{state.included} included, {state.excluded} excluded"),
            ("cgroups taken out", state.taken_out),
            ("agent cgroup", state.agent_cgroup),
            ("agent processes", state.agent_pids),
            ("peer agents", _peers(state)),
        ]
    )
    scopes = Table(
        ("CGROUP", "STATE", "SHADOW", "HOOKS"),
        [(s.cgroup, s.state, s.shadow, s.hooks) for s in state.scopes],
        title="cgroups in the mesh",
        empty="none (moactl mesh on --cgroup PATH)",
    )
    counted = [(name, count) for name, count in state.counters.items() if count]
    counters = Table(("DECISION", "COUNT"), counted, title="counters", empty="all zero")
    return ["node", facts, "", scopes, "", counters, *_bypassing_blocks(state)]


def _peers(state: Installed) -> str | None:
    if not state.peers.kept:
        return None
    if not state.peers.fresh:
        return "none lives, or no supervisor runs"
    use = "in use: no agent serves here" if state.peers.in_use else "in reserve"
    return f"{', '.join(state.peers.fresh)} ({use})"


def _bypassing_blocks(state: Installed) -> list[Block]:
    if not state.bypassing:
        return ["", "established connections past the agent: 0"]
    rows = [(b.cgroup, b.pid, b.process, b.count, b.remotes) for b in state.bypassing]
    count = sum(b.count for b in state.bypassing)
    table = Table(
        ("CGROUP", "PID", "PROCESS", "COUNT", "TO"),
        rows,
        title=f"established connections past the agent: {count}",
    )
    return ["", table, RENEW_HINT]


def _agent_blocks(agent: dict[str, Any] | None, error: str | None) -> list[Block]:
    if agent is None:
        return [f"agent: {error}"]
    connections, requests = agent.get("connections", {}), agent.get("requests", {})
    registry = agent.get("registry", {})
    identity = f"{agent.get('version')}, process {agent.get('pid')}, {agent.get('config_path')}"
    facts = Facts(
        [
            ("agent", identity),
            ("up", duration(agent.get("uptime_s"))),
            ("node", agent.get("node")),
            ("zone", agent.get("zone")),
            ("generation", agent.get("generation")),
            ("connections", _counts(connections)),
            ("requests", _counts(requests)),
            ("registry", registry.get("state")),
            ("services", f"{registry.get('services')}, instances {registry.get('instances')}"),
            ("registry says", registry.get("detail")),
            ("loop lag", f"{agent.get('loop_lag_ms')} ms"),
        ]
    )
    return ["agent", facts]


def _switch_blocks(switched_off: list[dict[str, Any]] | None, unread: str) -> list[Block]:
    if switched_off is None:
        return [f"switched off: cannot be told: {unread}"]
    return [f"switched off: {', '.join(map(_switched, switched_off))}"] if switched_off else []


def _switched(said: dict[str, Any]) -> str:
    return f"{said.get('what')} {said.get('name')} ({said.get('where')})"


def _counts(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in values.items())
