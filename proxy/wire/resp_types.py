"""The values of RESP: commands, replies, limits, and the error of a peer that breaks the rules."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.wire.value import value

CRLF = b"\r\n"
_ZERO = ord("0")
MAX_LENGTH_LINE = 32
"""Bytes of a `*<n>` or `$<n>` line; a 64-bit number has 20."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes that a peer may not pass, in bytes unless said otherwise.

    `max_frame` bounds one whole command or reply with its framing, and so the memory that a
    parser holds; 2 MiB is the public limit of one element (docs/PROTOCOL.md, "MOA over
    RESP"), 64 KiB redis-server's own limit of an inline command.
    """

    max_element: int = 2 * 1024 * 1024
    max_frame: int = 4 * 1024 * 1024
    max_inline: int = 64 * 1024
    max_args: int = 1024
    max_depth: int = 16


DEFAULT_LIMITS = Limits()


class ProtocolError(Exception):
    """The peer sent bytes that are not RESP or that pass a limit.

    The text is fit for `-ERR Protocol error: <text>`: one line, printable ASCII, and it
    starts with redis-server's own words where redis-server has any.
    """


@value
class Command:
    """One command of a client.

    `raw` is its exact bytes on the wire, to be forwarded as they are. `skipped` is what came
    before it and means nothing (empty lines, `*0`): with it, the bytes of all commands and
    the parser's `pending` are the whole stream again, for a fallback to plain bytes.
    """

    args: tuple[bytes, ...]
    raw: bytes
    skipped: bytes = b""

    @property
    def name(self) -> bytes:
        """The command's name in upper case."""
        return self.args[0].upper()


@value
class Reply:
    """One complete top-level reply of a server, with everything nested in it.

    `raw` is its exact bytes on the wire. `begin` and `end` bound the content in `raw`;
    `begin` is -1 for a null and for aggregates.
    """

    raw: bytes
    begin: int
    end: int

    @property
    def kind(self) -> bytes:
        """The type byte: `+`, `-`, `:`, `$`, `*` or one of RESP3's."""
        return self.raw[:1]

    @property
    def payload(self) -> bytes | None:
        """A copy of the content of a string, error, bulk or number; None otherwise."""
        return None if self.begin < 0 else self.raw[self.begin : self.end]


def parse_length(text: bytes) -> int | None:
    """A RESP length as redis-server reads it: no sign but `-`, no leading zero, no space."""
    # bytes.isdigit() is ASCII only; int() alone would take "1_0", " 1" and "+1".
    if text.isdigit():
        return int(text) if text[0] != _ZERO or text == b"0" else None
    digits = text[1:]
    if text[:1] != b"-" or not digits.isdigit() or digits[0] == _ZERO:
        return None
    return int(text)


def printable(text: bytes) -> str:
    """At most 32 bytes of a peer's text as it may be quoted in an error."""
    shown = repr(text[:MAX_LENGTH_LINE])[1:]
    return shown + "..." if len(text) > MAX_LENGTH_LINE else shown
