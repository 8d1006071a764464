"""What a connection tells its driver.

What each request makes is a tuple: a frozen dataclass costs three times as much.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from proxy.wire.mesh.errors import PeerError
from proxy.wire.mesh.headers import RequestHeader, ResponseHeader
from proxy.wire.mesh.settings import Agreement, Hello


class Fate(Enum):
    """What became of a request that gets no response."""

    NEVER_PROCESSED = "never processed"
    """The peer did not get it as a whole, or said so: it may be sent again anywhere."""
    UNKNOWN = "unknown"
    """The peer may have worked on it: only an idempotent request may be sent again."""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The peer's HELLO came, and there is a common version."""

    agreement: Agreement
    peer: Hello


class RequestReceived(NamedTuple):
    """A request is complete; it is owed one `send_response`.

    `arrived_s` is when its first frame came, `deadline_s` when its caller gives up (None:
    never), both on the clock of `receive_data`. The body is in pieces, to be forwarded
    without joining them.
    """

    request_id: int
    header: RequestHeader
    body: tuple[bytes, ...]
    arrived_s: float
    deadline_s: float | None


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """The caller of a request that was delivered has gone; its response is not wanted."""

    request_id: int


class ResponseReceived(NamedTuple):
    """A response is complete; its request is over."""

    request_id: int
    header: ResponseHeader
    body: tuple[bytes, ...]


class RequestFailed(NamedTuple):
    """A request is over without a response; `text` says why, for `em` and the log."""

    request_id: int
    fate: Fate
    text: str


@dataclass(frozen=True, slots=True)
class GoAwayReceived:
    """The peer takes no new requests; `reason` is a Reason or a number of a newer version.

    RequestFailed of each request above `last_id` comes with it; the others go on.
    """

    last_id: int
    reason: int
    text: str


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The peer answered a PING."""

    rtt_s: float


@dataclass(frozen=True, slots=True)
class ConnectionFailed:
    """The connection is at its end: send what `data_to_send` still has, then close it."""

    error: PeerError


Event = (
    Negotiated
    | RequestReceived
    | RequestCancelled
    | ResponseReceived
    | RequestFailed
    | GoAwayReceived
    | PongReceived
    | ConnectionFailed
)
