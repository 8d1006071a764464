"""The PING of each protocol and its answer, as bytes; no I/O.

A reply that refuses the PING counts as none: whoever cannot answer it cannot serve either. An
instance that speaks nothing we can ping is asked for a connection only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from struct import Struct

from proxy.wire.resp import encode_command
from proxy.wire.turbo import Cmd, encode, encode9, ping_body
from proxy.wire.turbo_types import END9, HEAD9, HEAD19

LONGEST = 512
"""Bytes of an answer that are looked at; more without an end is no answer."""

Verdict = bool | None
"""Whether the answer is good; None while it is not complete."""


@dataclass(frozen=True, slots=True)
class PingWire:
    """`request` is sent as it is, and `judge` reads all that came back so far."""

    name: str
    request: bytes
    judge: Callable[[bytes], Verdict]


def _judge_resp(data: bytes) -> Verdict:
    if data[:1] not in (b"+", b"$"):
        return False
    lines = 1 if data[:1] == b"+" else 2
    return True if data.count(b"\n") >= lines else _too_long(data)


def _judge_packet(data: bytes, head: Struct, end: int) -> Verdict:
    if len(data) < head.size:
        return None
    _opaque, cmd, *_, body = head.unpack_from(data)
    if cmd != Cmd.PONG:
        return False
    return True if len(data) >= head.size + body + end else _too_long(data)


def _too_long(data: bytes) -> Verdict:
    return False if len(data) >= LONGEST else None


_OPAQUE = 1
_BODY = ping_body(0)

CONNECT = PingWire("connect", b"", lambda _data: True)
_WIRES = (
    PingWire("resp", encode_command(b"PING"), _judge_resp),
    PingWire(
        "turbo", encode(Cmd.PING, _OPAQUE, _BODY), lambda data: _judge_packet(data, HEAD19, 0)
    ),
    PingWire(
        "turbo9",
        encode9(Cmd.PING, _OPAQUE, _BODY),
        lambda data: _judge_packet(data, HEAD9, len(END9)),
    ),
)


def wire_of(protocols: Iterable[str]) -> PingWire:
    """How to ping an instance that speaks these: the cheapest that it knows."""
    spoken = set(protocols)
    return next((wire for wire in _WIRES if wire.name in spoken), CONNECT)
