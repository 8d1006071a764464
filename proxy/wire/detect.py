"""Which protocol a connection speaks, from its first bytes and never from its port."""

from __future__ import annotations

from enum import Enum

MAX_NEEDED = 9
"""No more bytes than this are ever needed: the longest inline command and a space."""

_INLINE = (b"GET", b"PING", b"INFO", b"HELLO", b"CLIENT", b"SELECT", b"AUTH", b"COMMAND", b"QUIT")
_INLINE_END = b" \t\r\n"


class Protocol(Enum):
    """What the first bytes say."""

    RESP = "resp"
    OTHER = "other"
    """None of ours: passed on byte for byte."""
    UNDECIDED = "undecided"
    """More bytes are needed."""


def detect(first: bytes) -> Protocol:
    """Judge the first bytes of a connection.

    RESP begins with `*` and a digit or a minus sign, or with an inline command that a MOA
    client sends. A line that only begins like one (`GET / HTTP/1.1`) is found out when the
    command is read.
    """
    if not first:
        return Protocol.UNDECIDED
    if first[:1] == b"*":
        if len(first) == 1:
            return Protocol.UNDECIDED
        return Protocol.RESP if first[1:2].isdigit() or first[1:2] == b"-" else Protocol.OTHER
    head = first[:MAX_NEEDED].upper()
    for command in _INLINE:
        if len(head) <= len(command):
            if command.startswith(head):
                return Protocol.UNDECIDED
        elif head.startswith(command) and head[len(command)] in _INLINE_END:
            return Protocol.RESP
    return Protocol.OTHER
