"""Binary data: bytes in chunks of at most 65535."""

from __future__ import annotations

from typing import Final

from proxy.wire.hessian import tags
from proxy.wire.hessian.errors import HessianError

CHUNK_BYTES: Final = 0x8000


def read_binary(data: bytes, at: int) -> tuple[bytes, int]:
    """The bytes whose tag is at `at`, and the offset behind them.

    Raises HessianError for what is no binary data, IndexError where the body ends.
    """
    final, begin, end = _read_chunk(data, at)
    if final:
        return data[begin:end], end
    parts = [data[begin:end]]
    while not final:
        final, begin, end = _read_chunk(data, end)
        parts.append(data[begin:end])
    return b"".join(parts), end


def skip_binary(data: bytes, at: int) -> int:
    """The offset behind the bytes."""
    final, _, end = _read_chunk(data, at)
    while not final:
        final, _, end = _read_chunk(data, end)
    return end


def _read_chunk(data: bytes, at: int) -> tuple[bool, int, int]:
    tag = data[at]
    if tag in tags.SHORT_BINARY:
        begin, size = at + 1, tag - tags.SHORT_BINARY.start
    elif tag in (tags.BINARY, tags.BINARY_CHUNK):
        begin, size = at + 3, data[at + 1] << 8 | data[at + 2]
    elif tag in tags.BINARY_10:
        begin, size = at + 2, (tag & 3) << 8 | data[at + 1]
    else:
        raise HessianError(f"expected binary data at {at}, got tag 0x{tag:02x}")
    if len(data) < begin + size:
        raise IndexError
    return tag != tags.BINARY_CHUNK, begin, begin + size


def write_binary(value: bytes) -> bytes:
    """Bytes in the shortest form, chunks of 32 KiB before the last."""
    out = bytearray()
    at = 0
    while len(value) - at > CHUNK_BYTES:
        out += bytes((tags.BINARY_CHUNK, CHUNK_BYTES >> 8, CHUNK_BYTES & 0xFF))
        out += value[at : at + CHUNK_BYTES]
        at += CHUNK_BYTES
    count = len(value) - at
    if count < len(tags.SHORT_BINARY):
        out.append(tags.SHORT_BINARY.start + count)
    elif count < 1024:
        out += bytes((tags.BINARY_10.start + (count >> 8), count & 0xFF))
    else:
        out += bytes((tags.BINARY, count >> 8, count & 0xFF))
    out += value[at:]
    return bytes(out)
