"""Sockets that were connected by a process on a node of a lab, for the test's own hands.

A fork connects in the node's namespace and its services' cgroup, and gives the descriptors.
"""

from __future__ import annotations

import os
import resource
import socket
import struct

from tests.e2e.clients.raw import Connection
from tests.samples.turbo_client import TurboClient
from tests.support.lab import LabNode

_AT_ONCE = 200
_SPARE = 512


def dial(node: LabNode, host: str, port: int, count: int = 1) -> list[socket.socket]:
    """So many connections of services on `node`."""
    _raise_limit(count)
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def connect() -> None:
            _raise_limit(count)
            made: list[socket.socket] = []
            for _ in range(count):
                made.append(socket.create_connection((host, port), timeout=10))
                if len(made) == _AT_ONCE:
                    socket.send_fds(theirs, [b"."], [sock.fileno() for sock in made])
                    while made:
                        made.pop().close()
            socket.send_fds(theirs, [b"."], [sock.fileno() for sock in made])

        node.do(connect, timeout_s=60)
        found: list[socket.socket] = []
        for _ in range(count // _AT_ONCE + 1):
            _, fds, _, _ = socket.recv_fds(ours, 1, _AT_ONCE, socket.MSG_CMSG_CLOEXEC)
            found += [socket.socket(fileno=fd) for fd in fds]
    for sock in found:
        sock.settimeout(20)
    assert len(found) == count
    return found


def _raise_limit(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + 2 * count + _SPARE
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(hard, needed)))


class FarResp(Connection):
    """MOA over RESP on a socket of a node."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")

    @classmethod
    def on(cls, node: LabNode, host: str, port: int) -> FarResp:
        return cls(dial(node, host, port)[0])


class FarTurbo(TurboClient):
    """Binary packets on a socket of a node."""

    def __init__(self, sock: socket.socket, form: str = "19") -> None:
        self.sock = sock
        self._file = sock.makefile("rb")
        self._form = form
        self._codec = "json"
        self._last = 0

    @classmethod
    def on(cls, node: LabNode, host: str, port: int, form: str = "19") -> FarTurbo:
        return cls(dial(node, host, port)[0], form)


def reset(sock: socket.socket) -> None:
    """End it with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
