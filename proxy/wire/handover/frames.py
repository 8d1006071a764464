"""Frames of the hand-over protocol: a fixed head, then one Protobuf message.

Head, 16 bytes, big-endian: `'MOAH' · version u16 · type u16 · descriptors u32 · length u32`.
`descriptors` travel with the frame's first byte. The version is the highest that the sender
speaks until both HELLOs are there, and the settled one from then on.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from google.protobuf.message import DecodeError, Message

from proxy.wire.handover import handover_pb2 as pb

MIN_VERSION = 1
MAX_VERSION = 1

MAGIC = b"MOAH"
_HEAD = struct.Struct(">4sHHII")
MAX_LENGTH = 64 * 1024 * 1024
MAX_DESCRIPTORS = 200
"""In one frame; the kernel takes 253 in one message (SCM_MAX_FD)."""


class HandoverError(Exception):
    """The other agent does not keep to the protocol; the text says where."""


class FrameType(IntEnum):
    HELLO = 1
    REFUSE = 2
    READY = 3
    SHARED = 4
    STATE = 5
    PREPARE = 6
    ACCEPTED = 7
    COMMIT = 8
    REPLY = 9
    ACKNOWLEDGE = 10
    CANCEL = 11
    DONE = 12


_MESSAGES: dict[FrameType, type[Message]] = {
    FrameType.HELLO: pb.Hello,
    FrameType.REFUSE: pb.Refuse,
    FrameType.READY: pb.Ready,
    FrameType.SHARED: pb.Shared,
    FrameType.STATE: pb.State,
    FrameType.PREPARE: pb.Prepare,
    FrameType.ACCEPTED: pb.Accepted,
    FrameType.COMMIT: pb.Commit,
    FrameType.REPLY: pb.Reply,
    FrameType.ACKNOWLEDGE: pb.Acknowledge,
    FrameType.CANCEL: pb.Cancel,
    FrameType.DONE: pb.Done,
}
_TYPES = {message: number for number, message in _MESSAGES.items()}


class Received(NamedTuple):
    """One frame; `descriptors` is how many came with it."""

    type: FrameType
    message: Message
    descriptors: int


def encode(message: Message, descriptors: int = 0, version: int = MAX_VERSION) -> bytes:
    """The bytes of one frame."""
    payload = message.SerializeToString()
    if len(payload) > MAX_LENGTH:
        raise HandoverError(f"a frame of {len(payload)} bytes: at most {MAX_LENGTH} are taken")
    number = _TYPES[type(message)]
    return _HEAD.pack(MAGIC, version, number, descriptors, len(payload)) + payload


def settle(minimum: int, maximum: int) -> int | None:
    """The version to speak with a peer that speaks these; None when there is none in common."""
    version = min(maximum, MAX_VERSION)
    return version if version >= max(minimum, MIN_VERSION) else None


class FrameReader:
    """Frames out of a stream of bytes, however it is cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Received]:
        """The frames that are complete now. Raises HandoverError."""
        self._buffer += data
        frames: list[Received] = []
        at = 0
        while len(self._buffer) - at >= _HEAD.size:
            magic, version, number, descriptors, length = _HEAD.unpack_from(self._buffer, at)
            if magic != MAGIC:
                raise HandoverError(f"magic {magic!r}, expected {MAGIC!r}")
            if length > MAX_LENGTH or descriptors > MAX_DESCRIPTORS:
                raise HandoverError(f"a frame of {length} bytes with {descriptors} descriptors")
            end = at + _HEAD.size + length
            if len(self._buffer) < end:
                break
            payload = bytes(memoryview(self._buffer)[at + _HEAD.size : end])
            frames.append(_decode(number, version, payload, descriptors))
            at = end
        del self._buffer[:at]
        return frames


def _decode(number: int, version: int, payload: bytes, descriptors: int) -> Received:
    try:
        kind = FrameType(number)
    except ValueError:
        raise HandoverError(f"frame type {number} of version {version} is not known") from None
    message = _MESSAGES[kind]()
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise HandoverError(f"{kind.name}: {error}") from error
    return Received(kind, message, descriptors)
