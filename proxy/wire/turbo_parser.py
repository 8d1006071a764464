"""Reads binary packets of either form: bytes of a peer in, packets out."""

from __future__ import annotations

from collections.abc import Generator

from proxy.wire.chunks import ChunkReader
from proxy.wire.framer import Framer
from proxy.wire.resp_types import ProtocolError, printable
from proxy.wire.turbo_types import (
    DEFAULT_PACKET_LIMITS,
    END9,
    HEAD9,
    HEAD19,
    Cmd,
    Form,
    Packet,
    PacketLimits,
)

_CMDS = {int(cmd): cmd for cmd in Cmd}


class PacketParser:
    """Feeds on the bytes of one connection and returns the packets they complete.

    For both directions: which commands a peer may send is its user's to judge. Any chunking
    gives the same packets, in linear time. Holds at most one packet of `limits.max_body` and
    one chunk. An unknown command or a length over the limit is refused as soon as the header
    is read: behind it no packet's start could be told.
    """

    __slots__ = ("_form", "_framer", "_head", "_max_body", "_reader", "_trailer")

    def __init__(
        self, limits: PacketLimits = DEFAULT_PACKET_LIMITS, form: Form = Form.PACKET19
    ) -> None:
        self._form = form
        self._head = HEAD19 if form is Form.PACKET19 else HEAD9
        self._trailer = b"" if form is Form.PACKET19 else END9
        self._max_body = limits.max_body
        self._reader = ChunkReader()
        self._framer = Framer(self._reader, self._whole, self._read)

    @property
    def mid_frame(self) -> bool:
        """Whether a packet has begun and is not complete."""
        return self._reader.mid_frame

    @property
    def pending(self) -> bytes:
        """A copy of the bytes that no returned packet holds, in their order.

        After an error it is everything from the start of the offending packet to the end of
        the chunk that showed the error.
        """
        return self._reader.held()

    @property
    def error(self) -> ProtocolError | None:
        """What the next `feed` raises, known as soon as the bytes were read."""
        return self._framer.error

    def feed(self, data: bytes) -> list[Packet]:
        """The packets that `data` completes, oldest first.

        Raises ProtocolError when the stream is broken. Packets completed before the break are
        returned first; the error is then in `error`, and each later call raises it and
        ignores its data.
        """
        return self._framer.feed(data)

    def _whole(self, data: bytes, at: int) -> Packet | None:
        """The packet that lies at `at` as a whole and within the limits."""
        head = self._head
        begin = at + head.size
        if begin > len(data):
            return None
        opaque, number, *rest, size = head.unpack_from(data, at)
        cmd = _CMDS.get(number)
        end = begin + size + len(self._trailer)
        if cmd is None or not 0 <= size <= self._max_body or end > len(data):
            return None
        if not data.startswith(self._trailer, begin + size):
            return None
        version, extension = rest or (0, 0)
        return Packet(self._form, opaque, cmd, version, extension, data[at:end])

    def _read(self) -> Generator[None, None, Packet]:
        reader = self._reader
        yield from reader.skip(self._head.size)
        opaque, number, *rest, size = self._head.unpack(reader.text(0, self._head.size))
        cmd = _CMDS.get(number)
        if cmd is None:
            raise ProtocolError(f"unknown command {number} in packet {opaque}, expected 1 to 5")
        if not 0 <= size <= self._max_body:
            raise ProtocolError(
                f"invalid length of packet {opaque}: {size} is not within 0 and "
                f"{self._max_body} bytes"
            )
        yield from reader.skip(size)
        if self._trailer:
            yield from reader.skip(len(self._trailer))
            end = reader.offset
            seen = reader.text(end - len(self._trailer), end)
            if seen != self._trailer:
                raise ProtocolError(
                    f"expected CRLF after {size} bytes of packet {opaque}, got {printable(seen)}"
                )
        version, extension = rest or (0, 0)
        return Packet(self._form, opaque, cmd, version, extension, reader.take())
