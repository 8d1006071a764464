"""How agents end: asked first, bounded, and by force at last."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence

import structlog

from installer.opsd.agent import Agent
from installer.opsd.settings import OpsSettings
from installer.opsd.upgrade_types import Manner

_MISSED_S = 2.0
LEAVE_S = 10.0
"""How long one that holds nothing may take to end."""

log = structlog.get_logger("opsd")


class Watch:
    """Over the agent that serves."""

    def __init__(self, ops: OpsSettings) -> None:
        self._ops = ops
        self._looked_s = time.monotonic()

    def look(self, agent: Agent | None, now_s: float) -> None:
        """Kill one that does not come to serve, or says nothing.

        What was missed while nobody looked counts for nothing: the unit was frozen, or the
        machine suspended, and the agent with us.
        """
        missed_s, self._looked_s = now_s - self._looked_s, now_s
        if agent is None:
            return
        if missed_s > _MISSED_S:
            agent.held_since_s += missed_s
            agent.heard_s += missed_s
        if not agent.has_served:
            if now_s - agent.held_since_s > self._ops.start_s:
                within_s = self._ops.start_s
                log.error("agent killed: it does not serve", pid=agent.pid, within_s=within_s)
                agent.signal(signal.SIGKILL)
        elif now_s - agent.heard_s > self._ops.silent_s:
            log.error("agent killed: it says nothing", pid=agent.pid, for_s=self._ops.silent_s)
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
