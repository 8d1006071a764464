"""The pieces that both directions of RESP share: length lines and bulk bodies."""

from __future__ import annotations

from collections.abc import Generator

from proxy.wire.chunks import ChunkReader, LineTooLong
from proxy.wire.resp_types import (
    CRLF,
    MAX_LENGTH_LINE,
    Limits,
    ProtocolError,
    parse_length,
    printable,
)

_DOLLAR = ord("$")
_SHORT_LENGTHS = {str(n).encode(): n for n in range(512)}
_NONE = (-1, -1)


def whole_bulk(data: bytes, at: int, limits: Limits) -> tuple[int, int]:
    """Where the content of the bulk at `at` begins and ends in `data`.

    (-1, -1) when it is not complete, not usual, or over a limit: the generator decides then.
    """
    eol = data.find(CRLF, at + 1, at + MAX_LENGTH_LINE)
    if eol < 0 or data[at] != _DOLLAR:
        return _NONE
    text = data[at + 1 : eol]
    length = _SHORT_LENGTHS.get(text)
    if length is None:
        length = parse_length(text)
    if length is None or not 0 <= length <= limits.max_element:
        return _NONE
    end = eol + 2 + length
    return (eol + 2, end) if data[end : end + 2] == CRLF else _NONE


def read_line(reader: ChunkReader, limit: int, too_long: str) -> Generator[None, None, int]:
    """The offset of the LF of the line at the cursor, with the cursor behind it.

    Raises ProtocolError(too_long) after `limit` bytes.
    """
    try:
        return (yield from reader.newline(limit))
    except LineTooLong:
        raise ProtocolError(too_long) from None


def read_length(reader: ChunkReader, what: str) -> Generator[None, None, int]:
    """The number of the `*<n>` or `$<n>` line at the cursor; `what` names it in errors."""
    begin = reader.offset
    end = yield from read_line(
        reader, MAX_LENGTH_LINE, f"too big {what} count string: over {MAX_LENGTH_LINE} bytes"
    )
    line = reader.text(begin + 1, end + 1)
    length = parse_length(line[:-2]) if line.endswith(CRLF) else None
    if length is None:
        raise ProtocolError(f"invalid {what} length: {printable(line)} is not a number and CRLF")
    return length


def check_bulk(reader: ChunkReader, length: int, limits: Limits) -> None:
    """Refuse a body before a byte of it is kept; the cursor is at its start."""
    if not 0 <= length <= limits.max_element:
        raise ProtocolError(
            f"invalid bulk length: {length} is not within 0 and {limits.max_element} bytes"
        )
    if reader.offset + length + 2 > limits.max_frame:
        raise ProtocolError(
            f"invalid bulk length: with {length} bytes more the whole is over the limit of "
            f"{limits.max_frame} bytes"
        )


def read_bulk(reader: ChunkReader, length: int) -> Generator[None, None, tuple[int, int]]:
    """The offsets of a body of `length` bytes at the cursor, which moves behind its CRLF."""
    begin = reader.offset
    end = begin + length
    yield from reader.skip(length)
    yield from reader.skip(2)
    if (seen := reader.text(end, end + 2)) != CRLF:
        raise ProtocolError(f"expected CRLF after {length} bytes of bulk, got {printable(seen)}")
    return begin, end
