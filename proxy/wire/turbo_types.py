"""The values of the binary packet: its two forms, commands, extension bits, limits."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple

EXT_SNAPPY = 0x01
EXT_HESSIAN = 0x02
"""The body is Hessian 2 and not JSON (ours, docs/PROTOCOL.md §2)."""
EXT_KNOWN = EXT_SNAPPY | EXT_HESSIAN

MAX_OPAQUE = 2**32 - 1


class Cmd(IntEnum):
    """What a packet is."""

    REQ = 1
    RESP = 2
    PING = 3
    PONG = 4
    INFO = 5


class Form(Enum):
    """The two layouts that were in use; all numbers are big-endian."""

    PACKET19 = "19"
    """`opaque u32 · cmd u8 · version i16 · extension i64 · bodyLen i32`, body."""
    PACKET9 = "9"
    """The form of 2015: `opaque i32 · cmd u8 · len u32`, body, CRLF."""


HEAD19 = struct.Struct(">IBhqi")
HEAD9 = struct.Struct(">IBI")
END9 = b"\r\n"


@dataclass(frozen=True, slots=True)
class PacketLimits:
    """Sizes that a peer may not pass, in bytes.

    2 MiB is the public limit of a body; servers of before 2017 take 32 KiB.
    """

    max_body: int = 2 * 1024 * 1024


DEFAULT_PACKET_LIMITS = PacketLimits()


class Packet(NamedTuple):
    """One packet; `raw` is its exact bytes on the wire, to be forwarded as they are.

    `opaque` is the sender's number of the exchange, unsigned in both forms; `version` and
    `extension` are 0 in the form of 9 bytes. A tuple, because a connection makes one for each
    message: a frozen dataclass costs three times as much.
    """

    form: Form
    opaque: int
    cmd: Cmd
    version: int
    extension: int
    raw: bytes

    @property
    def body(self) -> bytes:
        """A copy of the body as it is on the wire, compressed or not."""
        return bytes(self.body_view)

    @property
    def body_view(self) -> memoryview:
        """The body without a copy; keeps `raw` alive."""
        view = memoryview(self.raw)
        return view[HEAD19.size :] if self.form is Form.PACKET19 else view[HEAD9.size : -2]

    def with_opaque(self, opaque: int) -> bytes:
        """The packet's bytes under another number: one copy, and nothing else changes."""
        return b"".join((opaque.to_bytes(4, "big"), memoryview(self.raw)[4:]))
