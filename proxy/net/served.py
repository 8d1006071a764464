"""What all kinds of sessions have in common, as those see it who list, drain and close them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from proxy.core.model import Address, PeerAgent
from proxy.net.lane import LaneSettings
from proxy.net.stream import Stream
from proxy.wire.detect import Protocol as Spoken
from proxy.wire.resp import Limits


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
