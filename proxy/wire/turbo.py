"""The binary packet without I/O: a parser and encoders of both forms (docs/PROTOCOL.md §2).

parser = PacketParser(limits)
for packet in parser.feed(chunk):
    ...                        # packet.cmd, packet.opaque, packet.raw, read_body(packet, limit)
if parser.error:
    close: packets have no reply for a broken stream
"""

from __future__ import annotations

from proxy.wire.resp_types import ProtocolError
from proxy.wire.turbo_body import (
    BodyError,
    compress,
    decompress,
    parse_ping,
    ping_body,
    read_body,
)
from proxy.wire.turbo_parser import PacketParser
from proxy.wire.turbo_types import (
    DEFAULT_PACKET_LIMITS,
    END9,
    EXT_HESSIAN,
    EXT_KNOWN,
    EXT_SNAPPY,
    HEAD9,
    HEAD19,
    MAX_OPAQUE,
    Cmd,
    Form,
    Packet,
    PacketLimits,
)

__all__ = [
    "DEFAULT_PACKET_LIMITS",
    "EXT_HESSIAN",
    "EXT_KNOWN",
    "EXT_SNAPPY",
    "MAX_OPAQUE",
    "BodyError",
    "Cmd",
    "Form",
    "Packet",
    "PacketLimits",
    "PacketParser",
    "ProtocolError",
    "compress",
    "decompress",
    "encode",
    "encode9",
    "encode_answer",
    "encode_ping",
    "encode_pong",
    "parse_ping",
    "ping_body",
    "read_body",
]


def encode(
    cmd: Cmd, opaque: int, body: bytes = b"", *, version: int = 0, extension: int = 0
) -> bytes:
    """A packet of 19 bytes and `body`, which is compressed already if `extension` says so."""
    return b"".join((HEAD19.pack(opaque, cmd, version, extension, len(body)), body))


def encode9(cmd: Cmd, opaque: int, body: bytes = b"") -> bytes:
    """A packet in the form of 2015; `opaque` is unsigned here, too."""
    return b"".join((HEAD9.pack(opaque, cmd, len(body)), body, END9))


def encode_answer(to: Packet, cmd: Cmd, body: bytes, extension: int = 0) -> bytes:
    """An answer in the form, with the number and of the version of the packet it answers."""
    if to.form is Form.PACKET9:
        return encode9(cmd, to.opaque, body)
    return encode(cmd, to.opaque, body, version=to.version, extension=extension)


def encode_ping(opaque: int, timestamp_ms: int) -> bytes:
    """A PING; `timestamp_ms` is unix time."""
    return encode(Cmd.PING, opaque, ping_body(timestamp_ms))


def encode_pong(ping: Packet) -> bytes:
    """The PONG that a PING asks for: its body comes back as it was sent."""
    return encode_answer(ping, Cmd.PONG, ping.body, ping.extension)
