"""A client's connection as plain values and sockets: what one agent gives and another takes.

The giver makes it of a session that owes nothing any more (docs/UPGRADE.md), the adopter of a
dead agent's notes; `Front.adopt` makes a session of it again.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from proxy.core.model import Address, PeerAgent
from proxy.net.served import Direction
from proxy.wire.redis_server import SessionState


class Kind(StrEnum):
    """What a connection carries, as far as it is known."""

    DETECTING = "detecting"
    RESP = "resp"
    TURBO = "turbo"
    TURBO9 = "turbo9"
    MESH = "mesh"
    RAW = "raw"


class CannotMove(Exception):
    """The connection is not at a point at which it can change hands; the text says why."""


@dataclass(frozen=True, slots=True)
class RedisState:
    """What a client has set on its connection (`SessionState` without what is shared)."""

    resp: int = 2
    name: bytes = b""
    lib_name: bytes = b""
    lib_version: bytes = b""

    @classmethod
    def of(cls, state: SessionState) -> RedisState:
        return cls(state.resp, state.name, state.lib_name, state.lib_version)

    def apply(self, state: SessionState) -> None:
        state.resp, state.name = self.resp, self.name
        state.lib_name, state.lib_version = self.lib_name, self.lib_version


@dataclass(frozen=True, slots=True)
class Moved:
    """One connection; sockets are non-blocking and belong to whoever takes it.

    Giver: they stay open, and stay the giver's, until it is told that they were taken.
    """

    number: int
    """The session's; a client may have asked for it (CLIENT ID)."""
    kind: Kind
    direction: Direction
    client: socket.socket
    server: socket.socket | None = None
    """The other end of a splice, or the session's idle connection to the dialled address."""
    original: Address | None = None
    caller: PeerAgent | None = None
    """The other node that the client is on; None for this one."""
    unread: bytes = b""
    """Read of the client and not served yet, from the beginning of a request."""
    to_client: bytes = b""
    """Owed to the client before anything else; the kernel has not taken it yet."""
    to_server: bytes = b""
    from_server: bytes = b""
    """Read of the server and not passed on yet."""
    spoke_moa: bool = False
    service: str = ""
    requests: int = 0
    started_s: float = 0.0
    """CLOCK_MONOTONIC, which processes of one boot share."""
    redis: RedisState = field(default_factory=RedisState)
    mesh: bytes = b""
    """State of a mesh connection (`proxy/net/mesh_state.py`)."""
    owed: Mapping[int, str] = field(default_factory=dict)
    """Mesh requests whose replies are still to come from the giver: id to codec."""
    begun: int = 0
    """Adoption: so many of the requests at the head of `unread` may have been executed: they
    get an error in their turn, or are sent again when their methods are idempotent."""
    lost_packets: tuple[bytes, ...] = ()
    """Adoption: heads of packets that were under way and whose rest is gone; each gets an error."""
