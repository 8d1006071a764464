"""Bodies of binary packets: snappy within bounds, and the time in a PING.

Snappy is the block format without framing, as the public Go code uses it.
"""

from __future__ import annotations

import json

import cramjam

from proxy.wire.turbo_types import EXT_KNOWN, EXT_SNAPPY, Packet

_COPY_BYTES = 3
_COPY_YIELDS = 64
"""Snappy's shortest element for long copies takes 3 bytes and yields at most 64: a body that
claims a larger ratio is broken, and nothing is allocated for it."""

_MAX_PING = 256


class BodyError(Exception):
    """One packet's body cannot be used; the connection goes on. The text fits an `em`."""


def read_body(packet: Packet, max_body: int) -> bytes:
    """The packet's body, decompressed when it says so.

    Raises BodyError when the body has extension bits that we do not know, is no snappy, or
    would have more than `max_body` bytes; the size is judged before memory is allocated.
    """
    if unknown := packet.extension & ~EXT_KNOWN:
        raise BodyError(
            f"packet {packet.opaque} has unknown extension bits {unknown & (2**64 - 1):#x}, "
            f"expected only {EXT_KNOWN:#x}"
        )
    return decompress(packet.body, max_body) if packet.extension & EXT_SNAPPY else packet.body


def compress(body: bytes) -> bytes:
    """The body as one snappy block."""
    return bytes(cramjam.snappy.compress_raw(body))


def decompress(block: bytes, max_body: int) -> bytes:
    """What a snappy block holds; raises BodyError as `read_body` does."""
    size = _size(block)
    if size > max_body:
        raise BodyError(f"snappy body holds {size} bytes, over the limit of {max_body} bytes")
    if size * _COPY_BYTES > len(block) * _COPY_YIELDS:
        raise BodyError(f"broken snappy body: {len(block)} bytes cannot hold {size} bytes")
    try:
        return bytes(cramjam.snappy.decompress_raw(block))
    except cramjam.DecompressionError as error:
        raise BodyError(f"broken snappy body: {error}") from None


def _size(block: bytes) -> int:
    """The length that a block begins with: 7 bits a byte, the lowest first, at most 32 bits."""
    size = 0
    for index, byte in enumerate(block[:5]):
        size |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if size > 2**32 - 1:
                break
            return size
    raise BodyError(f"broken snappy body: no length in {block[:5]!r}")


def ping_body(timestamp_ms: int) -> bytes:
    """The body of PING, and of the PONG that returns it."""
    return b'{"timestamp":%d}' % timestamp_ms


def parse_ping(body: bytes) -> int | None:
    """The time in a PING or PONG, None where there is none.

    Milliseconds by the protocol; public Go clients send seconds. Only its sender can use it:
    return a PING's body unchanged in the PONG.
    """
    if len(body) > _MAX_PING:
        return None
    try:
        decoded = json.loads(body.decode())
    except (ValueError, RecursionError):
        return None
    timestamp = decoded.get("timestamp") if isinstance(decoded, dict) else None
    return timestamp if isinstance(timestamp, int) and not isinstance(timestamp, bool) else None
