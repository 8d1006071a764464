"""The server's side of RESP2: bytes of a client in, commands out."""

from __future__ import annotations

from collections.abc import Generator

from proxy.wire.chunks import ChunkReader
from proxy.wire.framer import Framer
from proxy.wire.resp_inline import split_inline
from proxy.wire.resp_lines import check_bulk, read_bulk, read_length, read_line, whole_bulk
from proxy.wire.resp_types import (
    CRLF,
    DEFAULT_LIMITS,
    MAX_LENGTH_LINE,
    Command,
    Limits,
    ProtocolError,
    printable,
)

_STAR = ord("*")
_DOLLAR = ord("$")
_MAX_SKIPPED = 64 * 1024
_GET = b"*2\r\n$3\r\nGET\r\n"
"""How nearly every request of MOA begins: worth a short cut."""
_GET_SIZE = len(_GET)
_SHORT_COUNTS = {str(n).encode(): n for n in range(1, 17)}


class RequestParser:
    """Feeds on the bytes of one connection and returns the commands they complete.

    Takes multi-bulk and inline commands; ignores empty lines, `*0` and `*-1`, as redis-server
    does. Any chunking gives the same commands, in linear time. Holds at most
    `limits.max_frame` bytes and one chunk, and 64 KiB of ignored bytes.
    """

    __slots__ = ("_framer", "_limits", "_reader", "_skipped", "has_dropped")

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._reader = ChunkReader()
        self._framer = Framer(self._reader, self._whole, self._read)
        self._skipped = b""
        self.has_dropped = False
        """Whether ignored bytes were dropped, which are then in no command and not pending."""

    @property
    def mid_frame(self) -> bool:
        """Whether a command has begun and is not complete."""
        return self._reader.mid_frame

    @property
    def pending(self) -> bytes:
        """A copy of the bytes that no returned command holds, in their order.

        After an error it is everything from the start of the offending command to the end of
        the chunk that showed the error.
        """
        return self._skipped + self._reader.held()

    @property
    def error(self) -> ProtocolError | None:
        """What the next `feed` raises, known as soon as the bytes were read."""
        return self._framer.error

    def feed(self, data: bytes) -> list[Command]:
        """The commands that `data` completes, oldest first.

        Raises ProtocolError when the stream is broken. Commands completed before the break
        are returned first; the error is then in `error`, and each later call raises it and
        ignores its data.
        """
        return self._framer.feed(data)

    def _whole(self, data: bytes, at: int) -> Command | None:
        """The command that lies at `at` as a whole, in the usual form, within the limits."""
        if data.startswith(_GET, at):
            begin, end = whole_bulk(data, at + _GET_SIZE, self._limits)
            if end < 0 or end + 2 - at > self._limits.max_frame:
                return None
            return self._command((b"GET", data[begin:end]), data[at : end + 2])
        if data[at] != _STAR:
            return None
        eol = data.find(CRLF, at + 1, at + MAX_LENGTH_LINE)
        if eol < 0 or (count := _SHORT_COUNTS.get(data[at + 1 : eol])) is None:
            return None
        args: list[bytes] = []
        cursor = eol + 2
        for _ in range(count):
            begin, end = whole_bulk(data, cursor, self._limits)
            if end < 0:
                return None
            args.append(data[begin:end])
            cursor = end + 2
        if cursor - at > self._limits.max_frame:
            return None
        return self._command(tuple(args), data[at:cursor])

    def _read(self) -> Generator[None, None, Command | None]:
        """Read one frame; None when it is one that redis-server ignores."""
        reader, limits = self._reader, self._limits
        if (yield from reader.peek()) != _STAR:
            return (yield from self._read_inline())
        count = yield from read_length(reader, "multibulk")
        if count > limits.max_args:
            raise ProtocolError(
                f"invalid multibulk length: {count} is over the limit of {limits.max_args}"
            )
        spans: list[tuple[int, int]] = []
        for _ in range(count):
            if (first := (yield from reader.peek())) != _DOLLAR:
                raise ProtocolError(f"expected '$', got {printable(bytes((first,)))}")
            length = yield from read_length(reader, "bulk")
            check_bulk(reader, length, limits)
            spans.append((yield from read_bulk(reader, length)))
        raw = reader.take()
        return self._command(tuple(raw[begin:end] for begin, end in spans), raw)

    def _read_inline(self) -> Generator[None, None, Command | None]:
        too_long = f"too big inline request: over the limit of {self._limits.max_inline} bytes"
        yield from read_line(self._reader, self._limits.max_inline, too_long)
        args = split_inline(self._reader.frame().removesuffix(b"\n").removesuffix(b"\r"))
        if args is None:
            raise ProtocolError("unbalanced quotes in request")
        return self._command(args, self._reader.take())

    def _command(self, args: tuple[bytes, ...], raw: bytes) -> Command | None:
        skipped = self._skipped
        if args:
            self._skipped = b""
            return Command(args, raw, skipped)
        # What is dropped here meant nothing to anyone, and memory stays bounded.
        if len(skipped) + len(raw) > _MAX_SKIPPED:
            self.has_dropped = True
            self._skipped = raw
        else:
            self._skipped = skipped + raw
        return None
