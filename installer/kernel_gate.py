"""The agent's side of the kernel: its pulse, its listeners, and what is to be turned to it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from ipaddress import ip_address

import psutil
import structlog

from installer.config import Config
from installer.destination import Destination as ConfiguredDestination
from interceptor.abi import ListenerSlot
from interceptor.cgroup import Cgroup
from interceptor.errors import Busy, InterceptorError, NotInstalled, Refused
from interceptor.maps import Destination, Maps
from interceptor.node import Node
from proxy.app import Listeners
from proxy.core.known import KnownInstances
from proxy.core.model import Address

log = structlog.get_logger("kernel")

_OUTBOUND = (ListenerSlot.OUT4, ListenerSlot.OUT6)


class KernelGate:
    """Implements `proxy.app.Gate`, and follows the registry and the cgroups."""

    def __init__(self, node: Node, maps: Maps, config: Config, known: KnownInstances) -> None:
        """`maps` stays the caller's; `known` is kept up to date by the proxy."""
        self._known = known
        self._node = node
        self._maps = maps
        self._config = config
        self._installation = node.tree.current.stat().st_ino
        self._generation = node.begin_generation()
        self._applied: dict[str, set[Destination]] = {}
        self._local_hosts = local_hosts()
        self._in_ports: frozenset[int] = frozenset(config.inbound.ports)
        self._refused_scopes: set[str] = set()
        self._taken_out: set[str] = set()
        self._told_of_removal = False
        self._is_active = False
        self._opened: Listeners | None = None
        self.is_off: Callable[[], bool] = lambda: False
        """Whether the node intercepts nothing, by a switch of its application or its name."""
        self.hidden: Callable[[], frozenset[Address]] = frozenset
        """Addresses that are left alone, as their services are switched off."""

    @property
    def generation(self) -> int:
        return self._generation

    def open(self, listeners: Listeners) -> None:
        if not self._is_active:
            self._is_active = True
            self._applied.clear()  # another agent may have written since
            self._apply()
        self._opened = listeners
        self._maps.beat()
        for slot, sock in _slots(listeners):
            self._maps.publish_listener(slot, sock, self._generation)

    def shut(self) -> None:
        for slot, sock in _slots(self._opened) if self._opened and self._is_active else ():
            if slot in _OUTBOUND:
                self._maps.disown_listener(sock)
            else:
                self._maps.withdraw_listener(slot)

    def withdraw(self) -> None:
        for slot in _OUTBOUND if self._is_active else ():
            self._maps.withdraw_listener(slot)

    def rest(self) -> None:
        self._is_active = False

    def beat(self) -> None:
        if self._is_active:
            self._maps.beat()

    # What is to be intercepted

    def is_local(self, address: Address) -> bool:
        """Whether a connection to this address would come back to our own inbound side."""
        return address.port in self._in_ports and address.host in self._local_hosts

    def follow(self) -> None:
        """Intercept what the registry and the configuration name; steer the local services."""
        if self._is_active:
            self._apply()

    def tick(self, now_s: float) -> None:
        """Follow what changes without the registry: our own addresses, and the time."""
        if self._known.expire(now_s) or local_hosts() != self._local_hosts:
            self.follow()

    def _apply(self) -> None:
        self._local_hosts = local_hosts()
        self._in_ports = frozenset(self._config.inbound.ports) | self._registered_ports()
        if self.is_off():
            self._in_ports = frozenset()
        self._maps.set_in_ports(self._in_ports)
        self._set_destinations("exclude", self._excluded())
        self._set_destinations("include", self._included())

    def _set_destinations(self, kind: str, wanted: set[Destination]) -> None:
        """By the difference to what was set last: walking a large trie takes long."""
        applied = self._applied.get(kind)
        if applied is None:
            applied = self._maps.destinations(kind)
        self._maps.change_destinations(kind, add=wanted - applied, remove=applied - wanted)
        self._applied[kind] = wanted

    def _excluded(self) -> set[Destination]:
        """An exclusion wins over whatever includes an address, the configuration as well."""
        hidden = {Destination.of(address.host, address.port) for address in self.hidden()}
        return _destinations(self._config.scope.exclude) | hidden

    def _included(self) -> set[Destination]:
        if self.is_off():
            return set()
        included = _destinations(self._config.scope.include)
        if self._config.scope.registry_destinations:
            for address in self._known.all:
                # Loopback is only ever intercepted when the configuration names it.
                if not ip_address(address.host).is_loopback:
                    included.discard(Destination.of(address.host, address.port))
                    included.add(Destination.of(address.host, address.port, is_instance=True))
        return included

    def _registered_ports(self) -> set[int]:
        if not self._config.inbound.registered:
            return set()
        own = {self._config.agent.outbound_port, self._config.agent.inbound_port}
        return {a.port for a in self._known.listed if a.host in self._local_hosts} - own

    # Scopes

    def reconcile(self) -> None:
        """Attach what the configuration scopes and what a restarted unit has lost.

        Does nothing once the node has been uninstalled, or installed anew, under our feet, nor
        while another agent keeps the gate.
        """
        if not self._is_active:
            return
        if not self._is_ours():
            if not self._told_of_removal:
                self._told_of_removal = True
                log.warning(
                    "uninstalled under us: nothing new comes here any more",
                    root=str(self._node.tree.root),
                    next="stop this agent, and start one to install again",
                )
            return
        try:
            # The event loop must not wait for an operator's command that holds the lock.
            for name in self._node.reconcile(lock_timeout_s=0):
                log.info("attached again", cgroup=name)
            self._attach_configured()
        except Busy:
            return
        except (InterceptorError, FileNotFoundError) as e:
            if self._is_ours():
                log.warning("reconcile failed", error=str(e))

    def _attach_configured(self) -> None:
        present = {scope.cgroup for scope in self._node.scopes()}
        self._taken_out -= present
        for name in self._config.scope.cgroups:
            scope = Cgroup.of(name)
            if scope.name in present | self._refused_scopes or not scope.exists():
                continue
            if self._node.was_taken_out(scope):
                self._tell_taken_out(scope.name)
                continue
            try:
                self._node.add_scope(scope, lock_timeout_s=0)
                log.info("attached", cgroup=scope.name)
            except Refused as e:
                self._refused_scopes.add(scope.name)
                log.error("scope refused", cgroup=scope.name, error=str(e))
            except NotInstalled:
                return

    def _tell_taken_out(self, name: str) -> None:
        """Once, and again only when it was back in between."""
        if name not in self._taken_out:
            self._taken_out.add(name)
            hint = f"moactl mesh on --cgroup {name} puts it back"
            log.warning("scope left out: an operator took it out", cgroup=name, hint=hint)

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
