"""What all kinds of sessions have in common, as those see it who list, drain and close them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from proxy.core.model import Address, PeerAgent
from proxy.net.lane import LaneSettings
from proxy.net.stream import Stream
from proxy.wire.detect import Protocol as Spoken
from proxy.wire.resp import Limits

if TYPE_CHECKING:
    from proxy.net.moved import Moved


class Mode(StrEnum):
    DETECTING = "detecting"
    MOA = "moa"
    RAW = "raw"


class Direction(StrEnum):
    OUTBOUND = "outbound"
    INBOUND = "inbound"


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Bounds of one client's connection; times in seconds.

    `packets_at_once` requests of a client that sends binary packets are served at the same
    time, and no more than `max_packet` bytes each.
    """

    limits: Limits
    max_pending_bytes: int
    pipeline_depth: int
    packets_at_once: int
    max_packet: int
    detect_wait_s: float
    request_read_timeout_s: float
    lane: LaneSettings


@dataclass(frozen=True, slots=True)
class Peer:
    """Who a session is between: all that is known when a connection is accepted."""

    direction: Direction
    client: Address
    original: Address | None
    """The address that the client dialled; None when nobody knows it."""
    original_is_instance: bool
    source: str | None
    """Where connections to `original` come from; None: the kernel chooses."""
    caller: PeerAgent | None = None
    """The node that the client is on; None for this one."""


class Served(Protocol):
    """One client's connection."""

    peer: Peer
    mode: Mode
    protocol: Spoken
    service: str
    requests: int
    started_s: float
    client: Stream

    @property
    def upstream(self) -> Address | None:
        """Where its current request, or its bytes, go."""

    @property
    def is_idle(self) -> bool:
        """Whether it owes nothing and holds no part of a request."""

    def close(self) -> None:
        """End it now; a request under way is not answered."""

    # Changing hands (docs/UPGRADE.md)

    @property
    def is_settled(self) -> bool:
        """Whether it could change hands now."""

    def freeze(self, on_settled: Callable[[], None]) -> None:
        """Finish what has begun and begin nothing; calls back from the loop, maybe more than
        once, when `export` can be called, unless the client leaves before."""

    def thaw(self) -> None:
        """Go on as if nothing had been, also after `export`."""

    def export(self) -> Moved:
        """All that another agent needs to go on; the sockets stay this one's, untouched, until
        `let_go` or `thaw`. Raises CannotMove when it is not settled."""

    def let_go(self) -> None:
        """Another agent has it: forget it, and say nothing to anybody."""
