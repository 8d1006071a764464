"""A node's interception as its pins show it, whether an agent runs or not."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from installer import bypass
from installer.bypass import Bypassing, DestinationIndex, Intercepted
from interceptor import cgroup, peers
from interceptor.abi import Cfg, CfgFlag
from interceptor.cgroup import Cgroup
from interceptor.errors import Incomplete
from interceptor.maps import Maps
from interceptor.node import Node, Scope


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The agent's pulse; `age_s` is None when there never was one."""

    age_s: float | None
    max_age_s: float

    @property
    def fresh(self) -> bool:
        """Whether the kernel takes it for a live agent's."""
        return self.age_s is not None and self.age_s <= self.max_age_s


@dataclass(frozen=True, slots=True)
class Peers:
    """The peer agents in the kernel's map; `fresh` are those that connections may be sent to."""

    kept: bool
    """Whether a supervisor keeps, or lately kept, any."""
    fresh: tuple[str, ...]
    in_use: bool
    """Whether new connections to instances go there, as no agent serves here."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What is pinned; ports are in host order, counters count since the maps were made."""

    enabled: bool
    """False also when it was to be confirmed and was not, in time."""
    shadow: bool
    confirm_left_s: float | None
    """Until the kernel switches off unless confirmed; 0 when that has happened, None without."""
    generation: int
    heartbeat: Heartbeat
    outbound_port: int
    inbound_port: int
    agent_cgroup: str | None
    agent_pids: tuple[int, ...]
    listeners: tuple[str, ...]
    in_ports: tuple[int, ...]
    included: int
    excluded: int
    scopes: tuple[Scope, ...]
    taken_out: tuple[str, ...]
    """Cgroups that an operator took out of the mesh: a configuration does not bring them back."""
    counters: dict[str, int]
    peers: Peers = Peers(kept=False, fresh=(), in_use=False)
    bypassing: tuple[Bypassing, ...] = field(default=())

    @property
    def serves(self) -> bool:
        """Whether new connections would reach an agent."""
        return self.enabled and self.heartbeat.fresh and bool(self.listeners)


def read(node: Node) -> Installed | None:
    """The node's state now; None when nothing is installed. Needs root.

    Raises InterceptorError; `Incomplete` when what is pinned is half of an installation.
    """
    if not node.is_installed():
        return None
    try:
        with node.maps() as maps:
            return _read(node, maps)
    except (KeyError, FileNotFoundError) as error:
        raise Incomplete(f"{node.tree.current}: is incomplete, {error} is missing") from error


def _read(node: Node, maps: Maps) -> Installed:
    cfg = maps.cfg
    agent = cgroup.find_by_id(cfg.agent_cgroup_id) if cfg.agent_cgroup_id else None
    left_s = _confirm_left_s(cfg)
    scopes = tuple(node.scopes())
    include, exclude = maps.destinations("include"), maps.destinations("exclude")
    own_ports = frozenset((int(cfg.outbound_port), int(cfg.inbound_port)))
    intercepted = Intercepted(DestinationIndex(include), DestinationIndex(exclude), own_ports)
    state = Installed(
        enabled=bool(cfg.flags & CfgFlag.ENABLED) and left_s != 0,
        shadow=bool(cfg.flags & CfgFlag.SHADOW),
        confirm_left_s=left_s,
        generation=int(cfg.generation),
        heartbeat=_heartbeat(maps, cfg),
        outbound_port=int(cfg.outbound_port),
        inbound_port=int(cfg.inbound_port),
        agent_cgroup=agent.name if agent else None,
        agent_pids=_pids(agent),
        listeners=tuple(slot.name.lower() for slot in maps.listeners()),
        in_ports=tuple(sorted(maps.in_ports())),
        included=len(include),
        excluded=len(exclude),
        scopes=scopes,
        taken_out=tuple(node.taken_out()),
        counters={reason.name.lower(): count for reason, count in maps.counters().items()},
        bypassing=bypass.find([s.cgroup for s in scopes if s.state == "attached"], intercepted),
    )
    return replace(state, peers=_peers(maps, state))


def _peers(maps: Maps, state: Installed) -> Peers:
    slots, now_ns = peers.read(maps), time.monotonic_ns()
    fresh = {slot.text for slot in slots if slot.valid_until_ns >= now_ns}
    in_use = state.enabled and not state.shadow and not state.serves and bool(fresh)
    return Peers(bool(slots), tuple(sorted(fresh)), in_use)


def _confirm_left_s(cfg: Cfg) -> float | None:
    if not cfg.on_until_ns or not cfg.flags & CfgFlag.ENABLED:
        return None
    left_ns = int(cfg.on_until_ns) - time.monotonic_ns()
    return max(0, left_ns) / 1e9


def _heartbeat(maps: Maps, cfg: Cfg) -> Heartbeat:
    beat_ns = maps.last_beat_ns()
    age_s = (time.monotonic_ns() - beat_ns) / 1e9 if beat_ns else None
    return Heartbeat(age_s, cfg.heartbeat_max_age_ns / 1e9)


def _pids(agent: Cgroup | None) -> tuple[int, ...]:
    return tuple(sorted(bypass.processes(agent))) if agent else ()
