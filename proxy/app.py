"""The proxy put together: listeners, sessions, routing, the registry, and a gate to the kernel.

Knows of interception only what `Gate` says, so that any way of turning traffic here will do.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from proxy.core.known import KnownInstances
from proxy.core.model import Address, PeerAgent, ServiceTable
from proxy.core.routing import Router
from proxy.net.board import Board
from proxy.net.checker import Checker
from proxy.net.door import Door, DoorSettings
from proxy.net.forward import Forwarder, ForwardSettings
from proxy.net.front import Front
from proxy.net.listener import Acceptor
from proxy.net.local_call import LocalServices
from proxy.net.moved import Moved
from proxy.net.pool_types import PoolSettings
from proxy.net.served import Direction, Mode, Peer, Served, SessionSettings
from proxy.net.sockets import (
    LOOP_GUARD4,
    LOOP_GUARD6,
    address_of,
    open_listener,
    original_destination,
)
from proxy.obs.metrics import Metrics
from proxy.registry.base import Registry
from proxy.wire.detect import Protocol as Spoken
from proxy.wire.mesh import Settings as MeshSettings

_REOPEN_SHARE = 0.9
"""A full agent takes traffic again below this share of its connections."""

_REOPEN_AFTER_S = 1.0
"""How often a full agent looks whether it still is."""

_LAST_ARRIVALS_S = 0.1
_LAST_CALLERS_S = 0.4
"""The same for callers of other nodes, until their supervisors have heard that we leave; less
than those wait before they ask again."""

_FIRST_REQUEST_S = 1.0
"""While it drains: a client that has just connected may send its first request so long."""

log = structlog.get_logger("proxy")


@dataclass(frozen=True, slots=True)
class Listeners:
    """The listening sockets, owned by the app; `*6` are None on a node without IPv6."""

    outbound4: socket.socket
    outbound6: socket.socket | None
    inbound4: socket.socket
    inbound6: socket.socket | None

    def all(self) -> list[socket.socket]:
        found = (self.outbound4, self.outbound6, self.inbound4, self.inbound6)
        return [sock for sock in found if sock is not None]


class Gate(Protocol):
    """What turns traffic to the listeners, and lets it pass when told to."""

    def open(self, listeners: Listeners) -> None:
        """Turn new connections to these sockets, of what the registry knows."""

    def shut(self) -> None:
        """Let new connections pass, at once; what is established, or on its way, stays."""

    def withdraw(self) -> None:
        """Nothing that was decided before `shut` is on its way any more."""

    def follow(self) -> None:
        """The instances that the registry knows have changed; nothing while it is not open."""

    def rest(self) -> None:
        """Another agent keeps the gate: change nothing, until it is opened again."""


@dataclass(frozen=True, slots=True)
class AppSettings:
    """What the proxy needs of a node's configuration.

    `local_pool` is for the services of this node, `mesh` for the agents that ask for them.
    """

    outbound_port: int
    inbound_port: int
    max_connections: int
    session: SessionSettings
    forward: ForwardSettings
    local_pool: PoolSettings
    mesh: MeshSettings
    zone: str
    default_group: str
    pre: bool
    door: DoorSettings = field(default_factory=DoorSettings)


class ProxyApp:
    """Serves connections between `start` and `drain`."""

    def __init__(
        self,
        settings: AppSettings,
        registry: Registry,
        gate: Gate,
        is_local: Callable[[Address], bool],
        known: KnownInstances,
        rand: random.Random | None = None,
        caller_of: Callable[[str], PeerAgent | None] = lambda _host: None,
        board: Board | None = None,
    ) -> None:
        """`is_local`: whether an address is this node's and its port steered to the agent.

        `known` is updated with each table, before the gate is told to follow it. `caller_of`
        says from which node of the same application a connection to the door comes. On `board`
        is noted what outlives this process, if it has a keeper.
        """
        self.known = known
        self.settings = settings
        self.registry = registry
        self.metrics = Metrics()
        self._loop = asyncio.get_running_loop()
        self._gate = gate
        self._board = board
        self._is_local = is_local
        self._shut = False
        self._is_resting = False
        self._draining = False
        self._empty = asyncio.Event()
        rand = rand or random.Random()
        router = Router(zone=settings.zone, default_group=settings.default_group, pre=settings.pre)
        self.forwarder = Forwarder(
            self._loop,
            settings.forward,
            router,
            self.metrics,
            rand,
            self._source_for,
        )
        self._checker = Checker(self.forwarder, rand)
        self._local = LocalServices(
            self._loop,
            settings.local_pool,
            self.metrics,
            settings.forward.timeout_s,
            settings.forward.max_body_bytes,
        )
        self._front = Front(
            settings.session,
            self.forwarder,
            self._on_session_end,
            settings.mesh,
            self._local,
            board,
        )
        self._door = Door(self._loop, settings.door, self.metrics, self.sessions, caller_of)
        self._door.serve = self._serve_caller
        self._door.on_full = self._on_accept_error
        self.listeners: Listeners | None = None
        self._acceptors: list[Acceptor] = []

    @property
    def sessions(self) -> Mapping[int, Served]:
        """Every connection that is served, by its number."""
        return self._front.sessions

    def prepare(self) -> None:
        """Know what the registry knows; nothing is accepted yet."""
        self._on_table(self.registry.table)
        self.registry.subscribe(self._on_table)

    def start(
        self,
        listeners: Listeners | None = None,
        door: Mapping[str, socket.socket] | None = None,
    ) -> None:
        """Accept and open the gate; raises `OSError` that names the address that is taken.

        `listeners` and those of the `door`, by address, are another agent's that end here; they
        are ours from now on.
        """
        self.listeners = listeners or self._listen()
        accept: dict[socket.socket | None, Callable[[socket.socket], None]] = {
            self.listeners.outbound4: self._on_outbound,
            self.listeners.outbound6: self._on_outbound,
            self.listeners.inbound4: self._on_inbound,
            self.listeners.inbound6: self._on_inbound,
        }
        for sock, on_accept in accept.items():
            if sock is not None:
                serve = self._noted(on_accept)
                acceptor = Acceptor(self._loop, sock, serve, self._on_accept_error)
                acceptor.start()
                self._acceptors.append(acceptor)
        self._gate.open(self.listeners)
        self._door.open(door)
        self._checker.start()

    # Another agent and this one (docs/UPGRADE.md)

    def rest(self) -> None:
        """Another agent serves from now on: accept nothing, tell the kernel nothing; what is
        established goes on, and the listeners stay open."""
        self._is_resting = True
        self._gate.rest()
        self._checker.close()
        self._door.rest()
        for acceptor in self._acceptors:
            acceptor.stop()

    def resume(self) -> None:
        """Serve again after `rest`."""
        assert self.listeners is not None
        if not self._is_resting:
            return
        self._is_resting = self._shut = False
        for acceptor in self._acceptors:
            acceptor.start()
        self._gate.open(self.listeners)
        self._door.resume()
        self._checker.start()

    @property
    def front(self) -> Front:
        """Who makes the sessions."""
        return self._front

    @property
    def local(self) -> LocalServices:
        """The connections to this node's services."""
        return self._local

    @property
    def door(self) -> Door:
        """Where callers of other nodes come in."""
        return self._door

    def peer_of(self, moved: Moved) -> Peer:
        """Who a connection is between that another agent had."""
        source = None
        if moved.direction is Direction.INBOUND:
            is_v6 = moved.client.family == socket.AF_INET6
            source = LOOP_GUARD6 if is_v6 else LOOP_GUARD4
        return Peer(
            direction=moved.direction,
            client=address_of(moved.client.getpeername()),
            original=moved.original,
            original_is_instance=moved.original in self.known,
            source=source,
            caller=moved.caller,
        )

    def _listen(self) -> Listeners:
        outbound, inbound = self.settings.outbound_port, self.settings.inbound_port
        opened: list[socket.socket] = []
        try:
            for host, port in (("127.0.0.1", outbound), ("127.0.0.1", inbound)):
                opened.append(open_listener(Address(host, port)))
        except OSError:
            for sock in opened:
                sock.close()
            raise
        return Listeners(
            outbound4=opened[0],
            outbound6=_listen_if_possible(Address("::1", outbound)),
            inbound4=opened[1],
            inbound6=_listen_if_possible(Address("::1", inbound)),
        )

    def use_table(self, table: ServiceTable) -> None:
        """Route by this table until the registry has said something."""
        self._on_table(table)

    def _on_table(self, table: ServiceTable) -> None:
        # A registry that knows of no other address hands on the same set.
        moved = table.addresses is not self.forwarder.table.addresses
        self.known.update(table.addresses, self._loop.time())
        self.forwarder.update(table)
        self._local.update(table)
        if moved:
            self._gate.follow()

    def _source_for(self, address: Address) -> str | None:
        """A service of this node is reached without the detour over our own inbound side."""
        if not self._is_local(address):
            return None
        return LOOP_GUARD6 if ":" in address.host else LOOP_GUARD4

    # Connections

    def _noted(self, serve: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
        """`serve`, and on the board stands who has come while it is in no session yet."""
        board, way = self._board, int(serve == self._on_inbound)
        if board is None:
            return serve

        def noted(sock: socket.socket) -> None:
            board.arriving(sock.fileno(), way)
            serve(sock)
            board.arrived()

        return noted

    def serve_arrived(self, way: int, sock: socket.socket) -> None:
        """Serve who had come to an agent that died, by the way that is on its board."""
        (self._on_inbound if way else self._on_outbound)(sock)

    def _on_outbound(self, sock: socket.socket) -> None:
        original = original_destination(sock)
        if original is not None and self._is_own(original):
            original = None
        self._serve(sock, Direction.OUTBOUND, original, source=None)

    def _is_own(self, address: Address) -> bool:
        ports = (self.settings.outbound_port, self.settings.inbound_port)
        is_loopback = address.host == "::1" or address.host.startswith("127.")
        return address.port in ports and is_loopback

    def _on_inbound(self, sock: socket.socket) -> None:
        original: Address | None = address_of(sock.getsockname())
        if original is not None and self._is_own(original):
            original = None
        source = LOOP_GUARD6 if sock.family == socket.AF_INET6 else LOOP_GUARD4
        self._serve(sock, Direction.INBOUND, original, source)

    def _serve_caller(self, sock: socket.socket, caller: PeerAgent) -> int | None:
        """One of another node's: nobody knows what it dialled, but that it was an instance.

        Also while we drain: until the other nodes know, their callers still come.
        """
        if self._shut:
            return None
        return self._serve(sock, Direction.OUTBOUND, None, source=None, caller=caller)

    def _serve(
        self,
        sock: socket.socket,
        direction: Direction,
        original: Address | None,
        source: str | None,
        caller: PeerAgent | None = None,
    ) -> int | None:
        """The session's number; None when the client has left already."""
        try:
            client = address_of(sock.getpeername())
        except OSError:
            sock.close()
            return None
        peer = Peer(
            direction=direction,
            client=client,
            original=original,
            original_is_instance=original in self.known,
            source=source,
            caller=caller,
        )
        self.metrics.accepted += 1
        number = self._front.serve(sock, peer)
        if len(self.sessions) >= self.settings.max_connections:
            self._on_full()
        return number

    def _on_session_end(self) -> None:
        if not self.sessions:
            self._empty.set()

    # Being full: new connections go where they would go without us

    def _on_accept_error(self) -> None:
        self.metrics.accept_errors += 1
        self._on_full()

    def _on_full(self) -> None:
        if self._shut or self._draining or self._is_resting:
            return
        self._shut = True
        # Descriptors may be free again without any of our connections having ended.
        self._loop.call_later(_REOPEN_AFTER_S, self._reopen_if_room)
        self.metrics.overloads += 1
        self._gate.shut()
        self._loop.call_later(_LAST_ARRIVALS_S, self._withdraw)
        log.warning("full", connections=len(self.sessions), new_connections="go direct")

    def _withdraw(self) -> None:
        if self._shut or self._draining:
            self._gate.withdraw()

    def _reopen_if_room(self) -> None:
        if self._draining or self._is_resting or self.listeners is None:
            return
        if len(self.sessions) >= _REOPEN_SHARE * self.settings.max_connections:
            self._loop.call_later(_REOPEN_AFTER_S, self._reopen_if_room)
        else:
            self._shut = False
            self._gate.open(self.listeners)
            log.info("no longer full", connections=len(self.sessions))

    # The end

    async def drain(self, timeout_s: float) -> None:
        """Let new connections pass us by, finish what is under way, then close everything."""
        self._draining = True
        self._gate.shut()
        self._front.go_away()
        self._door.dismiss()
        deadline_s = self._loop.time() + timeout_s
        # A connect() that was turned to us just before is still on its way to be accepted.
        last_s = _LAST_CALLERS_S if self._door.is_open else _LAST_ARRIVALS_S
        await asyncio.sleep(min(last_s, timeout_s))
        self._withdraw()
        self._door.close()
        while self.sessions and self._loop.time() < deadline_s:
            silent_since_s = self._loop.time() - _FIRST_REQUEST_S
            for session in list(self.sessions.values()):
                if session.is_idle and (session.requests or session.started_s < silent_since_s):
                    session.client.close()
            self._empty.clear()
            try:
                async with asyncio.timeout_at(min(deadline_s, self._loop.time() + 0.05)):
                    await self._empty.wait()
            except TimeoutError:
                continue
        self.close()

    def close(self) -> None:
        """Close everything now."""
        self._draining = True
        self._door.close()
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()
        self._checker.close()
        for session in list(self.sessions.values()):
            session.close()
        self.forwarder.close()
        self._local.close()

    # What can be seen from outside

    def gauges(self) -> Mapping[str, float]:
        """The sizes of things at this moment, for metrics and status."""
        sessions = self.sessions.values()
        return {
            "outbound_connections": sum(s.peer.direction is Direction.OUTBOUND for s in sessions),
            "inbound_connections": sum(s.peer.direction is Direction.INBOUND for s in sessions),
            "peer_connections": sum(s.peer.caller is not None for s in sessions),
            "raw_connections": sum(s.mode is Mode.RAW for s in sessions),
            "mesh_connections": sum(s.protocol is Spoken.MESH for s in sessions),
            "upstream_connections": sum(p.connections for p in self.forwarder.pools),
            "mesh_upstream_connections": sum(
                p.connections for p in self.forwarder.pools.mesh_pools
            ),
            "mesh_peers": sum(p.connections > 0 for p in self.forwarder.pools.mesh_pools),
            "services": len(self.forwarder.table.uris),
            "instances": len(self.forwarder.table.addresses),
        }

    def health_counts(self) -> Mapping[str, Mapping[str, int]]:
        """By service, what its health has counted since it was first asked for."""
        return {
            service.uri: {
                "ejections": service.health.ejections,
                "probes": service.health.probes,
                "readmissions": service.health.readmissions,
            }
            for service in self.forwarder.services
        }


def _listen_if_possible(address: Address) -> socket.socket | None:
    """A node without IPv6 has no ::1; any other refusal is an error."""
    if not socket.has_ipv6:
        return None
    try:
        return open_listener(address)
    except OSError as e:
        if e.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return None
        raise
