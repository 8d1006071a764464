"""The MOA Mesh protocol between agents, sans I/O (docs/PROTOCOL.md §3).

Drive a `MeshConnection`; the other names here are its arguments, events and errors.
"""

from proxy.wire.mesh.connection import MeshConnection
from proxy.wire.mesh.errors import (
    CannotSend,
    MeshError,
    PeerError,
    Reason,
    Refusal,
    StateError,
    UsageError,
)
from proxy.wire.mesh.events import (
    ConnectionFailed,
    Event,
    Fate,
    GoAwayReceived,
    Negotiated,
    PongReceived,
    RequestCancelled,
    RequestFailed,
    RequestReceived,
    ResponseReceived,
)
from proxy.wire.mesh.frames import MAGIC, Frame, FrameParser, FrameType, encode_frame
from proxy.wire.mesh.headers import BodyCodec, RequestHeader, ResponseHeader
from proxy.wire.mesh.hop import child_trace, next_hop, remaining_ms
from proxy.wire.mesh.outbox import Buffer
from proxy.wire.mesh.pieces import Body, joined
from proxy.wire.mesh.settings import Agreement, Hello, Settings
from proxy.wire.mesh.snapshot import STATE_FORMAT, decode_state, encode_state
from proxy.wire.mesh.state import ConnectionState

__all__ = [
    "MAGIC",
    "STATE_FORMAT",
    "Agreement",
    "Body",
    "BodyCodec",
    "Buffer",
    "CannotSend",
    "ConnectionFailed",
    "ConnectionState",
    "Event",
    "Fate",
    "Frame",
    "FrameParser",
    "FrameType",
    "GoAwayReceived",
    "Hello",
    "MeshConnection",
    "MeshError",
    "Negotiated",
    "PeerError",
    "PongReceived",
    "Reason",
    "Refusal",
    "RequestCancelled",
    "RequestFailed",
    "RequestHeader",
    "RequestReceived",
    "ResponseHeader",
    "ResponseReceived",
    "Settings",
    "StateError",
    "UsageError",
    "child_trace",
    "decode_state",
    "encode_frame",
    "encode_state",
    "joined",
    "next_hop",
    "remaining_ms",
]
