"""RESP2 without I/O: parsers for both directions and encoders (docs/PROTOCOL.md §1).

parser = RequestParser()
for command in parser.feed(chunk):
    ...                        # command.name, command.args, command.raw
if parser.error:
    send(error(f"ERR Protocol error: {parser.error}")) and close
"""

from __future__ import annotations

from proxy.wire.resp_reply import ReplyParser
from proxy.wire.resp_request import RequestParser
from proxy.wire.resp_types import DEFAULT_LIMITS, Command, Limits, ProtocolError, Reply

__all__ = [
    "DEFAULT_LIMITS",
    "NULL",
    "OK",
    "Command",
    "Limits",
    "ProtocolError",
    "Reply",
    "ReplyParser",
    "RequestParser",
    "array",
    "bulk",
    "encode_command",
    "encode_get",
    "error",
    "integer",
    "simple",
]

NULL = b"$-1\r\n"
OK = b"+OK\r\n"
_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")


def encode_command(*args: bytes) -> bytes:
    """A command as a client sends it, in the multi-bulk form."""
    return array(*(bulk(arg) for arg in args))


def encode_get(key: bytes) -> bytes:
    """`encode_command(b"GET", key)`, which every request of MOA is, in one step."""
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key)


def array(*encoded: bytes) -> bytes:
    """An array of items that are encoded already."""
    return b"*%d\r\n%b" % (len(encoded), b"".join(encoded))


def bulk(content: bytes) -> bytes:
    """A bulk string; any bytes."""
    return b"$%d\r\n%b\r\n" % (len(content), content)


def simple(text: str | bytes) -> bytes:
    """A simple string; CR and LF, which it cannot carry, become spaces."""
    return b"+%b\r\n" % _one_line(text)


def error(text: str | bytes) -> bytes:
    """An error; `text` starts with its code (`ERR`, `NOPROTO`); CR and LF become spaces."""
    return b"-%b\r\n" % _one_line(text)


def _one_line(text: str | bytes) -> bytes:
    line = text.encode("utf-8", "replace") if isinstance(text, str) else text
    return line.translate(_LINE_ENDS)


def integer(number: int) -> bytes:
    """An integer."""
    return b":%d\r\n" % number
