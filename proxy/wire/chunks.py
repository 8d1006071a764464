"""Reads frames out of chunks that end anywhere, looking at each byte once.

A parser is a generator over a `ChunkReader`: it yields where it needs the next chunk. Lines
and bodies may straddle chunks; the chunks of an unfinished frame are kept by reference and
joined once, when the frame is complete.
"""

from __future__ import annotations

from collections.abc import Generator

_LF = b"\n"

_COALESCE_BELOW = 4096
"""Chunks smaller than this are appended to a bytearray: a peer that sends single bytes must
not cost an object of 40 bytes for each of them."""

_TAIL = 64
"""Bytes of the held chunks that stay readable for `text`; a length line is at most 32 long."""


class LineTooLong(Exception):
    """A line did not end within its limit."""


class ChunkReader:
    """A cursor over the chunks of one frame at a time; offsets count from the frame's start.

    Never holds more than the unfinished frame and the chunk being read. Does not block.
    """

    __slots__ = ("_at", "_data", "_held", "_parts", "_start", "_tail")

    def __init__(self) -> None:
        self._parts: list[bytes | bytearray] = []
        self._held = 0
        self._tail = b""
        self._data = b""
        self._start = 0
        self._at = 0

    @property
    def mid_frame(self) -> bool:
        """Whether chunks of an unfinished frame are held."""
        return self._held > 0

    @property
    def offset(self) -> int:
        """The cursor, in bytes from the start of the frame."""
        return self._held + self._at - self._start

    @property
    def chunk_at(self) -> int:
        """The cursor as an index into the chunk given to `push`."""
        return self._at

    def push(self, data: bytes, at: int) -> None:
        """Go on reading in `data` from index `at`; call `hold` before the next `push`."""
        self._data = data
        self._start = self._at = at

    def hold(self) -> None:
        """Keep what is left of the chunk as part of the unfinished frame."""
        piece = self._data[self._start :] if self._start else self._data
        self._data = b""
        self._start = self._at = 0
        if not piece:
            return
        self._held += len(piece)
        self._tail = piece[-_TAIL:] if len(piece) >= _TAIL else (self._tail + piece)[-_TAIL:]
        if len(piece) >= _COALESCE_BELOW:
            self._parts.append(piece)
        elif self._parts and isinstance(self._parts[-1], bytearray):
            self._parts[-1] += piece
        else:
            self._parts.append(bytearray(piece))

    def held(self) -> bytes:
        """A copy of the bytes of the unfinished frame."""
        return b"".join(self._parts)

    def take(self) -> bytes:
        """End the frame at the cursor and return its bytes; the next frame starts there."""
        whole = not self._start and self._at == len(self._data)
        piece = self._data if whole else self._data[self._start : self._at]
        self._start = self._at
        if not self._held:
            return piece
        frame = b"".join((*self._parts, piece))
        self._parts = []
        self._held = 0
        self._tail = b""
        return frame

    def text(self, begin: int, end: int) -> bytes:
        """The bytes between two offsets; `begin` is at most 64 bytes before the chunk."""
        shift = self._start - self._held
        if begin >= self._held:
            return self._data[begin + shift : end + shift]
        recent = self._tail + self._data[self._start : max(end + shift, self._start)]
        base = self._held - len(self._tail)
        return recent[begin - base : end - base]

    def frame(self) -> bytes:
        """A copy of the frame up to the cursor; the frame goes on."""
        return b"".join((*self._parts, self._data[self._start : self._at]))

    def peek(self) -> Generator[None, None, int]:
        """The byte at the cursor, which stays."""
        while self._at >= len(self._data):
            yield
        return self._data[self._at]

    def newline(self, limit: int) -> Generator[None, None, int]:
        """The offset of the next LF, with the cursor behind it.

        Raises LineTooLong when there is none within `limit` bytes of the cursor.
        """
        last = self.offset + limit
        while True:
            shift = self._start - self._held
            found = self._data.find(_LF, self._at, max(last + shift + 1, 0))
            if found >= 0:
                self._at = found + 1
                return found - shift
            self._at = min(len(self._data), max(last + shift + 1, 0))
            if self.offset > last:
                raise LineTooLong
            yield

    def skip(self, count: int) -> Generator[None, None, None]:
        """Move the cursor over `count` bytes."""
        target = self.offset + count
        while self._held + len(self._data) - self._start < target:
            self._at = len(self._data)
            yield
        self._at = target - self._held + self._start
