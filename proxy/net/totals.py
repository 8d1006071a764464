"""What the kernel counts of a TCP connection: how much its process has read and written.

Exact at any moment, whatever the process was doing when it died: what was received less what
still waits to be read, and what was acknowledged with what still waits to be. SYN and FIN are
a byte each in the kernel's numbers, and are taken out here.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import termios
from typing import NamedTuple

_INFO_SIZE = 136
_COUNTERS = struct.Struct("=QQ")
_COUNTERS_AT = 120
"""`tcpi_bytes_acked`, `tcpi_bytes_received` in `struct tcp_info` (linux/tcp.h)."""

_TRIES = 1000
"""A moment each: a peer that sends without a pause does not fill them all."""

_CLOSE, _CLOSE_WAIT, _TIME_WAIT = 7, 8, 6
_FIN_RECEIVED = frozenset({_CLOSE_WAIT, _TIME_WAIT, 9, 11})
"""CLOSE_WAIT, TIME_WAIT, LAST_ACK, CLOSING."""
_FIN_SENT = frozenset({4, 5, _TIME_WAIT, 9, 11})
"""FIN_WAIT1, FIN_WAIT2, TIME_WAIT, LAST_ACK, CLOSING."""


class Totals(NamedTuple):
    """Bytes since the connection was made; `is_over`: reset, or ended on both sides."""

    read: int
    written: int
    is_over: bool


def totals(sock: socket.socket, *, dialled: bool) -> Totals:
    """The counts of a connected socket; `dialled`: it was connected here and not accepted.

    Asked again until nothing came or was acknowledged between the questions. Raises OSError.
    """
    before = _info(sock)
    for _ in range(_TRIES):
        unread, unsent = _waiting(sock, termios.FIONREAD), _waiting(sock, termios.TIOCOUTQ)
        now = _info(sock)
        if now == before:
            break
        before = now
    else:
        raise OSError(errno.EAGAIN, "the counts of a connection do not stand still")
    state, acked, received = now
    read = received - unread - (state in _FIN_RECEIVED)
    written = acked + unsent - (state in _FIN_SENT) - dialled
    return Totals(read, written, state == _CLOSE)


def _info(sock: socket.socket) -> tuple[int, int, int]:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
    acked, received = _COUNTERS.unpack_from(info, _COUNTERS_AT)
    return info[0], acked, received


def _waiting(sock: socket.socket, queue: int) -> int:
    answer = fcntl.ioctl(sock, queue, b"\0\0\0\0")
    return int.from_bytes(answer, "little", signed=True)
