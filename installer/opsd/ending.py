"""How agents end: asked first, bounded, and by force at last."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import structlog

from installer.opsd.agent import Agent
from installer.opsd.settings import OpsSettings
from installer.opsd.upgrade_types import Manner

LEAVE_S = 10.0
"""How long one that holds nothing may take to end."""
_MAX_LONGER = 16
"""How many times longer an agent may take to start at most."""
MAX_STEP_S = 0.5
"""Two looks that are further apart than that were no looking: it was us who did not run."""

log = structlog.get_logger("opsd")


class Watch:
    """Kills an agent that does not come to serve, or says nothing.

    One that starts has `start_s`, and twice as long with each crash in a row: on a node that is
    slow it comes to serve at last. It judges by time in which the supervisor itself ran: while
    that was frozen, or the whole machine was, no agent could be heard. One that is asked to end,
    or to give, is others' business: they have deadlines of their own.
    """

    def __init__(self, ops: OpsSettings) -> None:
        self._ops = ops
        self._looked_s: float | None = None

    def look(self, agent: Agent | None, now_s: float, crashes: int = 0) -> None:
        """At the only agent, or at nothing: to be called more often than every MAX_STEP_S.

        `crashes` in a row came before it.
        """
        if self._looked_s is not None and agent is not None and not agent.was_killed:
            agent.watched(min(now_s - self._looked_s, MAX_STEP_S))
            self._judge(agent, crashes)
        self._looked_s = now_s

    def _judge(self, agent: Agent, crashes: int) -> None:
        ops = self._ops
        if not agent.has_served:
            within_s = ops.start_s * min(2.0 ** min(crashes, 30), _MAX_LONGER)
            if agent.watched_s > within_s:
                log.error("agent killed: it does not serve", pid=agent.pid, within_s=within_s)
                agent.signal(signal.SIGKILL)
        elif agent.silent_s > ops.silent_s:
            log.error("agent killed: it says nothing", pid=agent.pid, for_s=ops.silent_s)
            agent.signal(signal.SIGKILL)


async def see_off(agent: Agent, manner: Manner, drain_timeout_s: float) -> None:
    """End one that is no part of anything any more."""
    if manner is not Manner.KILL:
        if not agent.tell({"do": str(manner)}):
            agent.signal(signal.SIGTERM)
        within_s = LEAVE_S + (drain_timeout_s if manner is Manner.STOP else 0.0)
        if await agent.ended(within_s):
            return
        log.warning("agent killed: it did not leave", pid=agent.pid, within_s=within_s)
    agent.signal(signal.SIGKILL)


def most_s(drain_timeout_s: float) -> float:
    """How long `stop_all` takes at most, and a little more."""
    return drain_timeout_s + 3 * LEAVE_S


async def stop_all(agents: Sequence[Agent], drain_timeout_s: float) -> None:
    """SIGTERM to all of them, and SIGKILL to who has not drained in time."""
    for agent in agents:
        agent.signal(signal.SIGTERM)
    within_s = drain_timeout_s + LEAVE_S
    await asyncio.gather(*(agent.ended(within_s) for agent in agents))
    for agent in agents:
        if not agent.is_dead:
            log.warning("agent killed: it did not drain", pid=agent.pid, within_s=within_s)
            agent.signal(signal.SIGKILL)
            await agent.ended(LEAVE_S)
