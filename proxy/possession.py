"""What an agent has, as another agent takes it: implements both sides of a hand-over."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import structlog

from proxy.app import Listeners, ProxyApp
from proxy.core.message import Wire
from proxy.core.model import Address, ServiceKey, ServiceTable
from proxy.net.adoption import Adopted, adopt_board, cookie
from proxy.net.board import Board
from proxy.net.handover.sides import IdleUpstream
from proxy.net.moved import Moved
from proxy.net.pools import Pools
from proxy.net.served import Served
from proxy.net.sockets import socket_of
from proxy.registry.member import BadMember, format_member, parse_member
from proxy.wire.mesh import StateError

_OWN = ("outbound4", "outbound6", "inbound4", "inbound6")
_DOOR = "door "
_SHARE_AT_FIRST = 2
"""One of so many idle connections goes along at once: those that are served here until they
move need some, too."""

log = structlog.get_logger("handover")


class Surroundings(Protocol):
    """What belongs to the process and not to the proxy."""

    def locks(self) -> Mapping[str, int]:
        """Descriptors that make this the node's one agent; they stay its own."""

    def take_locks(self, locks: Mapping[str, int]) -> None:
        """Those of the other agent, ours from now on; held together with it, if it lives."""

    def on_taking(self) -> None:
        """This agent is about to serve: bring the kernel to its version. Raises ValueError when
        that cannot be, and then nothing has changed."""

    def on_staying(self) -> None:
        """Another agent was about to serve, and does not; this one does."""

    def on_serving(self) -> None:
        """This agent serves now."""

    def on_resting(self) -> None:
        """Another agent serves now."""


