"""The client's side of RESP: bytes of an upstream in, complete replies out."""

from __future__ import annotations

from collections.abc import Generator

from proxy.wire.chunks import ChunkReader
from proxy.wire.framer import Framer
from proxy.wire.resp_lines import check_bulk, read_bulk, read_length, read_line, whole_bulk
from proxy.wire.resp_types import DEFAULT_LIMITS, Limits, ProtocolError, Reply, printable

_CR = ord("\r")
_NULL_SPAN = (-1, -1)
_DOLLAR = ord("$")
_NULL = ord("_")
_LINES = frozenset(b"+-:,#(_")
_BULKS = frozenset(b"$!=")
_CHILDREN_PER_COUNT = {ord("*"): 1, ord("~"): 1, ord(">"): 1, ord("%"): 2, ord("|"): 2}
_ATTRIBUTE = ord("|")
_SMALLEST_ITEM = 3


class ReplyParser:
    """Feeds on the bytes of one upstream and returns the replies they complete.

    Knows the types of RESP2 and RESP3, so that all of them pass through; a RESP3 attribute
    and the value it belongs to are one reply. Streamed RESP3 types (`$?`, `*?`), which no
    server sends, are refused. Any chunking gives the same replies, in linear time. Holds at
    most `limits.max_frame` bytes and one chunk.
    """

    __slots__ = ("_framer", "_limits", "_reader")

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._reader = ChunkReader()
        self._framer = Framer(self._reader, self._whole, self._read)

    @property
    def mid_frame(self) -> bool:
        """Whether a reply has begun and is not complete."""
        return self._reader.mid_frame

    @property
    def pending(self) -> bytes:
        """A copy of the bytes that no returned reply holds; see `RequestParser.pending`."""
        return self._reader.held()

    @property
    def error(self) -> ProtocolError | None:
        """What the next `feed` raises, known as soon as the bytes were read."""
        return self._framer.error

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that `data` completes, oldest first; raises as `RequestParser.feed`."""
        return self._framer.feed(data)

    def _whole(self, data: bytes, at: int) -> Reply | None:
        """The reply that lies at `at` as a whole, when it is a bulk or a line."""
        if data[at] == _DOLLAR:
            begin, end = whole_bulk(data, at, self._limits)
        elif data[at] in _LINES and data[at] != _NULL:
            begin = at + 1
            end = data.find(b"\n", begin, at + self._limits.max_element + 1) - 1
            if end < begin or data[end] != _CR:
                return None
        else:
            return None
        if end < 0 or end + 2 - at > self._limits.max_frame:
            return None
        return Reply(data[at : end + 2], begin - at, end - at)

    def _read(self) -> Generator[None, None, Reply]:
        """Read one reply with everything in it; `open_counts` holds what each level lacks."""
        top: tuple[int, int] | None = None
        open_counts = [1]
        while open_counts:
            open_counts[-1] -= 1
            span, children = yield from self._read_item()
            top = top or span
            if children:
                if len(open_counts) > self._limits.max_depth:
                    raise ProtocolError(f"reply nested deeper than {self._limits.max_depth}")
                open_counts.append(children)
            while open_counts and not open_counts[-1]:
                open_counts.pop()
        begin, end = top or _NULL_SPAN
        return Reply(self._reader.take(), begin, end)

    def _read_item(self) -> Generator[None, None, tuple[tuple[int, int], int]]:
        """One item without its children: where its content is, and how many children follow."""
        kind = yield from self._reader.peek()
        if kind in _LINES:
            span = yield from self._read_text_line()
            return (_NULL_SPAN if kind == _NULL else span), 0
        if kind in _BULKS:
            length = yield from read_length(self._reader, "bulk")
            if length == -1 and kind == _DOLLAR:
                return _NULL_SPAN, 0
            check_bulk(self._reader, length, self._limits)
            return (yield from read_bulk(self._reader, length)), 0
        if kind in _CHILDREN_PER_COUNT:
            return _NULL_SPAN, (yield from self._read_count(kind))
        raise ProtocolError(f"expected the type of a reply, got {printable(bytes((kind,)))}")

    def _read_text_line(self) -> Generator[None, None, tuple[int, int]]:
        begin = self._reader.offset + 1
        limit = min(self._limits.max_element, self._limits.max_frame - begin)
        end = yield from read_line(self._reader, limit, f"line over the limit of {limit} bytes")
        if end <= begin or self._reader.text(end - 1, end) != b"\r":
            raise ProtocolError("line of a reply ends with LF alone, expected CRLF")
        return begin, end - 1

    def _read_count(self, kind: int) -> Generator[None, None, int]:
        count = yield from read_length(self._reader, "multibulk")
        if count < -1:
            raise ProtocolError(f"invalid multibulk length: {count}")
        children = max(count, 0) * _CHILDREN_PER_COUNT[kind]
        if kind == _ATTRIBUTE:
            children += 1
        if self._reader.offset + children * _SMALLEST_ITEM > self._limits.max_frame:
            raise ProtocolError(
                f"invalid multibulk length: {count} items cannot fit into the limit of "
                f"{self._limits.max_frame} bytes"
            )
        return children
