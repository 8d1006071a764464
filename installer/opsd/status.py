"""How things stand with a supervisor: one line for systemd, all of it for moactl."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from installer.opsd import estates, versions

if TYPE_CHECKING:
    from installer.opsd.agent import Agent
    from installer.opsd.supervisor import Supervisor


def summary(supervisor: Supervisor) -> str:
    """One line."""
    if supervisor.upgrading is not None:
        return f"upgrade: {supervisor.upgrading.machine.stage}"
    agent, crash = supervisor.current, supervisor.last_crash
    if agent is None:
        after = f": {crash}" if crash else ""
        return f"no agent (circuit {supervisor.restarts.circuit}), traffic goes direct{after}"
    if not agent.has_served:
        return f"agent {agent.pid} starts"
    last = agent.pulse.last
    carried = f", {last.connections} connections" if last else ""
    return f"agent {agent.pid} ({agent.version}) serves{carried}"


def status(supervisor: Supervisor) -> dict[str, Any]:
    """Everything (docs/CLI.md, `moactl agent status`)."""
    record = versions.load(supervisor.settings.state_dir)
    upgrading = supervisor.upgrading
    agents = [supervisor.current, *supervisor.leaving]
    if upgrading is not None:
        agents += [upgrading.old, upgrading.new]
    return {
        "supervisor": {
            "pid": os.getpid(), "environment": str(versions.own_environment()), "pss_mb": pss_mb(),
        },
        "agents": [_described(agent) for agent in agents if agent is not None],
        "circuit": str(supervisor.restarts.circuit),
        "crashes": supervisor.restarts.crashes,
        "last_crash": supervisor.last_crash,
        "next_start_s": supervisor.next_start_s,
        "estates": len(estates.of_the_dead(supervisor.settings.runtime_dir)),
        "current": record.current,
        "previous": record.previous,
        "upgrade": upgrading.line() if upgrading is not None else None,
    }  # fmt: skip


def pss_mb() -> float | None:
    """Memory of this process: its own, and its share of what it shares."""
    try:
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        return None
    return None


def _described(agent: Agent) -> dict[str, Any]:
    last = agent.pulse.last
    return {
        "pid": agent.pid,
        "version": agent.version,
        "environment": str(agent.environment) if agent.environment else None,
        "state": agent.state,
        "linked": agent.is_linked,
        "heard_s": round(time.monotonic() - agent.heard_s, 1),
        "connections": last.connections if last else None,
        "in_flight": last.in_flight if last else None,
        "requests": last.requests if last else None,
        "errors": last.errors if last else None,
    }
