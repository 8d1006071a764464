"""What goes wrong on a mesh connection, split by who is to blame."""

from __future__ import annotations

from enum import Enum, IntEnum


class Reason(IntEnum):
    """Why a connection ends: the code of a GOAWAY (mesh.proto, GoAwayCode)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    VERSION_MISMATCH = 2
    TOO_LARGE = 3
    TOO_MANY_STREAMS = 4
    FLOW_CONTROL = 5
    FLOOD = 6
    TIMEOUT = 7


class Refusal(Enum):
    """Why a request or a response cannot be given to this connection."""

    CLOSING = "closing"
    """No new request: a GOAWAY was sent or received, or the connection is closed."""
    TOO_MANY = "too many"
    """As many requests are open as the settings allow."""
    QUEUE_FULL = "queue full"
    """Too many bytes wait for the peer to read."""
    TOO_LARGE = "too large"
    """The body or the header is over the limit of the peer."""


class MeshError(Exception):
    """Base of all errors here."""


class PeerError(MeshError):
    """The peer broke the protocol or did not answer; the connection is at its end.

    `reason` and the text are what our GOAWAY says.
    """

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class CannotSend(MeshError):
    """The connection does not take this now; another connection may."""

    def __init__(self, refusal: Refusal, text: str) -> None:
        super().__init__(text)
        self.refusal = refusal


class UsageError(MeshError):
    """Our own driver asked for what makes no sense; a bug on this side."""


class StateError(MeshError):
    """Bytes that were handed over are no state that this version can go on from."""
