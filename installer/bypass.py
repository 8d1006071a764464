"""Established connections of scoped cgroups that go past the agent.

They were made before interception began, or while no agent served: the kernel never moves a
connection that stands. Only those count that a new connect() would bring to the agent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from installer import tcp_table
from installer.tcp_table import ESTABLISHED, LISTEN, Endpoint, TcpSocket
from interceptor.cgroup import Cgroup
from interceptor.maps import Destination

_SHOWN_REMOTES = 5


class DestinationIndex:
    """Whether an address is one of many networks with ports; the rule of bpf/connect.h."""

    def __init__(self, destinations: Iterable[Destination]) -> None:
        self._entries: set[tuple[int, int, int, int]] = set()
        self._prefixes: dict[int, set[int]] = {4: set(), 6: set()}
        for destination in destinations:
            network = destination.network
            self._prefixes[network.version].add(network.prefixlen)
            self._entries.add(
                (network.version, network.prefixlen, int(network.network_address), destination.port)
            )

    def __contains__(self, endpoint: Endpoint) -> bool:
        version, bits = endpoint.ip.version, endpoint.ip.max_prefixlen
        for prefix in self._prefixes[version]:
            if endpoint.ip.is_loopback and prefix < _loopback_prefix(endpoint.ip):
                continue  # loopback is meant only by an entry that lies within it
            network = int(endpoint.ip) >> (bits - prefix) << (bits - prefix)
            entry = (version, prefix, network)
            if (*entry, endpoint.port) in self._entries or (*entry, 0) in self._entries:
                return True
        return False


def _loopback_prefix(ip: IPv4Address | IPv6Address) -> int:
    return 8 if ip.version == 4 else 128


@dataclass(frozen=True, slots=True)
class Intercepted:
    """What a new connect() would bring to the agent."""

    include: DestinationIndex
    exclude: DestinationIndex
    own_ports: frozenset[int]
    """The agent's: a connection to them on loopback is one that was intercepted."""

    def holds(self, remote: Endpoint) -> bool:
        """Whether a connection to `remote` would be intercepted now."""
        if remote.ip.is_loopback and remote.port in self.own_ports:
            return False
        return remote in self.include and remote not in self.exclude


@dataclass(frozen=True, slots=True)
class Bypassing:
    """The connections of one process that go past the agent; `remotes` are the first few."""

    cgroup: str
    pid: int
    process: str
    count: int
    remotes: tuple[str, ...]


def find(scopes: Iterable[str], intercepted: Intercepted) -> tuple[Bypassing, ...]:
    """Look at every process of the scoped cgroups; needs root, reads /proc only."""
    tables: dict[int, list[TcpSocket]] = {}
    found: list[Bypassing] = []
    for scope in scopes:
        for pid in processes(Cgroup(scope)):
            namespace = tcp_table.namespace_id(pid)
            if namespace is None:
                continue
            if namespace not in tables:
                tables[namespace] = _past_the_agent(tcp_table.of_namespace(pid), intercepted)
            if bypassing := _of_process(scope, pid, tables[namespace]):
                found.append(bypassing)
    return tuple(found)


def processes(cgroup: Cgroup) -> list[int]:
    """Ids of the processes in a cgroup and below it; those seen so far when it is removed."""
    found: list[int] = []
    with suppress(OSError):
        found.extend(cgroup.processes())
    return found


def _past_the_agent(sockets: list[TcpSocket], intercepted: Intercepted) -> list[TcpSocket]:
    accepted_on = {s.local.port for s in sockets if s.state == LISTEN}
    return [
        s
        for s in sockets
        if s.state == ESTABLISHED
        and s.local.port not in accepted_on
        and intercepted.holds(s.remote)
    ]


def _of_process(scope: str, pid: int, candidates: list[TcpSocket]) -> Bypassing | None:
    if not candidates:
        return None
    inodes = tcp_table.inodes_of(pid)
    remotes = Counter(str(s.remote) for s in candidates if s.inode in inodes)
    if not remotes:
        return None
    shown = tuple(remote for remote, _ in remotes.most_common(_SHOWN_REMOTES))
    return Bypassing(scope, pid, tcp_table.process_name(pid), remotes.total(), shown)