class Possession:
    """Of one agent, serving or not; see `GivingSide` and `TakingSide`."""

    def __init__(self, app: ProxyApp, surroundings: Surroundings) -> None:
        self._app = app
        self._surroundings = surroundings
        self._told_recv = 0
        """Of what INFO tells: known to the other agent."""
        self._listeners: Listeners | None = None
        self._door: dict[str, socket.socket] = {}

    @property
    def sessions(self) -> Mapping[int, Served]:
        return self._app.sessions

    # Giving

    def shared(self) -> dict[str, int]:
        found: dict[str, int] = {}
        assert self._app.listeners is not None
        for name in _OWN:
            sock: socket.socket | None = getattr(self._app.listeners, name)
            if sock is not None:
                found[name] = sock.fileno()
        for address, listener in self._app.door.listeners.items():
            found[_DOOR + address] = listener.fileno()
        return found | dict(self._surroundings.locks())

    @property
    def next_number(self) -> int:
        return self._app.front.next_number

    def step_back(self) -> None:
        self._app.rest()
        self._surroundings.on_resting()

    def step_forward(self) -> None:
        self._keep_state()
        self._app.resume()
        self._surroundings.on_serving()

    def state(self, *, is_last: bool, with_table: bool) -> dict[str, bytes]:
        app = self._app
        counters = app.front.counters
        recv, self._told_recv = counters.recv - self._told_recv, counters.recv
        parts: dict[str, Any] = {"metrics": app.metrics.give(), "info": {"recv": recv}}
        if not is_last:
            pools = app.forwarder.pools
            parts |= {
                "services": {s.uri: s.export() for s in app.forwarder.services},
                "known": app.known.export(),
                "mesh": [str(address) for address in pools.met()],
            }
            if with_table:
                parts["table"] = _table_text(app.registry.table)
        return {name: json.dumps(part).encode() for name, part in parts.items()}

    def stay(self) -> None:
        self._keep_state()
        self._surroundings.on_staying()

    def _keep_state(self) -> None:
        """What was told was lost with the other agent: count on from there."""
        self._app.metrics.take_back()
        self._told_recv = 0

    def idle_upstreams(self, *, is_last: bool) -> list[IdleUpstream]:
        every = 1 if is_last else _SHARE_AT_FIRST
        found = [
            *_set_aside(self._app.forwarder.pools, every, is_local=False),
            *_set_aside(self._app.local.pools, every, is_local=True),
        ]
        if is_last:
            self._app.forwarder.pools.retire_mesh()
        return found

    # Taking

    @property
    def needs_table(self) -> bool:
        """Whether this agent's registry has said nothing yet."""
        return not self._app.registry.table.addresses

    def take_shared(self, shared: Mapping[str, int], next_number: int) -> None:
        missing = {"outbound4", "inbound4"} - shared.keys()
        if missing:
            raise ValueError(f"no listener {', '.join(sorted(missing))}")
        self._surroundings.on_taking()
        locks = dict(shared)
        own = {name: socket_of(locks.pop(name)) for name in _OWN if name in locks}
        self._listeners = Listeners(
            own["outbound4"], own.get("outbound6"), own["inbound4"], own.get("inbound6")
        )
        self._door = {
            name.removeprefix(_DOOR): socket_of(locks.pop(name))
            for name in list(locks)
            if name.startswith(_DOOR)
        }
        try:
            self._surroundings.take_locks(locks)
        except ValueError:
            for sock in (*own.values(), *self._door.values()):
                sock.detach()
            self._listeners, self._door = None, {}
            raise
        self._app.front.begin_at(next_number)

    def serve(self) -> None:
        app = self._app
        if app.listeners is not None:
            # They were ours before, and the other agent had them from us.
            for sock in (*(self._listeners.all() if self._listeners else ()), *self._door.values()):
                sock.close()
            app.metrics.forget_given()
            app.resume()
        else:
            app.start(self._listeners, self._door)
        self._listeners, self._door = None, {}
        self._surroundings.on_serving()

    def take_state(self, parts: Mapping[str, bytes]) -> None:
        """What cannot be understood is left out: an agent without it still serves."""
        takers: dict[str, Callable[[Any], None]] = {
            "metrics": self._app.metrics.take,
            "services": self._take_services,
            "known": self._app.known.restore,
            "info": self._take_info,
            "mesh": self._meet,
            "table": self._take_table,
        }
        # The table first: what is known of services is known of those that are listed.
        for name in sorted(takers, key=lambda name: name != "table"):
            if name not in parts:
                continue
            try:
                takers[name](json.loads(parts[name]))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                log.warning("state not understood", part=name, error=str(error))

    def _take_services(self, exported: Mapping[str, Any]) -> None:
        table = self._app.forwarder.table
        for uri, values in exported.items():
            if table.knows(uri):
                self._app.forwarder.service(uri).restore(values)

    def _take_info(self, exported: Mapping[str, int]) -> None:
        self._app.front.counters.recv += int(exported["recv"]) - self._told_recv
        self._told_recv = 0

    def _meet(self, exported: list[str]) -> None:
        table = self._app.forwarder.table
        addresses = map(Address.parse, exported)
        self._app.forwarder.pools.meet(a for a in addresses if a in table.addresses)

    def _take_table(self, exported: Mapping[str, list[str]]) -> None:
        """Used only where this agent's own registry has said nothing yet."""
        if not self._app.registry.table.addresses and exported:
            self._app.use_table(_parsed_table(exported))

    def adopt(self, moved: Moved) -> None:
        if moved.client.family not in (socket.AF_INET, socket.AF_INET6):
            raise ValueError(f"connection {moved.number} is no TCP connection")
        try:
            peer = self._app.peer_of(moved)
        except OSError as error:
            raise ValueError(f"connection {moved.number} has ended: {error.strerror}") from None
        try:
            self._app.front.adopt(moved, peer)
        except StateError as error:
            raise ValueError(f"connection {moved.number}: {error}") from None
        if moved.caller is not None:
            self._app.door.know(moved.number)

    def inherit(self, board: Board, descriptors: dict[int, int]) -> Adopted:
        """Go on with every connection of an agent that died; see `adopt_board`."""
        app = self._app
        ours = {cookie(session.client.sock) for session in app.sessions.values()}
        found = adopt_board(board, descriptors, self._speaks_moa, app.settings.session.limits, ours)
        if not app.sessions:
            app.front.begin_at(max((m.number for m in found.connections), default=0) + 1)
        for moved in found.connections:
            if moved.number in app.sessions:
                moved = replace(moved, number=app.front.next_number)
            try:
                self.adopt(moved)
            except ValueError:
                found.over += 1
                moved.client.close()
                continue
            app.front.begin(moved.number)
        if found.arrived is not None:
            app.serve_arrived(*found.arrived)
        return found

    def _speaks_moa(self, moved: Moved) -> bool:
        """Whether the server of a connection is one to which any connection will do."""
        is_instance = moved.original is None or moved.original in self._app.known
        return is_instance or moved.spoke_moa or bool(moved.service)

    def begin(self, number: int) -> None:
        self._app.front.begin(number)

    def drop(self, number: int) -> None:
        self._app.front.drop(number)

    def take_upstream(
        self,
        address: Address,
        wire: Wire,
        sock: socket.socket,
        last_number: int,
        *,
        is_local: bool,
    ) -> None:
        pools = self._app.local.pools if is_local else self._app.forwarder.pools
        if not is_local and address not in self._app.forwarder.table.addresses:
            sock.close()
            return
        pools.get(address, wire).adopt(sock, last_number)


def _set_aside(pools: Pools, every: int, *, is_local: bool) -> Iterator[IdleUpstream]:
    for pool, wire, upstream in pools.set_aside(every):
        yield IdleUpstream(
            pool.address,
            wire,
            is_local,
            upstream.stream.sock,
            upstream.last_number,
            drop=partial(pool.detach, upstream),
            keep=partial(pool.put_back, upstream),
        )


def _table_text(table: ServiceTable) -> dict[str, list[str]]:
    return {
        str(key): [format_member(instance) for instance in instances]
        for key, instances in table.instances_by_key.items()
    }


def _parsed_table(exported: Mapping[str, list[str]]) -> ServiceTable:
    found = {}
    for name, members in exported.items():
        instances = []
        for member in members:
            try:
                instances.append(parse_member(member))
            except BadMember:
                continue
        found[ServiceKey.parse(name)] = instances
    return ServiceTable.build(found)
