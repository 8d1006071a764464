"""Frames of the MOA Mesh protocol: 24 bytes, a Protobuf header, a piece of a body.

    magic 'M' 'O' 'A' 0x01 · flags u8 · type u8 · reserved u16 · headerLen u32 · bodyLen u32
    · requestId u64, all big-endian, then the header, then the body (docs/PROTOCOL.md §3)

`reserved` and unknown flags are sent as 0 and ignored, so that they can get a meaning.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from proxy.wire.mesh.errors import PeerError, Reason
from proxy.wire.mesh.pieces import Pieces

MAGIC = b"MOA\x01"
HEAD = struct.Struct(">4sBBHIIQ")
HEAD_SIZE = HEAD.size
MAX_FRAME_BODY = 64 * 1024
"""Bytes of body in one frame: what a small body waits for behind a large one."""
MAX_HEADER = 16 * 1024
MORE = 0x01
"""Flag: more frames of this body follow."""
CONTINUED = 0x02
"""Flag: this frame goes on with a body; it has no header."""
MAX_ID = 2**64 - 1


class FrameType(IntEnum):
    """The type byte; a frame of any other type is skipped."""

    REQUEST = 1
    RESPONSE = 2
    PING = 3
    PONG = 4
    GOAWAY = 5
    CANCEL = 6
    HELLO = 7
    WINDOW = 8


# Members by a plain name for each message's path: on Python 3.11 an attribute of an Enum class
# costs as much as packing the frame's head.
REQUEST = FrameType.REQUEST
RESPONSE = FrameType.RESPONSE


class Frame(NamedTuple):
    """One frame; `kind` is a FrameType or a number unknown to this version.

    A tuple, because a connection makes one for each message: it costs a third of a frozen
    dataclass.
    """

    kind: int
    flags: int
    request_id: int
    header: bytes
    body: tuple[bytes, ...]
    size: int
    """Bytes of body."""


def encode_frame(
    kind: FrameType, request_id: int, header: bytes = b"", body: bytes = b"", flags: int = 0
) -> bytes:
    """The frame in one piece."""
    head = HEAD.pack(MAGIC, flags, kind, 0, len(header), len(body), request_id)
    return b"".join((head, header, body))


class FrameParser:
    """Feeds on the bytes of one connection and returns the frames they complete.

    Any chunking gives the same frames, in linear time. Bodies are slices of the chunks: each
    byte is copied at most once, and not at all where a chunk lies in one body as a whole.
    Holds at most one unfinished frame: 24 bytes, `max_header` and `max_body`.
    """

    __slots__ = ("_body", "_head", "_max_body", "_max_header", "_missing", "_prefix", "error")

    def __init__(self, max_header: int = MAX_HEADER, max_body: int = MAX_FRAME_BODY) -> None:
        self._max_header = max_header
        self._max_body = max_body
        self.error: PeerError | None = None
        """What the next `feed` raises, known as soon as the bytes were read."""
        self._clear()

    def _clear(self) -> None:
        self._prefix = bytearray()
        self._head: tuple[int, int, int, int] | None = None
        self._body = Pieces()
        self._missing = 0

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return bool(self._prefix)

    @property
    def pending(self) -> bytes:
        """A copy of the bytes of the unfinished frame; empty after an error.

        Another parser of the same limits that is fed them goes on where this one stands.
        """
        return b"".join((self._prefix, *self._body.held()))

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, oldest first.

        Raises PeerError when the stream is broken. Frames completed before the break are
        returned first; the error is then in `error`, and each later call raises it and
        ignores its data.
        """
        if self.error is not None:
            raise self.error
        frames: list[Frame] = []
        try:
            at = self._resume(data, frames) if self._prefix else 0
            at = self._read_whole(data, at, frames)
            if at < len(data):
                self._take(data, at)
        except PeerError as error:
            self._clear()
            self.error = error
            if not frames:
                raise
        return frames

    def _read_whole(self, data: bytes, at: int, frames: list[Frame]) -> int:
        """Read frames as long as they lie in `data` as a whole; return where that ends."""
        last = len(data) - HEAD_SIZE
        while at <= last:
            magic, flags, kind, _, header_size, size, request_id = HEAD.unpack_from(data, at)
            if magic != MAGIC or header_size > self._max_header or size > self._max_body:
                raise self._refusal(magic, header_size, size)
            body_at = at + HEAD_SIZE + header_size
            end = body_at + size
            if end > len(data):
                break
            body = (data[body_at:end],) if size else ()
            header = data[at + HEAD_SIZE : body_at] if header_size else b""
            frames.append(Frame(kind, flags, request_id, header, body, size))
            at = end
        return at

    def _resume(self, data: bytes, frames: list[Frame]) -> int:
        at = self._take(data, 0)
        if self._head is not None and self._missing == 0:
            flags, kind, request_id, prefix_size = self._head
            if len(self._prefix) == prefix_size:
                header = bytes(self._prefix[HEAD_SIZE:])
                body = self._body
                frames.append(Frame(kind, flags, request_id, header, body.held(), body.size))
                self._clear()
        return at

    def _take(self, data: bytes, at: int) -> int:
        """Take what the begun frame lacks from `data`; return the index behind that."""
        at = self._take_prefix(data, at, HEAD_SIZE)
        if self._head is None:
            if not MAGIC.startswith(self._prefix[: len(MAGIC)]):
                raise self._refusal(bytes(self._prefix[: len(MAGIC)]), 0, 0)
            if len(self._prefix) < HEAD_SIZE:
                return at
            magic, flags, kind, _, header_size, size, request_id = HEAD.unpack(self._prefix)
            if magic != MAGIC or header_size > self._max_header or size > self._max_body:
                raise self._refusal(magic, header_size, size)
            self._head = (flags, kind, request_id, HEAD_SIZE + header_size)
            self._missing = size
        at = self._take_prefix(data, at, self._head[3])
        if len(self._prefix) == self._head[3] and self._missing:
            whole = not at and len(data) <= self._missing
            piece = data if whole else data[at : at + self._missing]
            self._body.add(piece)
            self._missing -= len(piece)
            at += len(piece)
        return at

    def _take_prefix(self, data: bytes, at: int, size: int) -> int:
        lacking = size - len(self._prefix)
        if lacking <= 0:
            return at
        self._prefix += data[at : at + lacking]
        return min(at + lacking, len(data))

    def _refusal(self, magic: bytes, header_size: int, size: int) -> PeerError:
        if magic != MAGIC:
            # Up to the first wrong byte: the same text however the bytes were cut.
            wrong = next(n for n in range(1, len(MAGIC) + 1) if magic[:n] != MAGIC[:n])
            return PeerError(
                Reason.PROTOCOL_ERROR, f"frame begins with {magic[:wrong]!r}, expected {MAGIC!r}"
            )
        if header_size > self._max_header:
            text = f"header of {header_size} bytes, at most {self._max_header} are taken"
        else:
            text = f"{size} bytes of body in one frame, at most {self._max_body} are taken"
        return PeerError(Reason.TOO_LARGE, text)
