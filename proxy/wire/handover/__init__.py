"""The hand-over protocol between two agents of one node (docs/UPGRADE.md): frames and messages.

Bytes in, frames out; descriptors travel beside, see `proxy/net/handover/channel.py`.
"""

from proxy.wire.handover.frames import (
    MAX_DESCRIPTORS,
    MAX_LENGTH,
    MAX_VERSION,
    MIN_VERSION,
    FrameReader,
    FrameType,
    HandoverError,
    Received,
    encode,
    settle,
)

__all__ = [
    "MAX_DESCRIPTORS",
    "MAX_LENGTH",
    "MAX_VERSION",
    "MIN_VERSION",
    "FrameReader",
    "FrameType",
    "HandoverError",
    "Received",
    "encode",
    "settle",
]
