"""A RESP reader written for clarity alone: the judge of the parsers in `proxy.wire`.

It sees the whole stream at once, knows no limits, and raises ValueError on what is not RESP.
"""

from __future__ import annotations


def read_commands(stream: bytes) -> list[tuple[tuple[bytes, ...], bytes]]:
    """The multi-bulk commands of a complete stream, each with its bytes."""
    commands = []
    at = 0
    while at < len(stream):
        start = at
        count, at = _number(stream, at, b"*")
        args = []
        for _ in range(count):
            length, at = _number(stream, at, b"$")
            args.append(stream[at : at + length])
            at = _expect_crlf(stream, at + length)
        if args:
            commands.append((tuple(args), stream[start:at]))
    return commands


def read_replies(stream: bytes) -> list[bytes]:
    """The bytes of each top-level reply of a complete stream."""
    replies = []
    at = 0
    while at < len(stream):
        end = _skip_reply(stream, at)
        replies.append(stream[at:end])
        at = end
    return replies


def _skip_reply(stream: bytes, at: int) -> int:
    kind = stream[at : at + 1]
    if kind in b"+-:,#(_":
        return stream.index(b"\r\n", at) + 2
    count, at = _number(stream, at, kind)
    if kind in b"$!=":
        return at if count < 0 else _expect_crlf(stream, at + count)
    if kind in b"%|":
        count *= 2
    if kind == b"|":
        count += 1
    for _ in range(count):
        at = _skip_reply(stream, at)
    return at


def _number(stream: bytes, at: int, kind: bytes) -> tuple[int, int]:
    if stream[at : at + 1] != kind:
        raise ValueError(f"expected {kind!r} at {at}")
    end = stream.index(b"\r\n", at)
    return int(stream[at + 1 : end]), end + 2


def _expect_crlf(stream: bytes, at: int) -> int:
    if stream[at : at + 2] != b"\r\n":
        raise ValueError(f"expected CRLF at {at}")
    return at + 2
