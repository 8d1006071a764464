"""One address that is pinged: its connection, kept from ping to ping, and the ping under way.

A connection that its peer has closed since the last ping proves nothing, so the ping goes on with
a new one, within the same time limit. Only then does a failure count.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Protocol

from proxy.core.model import Address
from proxy.net.ping_wire import PingWire
from proxy.net.sockets import open_client, set_reset_on_close

_CHUNK = 4096

LOCAL_FAULTS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EAGAIN}
)
"""What says something of this machine and nothing of the peer."""

Outcome = str
"""Why a ping failed; "" when it was answered."""


class Ended(Protocol):
    """Told when a ping has ended, once; `local` when this machine could not even ask."""

    def __call__(self, target: PingTarget, why: Outcome, *, local: bool = False) -> None: ...


class PingTarget:
    """Owns its socket. `started_s` is when the ping under way began, None while there is none;
    `is_kept` is its owner's note that the connection counts among the kept ones."""

    __slots__ = (
        "_buffer",
        "_fresh",
        "_loop",
        "_on_end",
        "_sock",
        "address",
        "is_kept",
        "started_s",
        "wire",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, address: Address, wire: PingWire, on_end: Ended
    ) -> None:
        self.address = address
        self.wire = wire
        self.started_s: float | None = None
        self.is_kept = False
        self._loop = loop
        self._on_end = on_end
        self._sock: socket.socket | None = None
        self._fresh = False
        self._buffer = b""

    @property
    def is_connected(self) -> bool:
        return self._sock is not None

    def ping(self, now_s: float) -> None:
        """Begin a ping, unless one is under way."""
        if self.started_s is not None:
            return
        self.started_s = now_s
        if self._sock is None or not self.wire.request:
            self._connect()
        else:
            self._fresh = False
            self._ask()

    def expire(self) -> None:
        """End the ping under way: no answer in time."""
        self._end("no answer in time")

    def close(self) -> None:
        """Drop the connection, and the ping under way without a word."""
        self.started_s = None
        self._drop()

    def _connect(self) -> None:
        self._drop()
        self._fresh = True
        try:
            self._sock = sock = open_client(self.address)
        except OSError as error:
            self._fail(error)
            return
        try:
            sock.connect((self.address.host, self.address.port))
        except BlockingIOError:
            self._loop.add_writer(sock.fileno(), self._on_writable)
        except OSError as error:
            self._fail(error)
        else:
            self._connected()

    def _on_writable(self) -> None:
        assert self._sock is not None
        self._loop.remove_writer(self._sock.fileno())
        number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._fail(OSError(number, os.strerror(number)))
        else:
            self._connected()

    def _connected(self) -> None:
        if not self.wire.request:
            self._end("")
            self._drop()
            return
        assert self._sock is not None
        self._loop.add_reader(self._sock.fileno(), self._on_readable)
        self._ask()

    def _ask(self) -> None:
        assert self._sock is not None
        self._buffer = b""
        try:
            # A few bytes into an empty buffer: all or nothing.
            self._sock.send(self.wire.request)
        except OSError as error:
            self._fail(error)

    def _on_readable(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if not data:
            self._fail(ConnectionResetError(errno.ECONNRESET, "closed by the peer"))
            return
        if self.started_s is None:
            return
        self._buffer += data
        verdict = self.wire.judge(self._buffer)
        if verdict is not None:
            self._end("" if verdict else f"answered PING with {self._buffer[:40]!r}")

    def _fail(self, error: OSError) -> None:
        if self.started_s is not None and not self._fresh:
            self._connect()
            return
        self._drop()
        if self.started_s is not None:
            self._end(error.strerror or str(error), local=error.errno in LOCAL_FAULTS)

    def _end(self, why: Outcome, *, local: bool = False) -> None:
        self.started_s = None
        if why:
            self._drop()
        self._on_end(self, why, local=local)

    def _drop(self) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._loop.remove_reader(sock.fileno())
        self._loop.remove_writer(sock.fileno())
        # No TIME_WAIT: a round of 20 000 connections that end would use up the local ports.
        set_reset_on_close(sock)
        sock.close()
