"""The agents of one application: who may send callers to whom, and where.

Some are configured, some are announced in the registry by the supervisors of their nodes.
Rule, as for services: what is known is not forgotten because the registry is gone, nor at once
when it has forgotten. Whether an agent lives is not asked here: its supervisor announces it,
and who wants to use it checks it.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.core.model import PeerAgent
from proxy.registry.member import BadMember, parse_member

KEEP_S = 60.0
"""An agent that the registry no longer names is remembered so long."""

MAX_AGENTS = 1000
"""Of one application; the registry is asked for no more."""


def parse_agent(text: str, default_app: str = "") -> PeerAgent:
    """Read `host:port?zone=z&app=a`, the text of a registry's member; raises BadMember."""
    member = parse_member(text)
    return PeerAgent(member.address, member.app or default_app, member.zone)


def format_agent(agent: PeerAgent) -> str:
    """The inverse, for names of the characters that a configuration allows."""
    return f"{agent.address}?app={agent.app}&zone={agent.zone}"


class AgentDirectory:
    """Who is known; times are monotonic seconds."""

    def __init__(self, app: str, own: Iterable[PeerAgent], configured: Iterable[PeerAgent]) -> None:
        """`own` are this node's: they are never peers. Others of another app are left out."""
        self.app = app
        self.own = tuple(own)
        self._own_addresses = {agent.address for agent in self.own}
        self._configured = tuple(agent for agent in configured if self._is_peer(agent))
        self._announced: dict[PeerAgent, float] = {}
        self._by_host: dict[str, PeerAgent] = {}
        self._index()

    def _is_peer(self, agent: PeerAgent) -> bool:
        return agent.app == self.app and agent.address not in self._own_addresses

    def update(self, texts: Iterable[str], now_s: float) -> list[str]:
        """The registry answered; returns the texts that cannot be used."""
        broken = []
        for text in texts:
            try:
                agent = parse_agent(text)
            except BadMember as error:
                broken.append(str(error))
                continue
            if self._is_peer(agent):
                self._announced[agent] = now_s
        self._announced = {a: s for a, s in self._announced.items() if now_s - s <= KEEP_S}
        self._index()
        return broken

    def _index(self) -> None:
        self._by_host = {agent.address.host: agent for agent in self.peers}

    @property
    def peers(self) -> tuple[PeerAgent, ...]:
        """The agents of the application's other nodes, what is announced last."""
        # One address may be configured, and announced with another zone, which is newer.
        found = {agent.address: agent for agent in (*self._configured, *self._announced)}
        return tuple(found.values())

    def caller(self, host: str) -> PeerAgent | None:
        """The agent whose node this address is; None for a stranger's."""
        return self._by_host.get(host)
