"""A supervisor that comes anew, after its own crash, takes charge of the agents that live on.

They are found by the pidfds that systemd kept, and by the names of their links; each says on its
link how it stands. Nothing is interrupted: an upgrade that was under way goes on.
"""

from __future__ import annotations

import os
import select
from collections.abc import Mapping
from contextlib import suppress
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from installer.opsd import estates, versions
from installer.opsd.agent import HELLO_S, Agent
from installer.opsd.upgrade_types import Manner, Stage
from installer.opsd.upgrading import Upgrading

if TYPE_CHECKING:
    from installer.opsd.supervisor import Supervisor

PIDFD_PREFIX = "agent-"

_UNDER_WAY = {("giving", "ready"), ("giving", "serving"), ("retired", "ready")}

log = structlog.get_logger("opsd")


async def take_charge(supervisor: Supervisor, stored: Mapping[str, int]) -> None:
    """Afterwards the supervisor has a current agent, or an upgrade, or nothing lives."""
    runtime_dir = supervisor.settings.runtime_dir
    agents = [
        Agent(pid, pidfd, runtime_dir, None) for pid, pidfd in _living(runtime_dir, stored).items()
    ]
    for agent in agents:
        supervisor.hold(agent)
    for agent in agents:
        await agent.linked(HELLO_S)
    agents = [agent for agent in agents if not agent.is_dead]
    if agents:
        log.info("agents found", agents={agent.pid: agent.state for agent in agents})
        _sort_out(supervisor, agents)


def _living(runtime_dir: Path, stored: Mapping[str, int]) -> dict[int, int]:
    """Process id and pidfd of each agent that lives; the others' descriptors are closed."""
    found: dict[int, int] = {}
    for name, fd in stored.items():
        number = name.removeprefix(PIDFD_PREFIX)
        if number == name or not number.isdigit():
            continue
        if select.select([fd], [], [], 0)[0]:
            os.close(fd)  # it has ended, whoever has its number now
        else:
            found[int(number)] = fd
    for pid in estates.served(runtime_dir, "link") - found.keys():
        if estates.is_alive(pid):
            with suppress(ProcessLookupError):
                found[pid] = os.pidfd_open(pid)
    return found


def _sort_out(supervisor: Supervisor, agents: list[Agent]) -> None:
    upgrade = versions.load(supervisor.settings.state_dir).upgrade or {}
    for old, new in permutations(agents, 2) if len(agents) == 2 else ():
        if _were_seen(old, new, upgrade) and (stage := _stage(old, new)) is not None:
            _resume(supervisor, old, new, upgrade, stage)
            return
    chosen = max(agents, key=_standing)
    for agent in agents:
        if agent is not chosen:
            supervisor.see_off(agent, Manner.LEAVE)
    if chosen.state == "ready":  # whom it waited for has died
        supervisor.see_off(chosen, Manner.LEAVE)
        return
    supervisor.take(chosen)
    if chosen.state == "retired":  # its successor has died
        for pid in estates.of_the_dead(supervisor.settings.runtime_dir):
            path = estates.keeper_path(supervisor.settings.runtime_dir, pid)
            chosen.tell({"do": "adopt", "path": str(path)})


def _were_seen(old: Agent, new: Agent, upgrade: Mapping[str, Any]) -> bool:
    """Whether these are the two of the record. Where there is none, as the disk was full, what
    they say of themselves tells which is which while one gives to the other."""
    if upgrade:
        return (old.pid, new.pid) == (upgrade.get("old_pid"), upgrade.get("new_pid"))
    return (old.state, new.state) in _UNDER_WAY


def _standing(agent: Agent) -> int:
    order = ("ready", "retired", "starting", "giving", "serving")
    return order.index(agent.state) if agent.state in order else -1


def _stage(old: Agent, new: Agent) -> Stage | None:
    """Where their upgrade is, by what each says of itself; None: it had not begun to move."""
    if old.state == "giving" or (old.state == "retired" and new.state != "serving"):
        return Stage.RETURNING if new.state == "giving" else Stage.GIVING
    if new.state == "giving":
        return Stage.RETURNING
    return Stage.BAKING if (old.state, new.state) == ("retired", "serving") else None


def _resume(
    supervisor: Supervisor, old: Agent, new: Agent, upgrade: Mapping[str, Any], stage: Stage
) -> None:
    log.info("upgrade goes on", stage=str(stage), old=old.pid, new=new.pid)
    target = Path(str(upgrade.get("to") or new.environment))
    bake_s = upgrade.get("bake_s")
    upgrading = Upgrading(
        supervisor, supervisor.settings, old, target,
        bake_s=bake_s if isinstance(bake_s, int | float) else None, new=new,
    )  # fmt: skip
    supervisor.upgrade(upgrading, stage)
