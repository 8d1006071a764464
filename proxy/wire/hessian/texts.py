"""Strings: counted in UTF-16 units, each unit written as UTF-8, in chunks.

Java writes a character beyond U+FFFF as its two surrogates of three bytes each (CESU-8). The
reader joins them, also when a chunk ends between them, and takes the four bytes of real UTF-8
for two units. Half a pair stays what it is: Java's strings may hold one.
"""

from __future__ import annotations

from typing import Final

from proxy.wire.hessian import tags
from proxy.wire.hessian.errors import HessianError

CHUNK_UNITS: Final = 0x8000
"""What Java writes into one chunk; the form allows 65535."""

_HIGH_SURROGATES = chr(0xD800), chr(0xDBFF)
_MAX_CONTINUATIONS = 3
_CONTINUATION = bytes(range(0x80, 0xC0))
_FOUR_BYTES = range(0xF0, 0xF5)
_NOT_FOUR_BYTES = bytes(byte for byte in range(256) if byte not in _FOUR_BYTES)


def read_text(data: bytes, at: int) -> tuple[str, int]:
    """The string whose tag is at `at`, and the offset behind it.

    Raises HessianError for what is no string or no UTF-8, IndexError where the body ends.
    """
    tag = data[at]
    if tag < 0x20 and len(raw := data[at + 1 : at + 1 + tag]) == tag and raw.isascii():
        return raw.decode("ascii"), at + 1 + tag
    final, begin, end = _read_chunk(data, at)
    if final:
        return _decode(data[begin:end], at), end
    parts = [data[begin:end]]
    while not final:
        final, begin, end = _read_chunk(data, end)
        parts.append(data[begin:end])
    return _decode(b"".join(parts), at), end


def skip_text(data: bytes, at: int) -> int:
    """The offset behind the string; its characters are counted and not checked."""
    final, _, end = _read_chunk(data, at)
    while not final:
        final, _, end = _read_chunk(data, end)
    return end


def _read_chunk(data: bytes, at: int) -> tuple[bool, int, int]:
    """Whether the chunk at `at` is the last, and where its characters begin and end."""
    tag = data[at]
    if tag < 0x20:
        begin, units = at + 1, tag
    elif tag in (tags.TEXT, tags.TEXT_CHUNK):
        begin, units = at + 3, data[at + 1] << 8 | data[at + 2]
    elif tag in tags.TEXT_10:
        begin, units = at + 2, (tag & 3) << 8 | data[at + 1]
    else:
        raise HessianError(f"expected a string at {at}, got tag 0x{tag:02x}")
    end = begin + units
    if len(data) < end:
        raise IndexError
    if not data[begin:end].isascii():
        end = _end_of_units(data, begin, units)
    return tag != tags.TEXT_CHUNK, begin, end


def _end_of_units(data: bytes, begin: int, units: int) -> int:
    """Where `units` UTF-16 units end.

    As many bytes as units are missing always belong to the string, and a third of them or
    more begin a unit: a few rounds of counting in C, in all as many bytes as the string has.
    """
    at, barren = begin, 0
    while units > 0:
        block = data[at : at + units]
        if len(block) < units:
            raise IndexError
        at += units
        leads = block.translate(None, _CONTINUATION)
        barren = 0 if leads else barren + 1
        if barren > _MAX_CONTINUATIONS:
            raise HessianError(f"string at {begin} is not UTF-8: no character begins at {at - 1}")
        units -= len(leads) + len(leads.translate(None, _NOT_FOUR_BYTES))
    if units < 0:
        raise HessianError(f"string at {begin} ends within a character of 4 bytes")
    last = at - 1
    while last > begin and data[last] & 0xC0 == 0x80:
        last -= 1
    end = last + _bytes_of(data[last])
    if len(data) < end:
        raise IndexError
    return end


def _bytes_of(lead: int) -> int:
    if lead < 0x80:
        return 1
    if lead < 0xE0:
        return 2
    if lead < 0xF0:
        return 3
    return 4 if lead in _FOUR_BYTES else 1


def _decode(raw: bytes, at: int) -> str:
    if raw.isascii():
        return raw.decode("ascii")
    try:
        text = raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise HessianError(f"string at {at} is not UTF-8: {error.reason}") from None
    if b"\xed" not in raw:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def write_text(text: str) -> bytes:
    """A string in the shortest form, in chunks as Java cuts them: never within a pair."""
    units = text if text.isascii() else _units(text)
    out = bytearray()
    at = 0
    while len(units) - at > CHUNK_UNITS:
        end = at + CHUNK_UNITS
        if _HIGH_SURROGATES[0] <= units[end - 1] <= _HIGH_SURROGATES[1]:
            end -= 1
        out += _header(tags.TEXT_CHUNK, end - at)
        out += units[at:end].encode("utf-8", "surrogatepass")
        at = end
    count = len(units) - at
    if count < len(tags.SHORT_TEXT):
        out.append(count)
    elif count < 1024:
        out += bytes((tags.TEXT_10.start + (count >> 8), count & 0xFF))
    else:
        out += _header(tags.TEXT, count)
    out += units[at:].encode("utf-8", "surrogatepass")
    return bytes(out)


def _header(tag: int, count: int) -> bytes:
    return bytes((tag, count >> 8, count & 0xFF))


def _units(text: str) -> str:
    """The text with one character for each UTF-16 unit."""
    utf16 = text.encode("utf-16-le", "surrogatepass")
    if len(utf16) == 2 * len(text):
        return text
    wide = bytearray(2 * len(utf16))
    wide[0::4] = utf16[0::2]
    wide[1::4] = utf16[1::2]
    return wide.decode("utf-32-le", "surrogatepass")
