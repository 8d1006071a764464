"""The agent's side of the kernel: its pulse, its listeners, and what is to be turned to it."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address

import psutil
import structlog

from installer.config import Config
from installer.destination import Destination as ConfiguredDestination
from interceptor.abi import ListenerSlot
from interceptor.cgroup import Cgroup
from interceptor.errors import InterceptorError, NotInstalled, Refused
from interceptor.maps import Destination, Maps
from interceptor.node import Node
from proxy.app import Listeners
from proxy.core.model import Address, ServiceTable

DEPARTED_S = 3600.0
"""How long an instance that was deregistered is still intercepted: clients keep lists of
addresses, and a call to one that has gone is what the mesh is for."""

log = structlog.get_logger("kernel")


class KernelGate:
    """Implements `proxy.app.Gate`, and follows the registry and the cgroups."""

    def __init__(self, node: Node, maps: Maps, config: Config) -> None:
        """`maps` stays the caller's."""
        self._node = node
        self._maps = maps
        self._config = config
        self._installation = node.tree.current.stat().st_ino
        self._generation = int(maps.cfg.generation) + 1
        self._listed: frozenset[Address] = frozenset()
        self._departed_s: dict[Address, float] = {}
        self._applied: dict[str, set[Destination]] = {}
        self._local_hosts: frozenset[str] = frozenset()
        self._in_ports: frozenset[int] = frozenset(config.inbound.ports)
        self._refused_scopes: set[str] = set()

    @property
    def generation(self) -> int:
        return self._generation

    def take_over(self) -> None:
        """Make this agent the one that the kernel shows."""
        cfg = self._maps.cfg
        cfg.generation = self._generation
        self._maps.cfg = cfg

    def open(self, listeners: Listeners) -> None:
        self._maps.beat()
        for slot, sock in _slots(listeners):
            self._maps.publish_listener(slot, sock, self._generation)

    def shut(self) -> None:
        for slot in ListenerSlot:
            self._maps.withdraw_listener(slot)

    def beat(self) -> None:
        self._maps.beat()

    # What is to be intercepted

    def is_local(self, address: Address) -> bool:
        """Whether a connection to this address would come back to our own inbound side."""
        return address.port in self._in_ports and address.host in self._local_hosts

    def follow(self, table: ServiceTable, now_s: float) -> None:
        """Intercept what the registry and the configuration name; steer the local services."""
        for address in self._listed - table.addresses:
            self._departed_s[address] = now_s
        for address in table.addresses & self._departed_s.keys():
            del self._departed_s[address]
        self._listed = table.addresses
        self._apply()

    def tick(self, now_s: float) -> None:
        """Follow what changes without the registry: our own addresses, and the time."""
        expired = [a for a, left_s in self._departed_s.items() if now_s - left_s > DEPARTED_S]
        for address in expired:
            del self._departed_s[address]
        if expired or local_hosts() != self._local_hosts:
            self._apply()

    def _apply(self) -> None:
        self._local_hosts = local_hosts()
        self._in_ports = frozenset(self._config.inbound.ports) | self._registered_ports()
        self._maps.set_in_ports(self._in_ports)
        self._set_destinations("exclude", _destinations(self._config.scope.exclude))
        self._set_destinations("include", self._included())

    def _set_destinations(self, kind: str, wanted: set[Destination]) -> None:
        """By the difference to what was set last: walking a large trie takes long."""
        applied = self._applied.get(kind)
        if applied is None:
            applied = self._maps.destinations(kind)
        self._maps.change_destinations(kind, add=wanted - applied, remove=applied - wanted)
        self._applied[kind] = wanted

    def _included(self) -> set[Destination]:
        included = _destinations(self._config.scope.include)
        if self._config.scope.registry_destinations:
            for address in self._listed | self._departed_s.keys():
                # Loopback is only ever intercepted when the configuration names it.
                if not ip_address(address.host).is_loopback:
                    included.add(Destination.of(address.host, address.port))
        return included

    def _registered_ports(self) -> set[int]:
        if not self._config.inbound.registered:
            return set()
        own = {self._config.agent.outbound_port, self._config.agent.inbound_port}
        return {a.port for a in self._listed if a.host in self._local_hosts} - own

    # Scopes

    def reconcile(self) -> None:
        """Attach what the configuration scopes and what a restarted unit has lost.

        Does nothing once the node has been uninstalled, or installed anew, under our feet.
        """
        if not self._is_ours():
            return
        try:
            for name in self._node.reconcile():
                log.info("attached again", cgroup=name)
            self._attach_configured()
        except (InterceptorError, FileNotFoundError) as e:
            if self._is_ours():
                log.warning("reconcile failed", error=str(e))

    def _attach_configured(self) -> None:
        present = {scope.cgroup for scope in self._node.scopes()}
        for name in self._config.scope.cgroups:
            scope = Cgroup.of(name)
            if scope.name in present or not scope.exists() or scope.name in self._refused_scopes:
                continue
            try:
                self._node.add_scope(scope)
                log.info("attached", cgroup=scope.name)
            except Refused as e:
                self._refused_scopes.add(scope.name)
                log.error("scope refused", cgroup=scope.name, error=str(e))
            except NotInstalled:
                return

    def _is_ours(self) -> bool:
        try:
            return self._node.tree.current.stat().st_ino == self._installation
        except FileNotFoundError:
            return False


def _slots(listeners: Listeners) -> Iterable[tuple[ListenerSlot, socket.socket]]:
    found = (
        (ListenerSlot.OUT4, listeners.outbound4),
        (ListenerSlot.OUT6, listeners.outbound6),
        (ListenerSlot.IN4, listeners.inbound4),
        (ListenerSlot.IN6, listeners.inbound6),
    )
    return ((slot, sock) for slot, sock in found if sock is not None)


def _destinations(configured: Iterable[ConfiguredDestination]) -> set[Destination]:
    return {Destination(d.network, d.port) for d in configured}


def local_hosts() -> frozenset[str]:
    """Every address of this network namespace, as text without a zone."""
    return frozenset(
        entry.address.partition("%")[0]
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    )
