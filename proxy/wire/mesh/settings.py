"""What one side of a connection takes, and what both sides agree on by HELLO."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from proxy.wire.mesh import mesh_pb2 as pb
from proxy.wire.mesh.errors import PeerError, Reason
from proxy.wire.mesh.frames import MAX_HEADER

MIN_VERSION = 1
MAX_VERSION = 1
_MAX_WINDOW = 2**31 - 1
_MAX_FEATURES = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits and times of our side; sizes in bytes.

    Memory of one connection is bounded by `max_streams * stream_window + max_buffered` for
    what comes in and `max_queued + max_open KiB` for what goes out, and one unfinished frame.
    """

    min_version: int = MIN_VERSION
    max_version: int = MAX_VERSION
    features: frozenset[str] = frozenset()
    max_streams: int = 256
    """Requests that the peer may have open, announced in HELLO."""
    max_open: int = 1024
    """Requests of our own: open at the peer, and waiting for a place there."""
    stream_window: int = 64 * 1024
    """Bytes of each body that the peer may send before it is given room: one frame, so that
    small messages never need a WINDOW."""
    max_body: int = 2 * 1024 * 1024
    """The public limit of one MOA body (docs/PROTOCOL.md §1)."""
    max_header: int = MAX_HEADER
    max_buffered: int = 16 * 1024 * 1024
    """Room for bodies larger than `stream_window`."""
    max_queued: int = 32 * 1024 * 1024
    """Bytes that wait for the peer to read them."""
    hello_timeout_s: float = 3.0
    ping_interval_s: float = 10.0
    """Quiet time after which the peer is asked whether it lives."""
    ping_timeout_s: float = 5.0
    agent: str = ""
    app: str = ""
    zone: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.min_version <= self.max_version:
            raise ValueError(f"versions {self.min_version} to {self.max_version}: not a range")
        if min(self.max_streams, self.max_open) < 1 or not 0 <= self.stream_window <= _MAX_WINDOW:
            raise ValueError(
                f"max_streams {self.max_streams}, max_open {self.max_open}, stream_window "
                f"{self.stream_window}: expected at least 1, 1 and 0 to {_MAX_WINDOW}"
            )
        if not 0 < self.max_body <= min(self.max_buffered, self.max_queued, _MAX_WINDOW):
            raise ValueError(
                f"max_body {self.max_body} must fit into max_buffered {self.max_buffered} and "
                f"max_queued {self.max_queued}, or a large body could never pass"
            )


@dataclass(frozen=True, slots=True)
class Hello:
    """What the peer announced; sizes in bytes."""

    min_version: int
    max_version: int
    features: frozenset[str]
    max_streams: int
    stream_window: int
    max_body: int
    max_header: int
    agent: str = ""
    app: str = ""
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What holds on this connection."""

    version: int
    features: frozenset[str]


def encode_hello(settings: Settings) -> bytes:
    """The Protobuf of our HELLO."""
    return pb.Hello(
        min_version=settings.min_version,
        max_version=settings.max_version,
        features=sorted(settings.features),
        max_streams=settings.max_streams,
        stream_window=settings.stream_window,
        max_body=settings.max_body,
        max_header=settings.max_header,
        agent=settings.agent,
        app=settings.app,
        zone=settings.zone,
    ).SerializeToString()


def decode_hello(raw: bytes) -> Hello:
    """The peer's HELLO. Raises PeerError when it is none or makes no sense."""
    try:
        message = pb.Hello.FromString(raw)
    except (DecodeError, UnicodeDecodeError):
        raise PeerError(
            Reason.PROTOCOL_ERROR, f"header of HELLO ({len(raw)} bytes) is not its message"
        ) from None
    if not 1 <= message.min_version <= message.max_version:
        raise PeerError(
            Reason.VERSION_MISMATCH,
            f"HELLO offers versions {message.min_version} to {message.max_version}: not a range",
        )
    if not (message.max_streams and message.max_header) or len(message.features) > _MAX_FEATURES:
        raise PeerError(
            Reason.PROTOCOL_ERROR,
            f"HELLO with max_streams {message.max_streams}, max_header {message.max_header} and "
            f"{len(message.features)} features; expected at least 1, 1 and at most {_MAX_FEATURES}",
        )
    return Hello(
        min_version=message.min_version,
        max_version=message.max_version,
        features=frozenset(message.features),
        max_streams=message.max_streams,
        stream_window=min(message.stream_window, _MAX_WINDOW),
        max_body=message.max_body,
        max_header=message.max_header,
        agent=message.agent,
        app=message.app,
        zone=message.zone,
    )


def agree(settings: Settings, hello: Hello) -> Agreement:
    """The lower of the two newest versions, and the features of both. Raises PeerError."""
    version = min(settings.max_version, hello.max_version)
    if version < max(settings.min_version, hello.min_version):
        raise PeerError(
            Reason.VERSION_MISMATCH,
            f"no common version: {settings.min_version} to {settings.max_version} here, "
            f"{hello.min_version} to {hello.max_version} there",
        )
    return Agreement(version, settings.features & hello.features)
