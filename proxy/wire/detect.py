"""Which protocol a connection speaks, from its first bytes and never from its port.

Every first byte may be that of a binary packet, whose number is arbitrary; its command, the
fifth byte, tells it from text. Where one reading is complete and another is still possible,
the answer waits for more bytes, so it does not depend on how the bytes were cut.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

MAX_NEEDED = 19
"""No more bytes than this are ever needed: the longer header of a binary packet."""


class Protocol(Enum):
    """What the first bytes say."""

    RESP = "resp"
    TURBO = "turbo"
    """Binary packets with headers of 19 bytes."""
    TURBO9 = "turbo9"
    """Binary packets of 2015, with headers of 9 bytes."""
    MESH = "mesh"
    OTHER = "other"
    """None of ours: passed on byte for byte."""
    UNDECIDED = "undecided"
    """More bytes are needed."""


RESP_ALONE = frozenset({Protocol.RESP})
EVERY = frozenset({Protocol.RESP, Protocol.TURBO, Protocol.TURBO9, Protocol.MESH})


class _Fit(Enum):
    NO = 0
    POSSIBLE = 1
    YES = 2


def detect(first: bytes, spoken: frozenset[Protocol] = RESP_ALONE) -> Protocol:
    """Judge the first bytes of a connection that a client opened.

    `spoken` are the protocols that the caller serves: any other is OTHER, and no byte is
    waited for on its account. The answer for a prefix stays the answer for every longer one,
    once it is not UNDECIDED; with `MAX_NEEDED` bytes it never is.
    """
    fits = [
        (protocol, fit)
        for protocol, judge in _JUDGES
        if protocol in spoken and (fit := judge(first)) is not _Fit.NO
    ]
    if not fits:
        return Protocol.OTHER
    protocol, fit = fits[0]
    return protocol if fit is _Fit.YES else Protocol.UNDECIDED


_MAGIC = b"MOA\x01"


def _judge_mesh(first: bytes) -> _Fit:
    """The magic. A packet's number is the same in one of 2**32 cases."""
    if first.startswith(_MAGIC):
        return _Fit.YES
    return _Fit.POSSIBLE if _MAGIC.startswith(first) else _Fit.NO


_CLIENT_CMDS = b"\x01\x03\x05"
"""REQ, PING, INFO: what a client may begin with."""
_MAX_EXTENSION = 3
_OPAQUE = 4


def _judge_turbo(first: bytes) -> _Fit:
    """19 bytes: the command of a client, a version below 256, no unknown extension bit.

    The length is below 16 MiB, whatever the limit is: a packet that is over the limit is
    still a packet, and refused by name.
    """
    if len(first) <= _OPAQUE:
        return _Fit.POSSIBLE
    if first[4] not in _CLIENT_CMDS or any(first[5:6]) or any(first[7:14]) or any(first[15:16]):
        return _Fit.NO
    if first[14:15] > bytes((_MAX_EXTENSION,)):
        return _Fit.NO
    return _Fit.YES if len(first) >= MAX_NEEDED else _Fit.POSSIBLE


_JSON_START = b"{ \t\r\n"


def _judge_turbo9(first: bytes) -> _Fit:
    """9 bytes and the start of a JSON object, or of the CRLF behind no body.

    The first byte of the body tells it from the longer form, which has a zero there.
    """
    if len(first) <= _OPAQUE:
        return _Fit.POSSIBLE
    if first[4] not in _CLIENT_CMDS or any(first[5:6]):
        return _Fit.NO
    if len(first) <= 9:
        return _Fit.POSSIBLE
    if any(first[5:9]):
        return _Fit.YES if first[9] in _JSON_START else _Fit.NO
    if len(first) == 10:
        return _Fit.POSSIBLE if first[9:] == b"\r" else _Fit.NO
    return _Fit.YES if first[9:11] == b"\r\n" else _Fit.NO


_INLINE = (b"GET", b"PING", b"INFO", b"HELLO", b"CLIENT", b"SELECT", b"AUTH", b"COMMAND", b"QUIT")
_INLINE_END = b" \t\r\n"
_INLINE_NEEDED = 9
"""The longest inline command and a space, and one more."""


def _judge_resp(first: bytes) -> _Fit:
    """`*` and a digit or a minus sign, or an inline command that a MOA client sends.

    A line that only begins like one (`GET / HTTP/1.1`) is found out when the command is read.
    """
    if not first or first == b"*":
        return _Fit.POSSIBLE
    if first[:1] == b"*":
        return _Fit.YES if first[1:2].isdigit() or first[1:2] == b"-" else _Fit.NO
    head = first[:_INLINE_NEEDED].upper()
    for command in _INLINE:
        if len(head) <= len(command):
            if command.startswith(head):
                return _Fit.POSSIBLE
        elif head.startswith(command) and head[len(command)] in _INLINE_END:
            return _Fit.YES
    return _Fit.NO


_JUDGES: tuple[tuple[Protocol, Callable[[bytes], _Fit]], ...] = (
    (Protocol.MESH, _judge_mesh),
    (Protocol.TURBO, _judge_turbo),
    (Protocol.TURBO9, _judge_turbo9),
    (Protocol.RESP, _judge_resp),
)
"""In the order of their evidence: a later reading waits until every earlier one is refuted."""
