"""The lookup service's listener and its connections, from the first to the last."""

from __future__ import annotations

import asyncio
import socket

import structlog

from proxy.net.backend import Backend
from proxy.net.front import Front
from proxy.net.listener import Acceptor
from proxy.net.served import Direction, Peer, SessionSettings
from proxy.net.sockets import address_of

_REOPEN_SHARE = 0.9
_FIRST_REQUEST_S = 1.0
"""While it drains: a client that has just connected may send its first request so long."""

log = structlog.get_logger("lookup")


class LookupServer:
    """Serves at most `max_connections` clients; who comes then waits to be accepted."""

    def __init__(
        self,
        sock: socket.socket,
        max_connections: int,
        settings: SessionSettings,
        backend: Backend,
    ) -> None:
        """`sock` listens already, and is the server's from now on."""
        self._loop = backend.loop
        self._max_connections = max_connections
        self._is_draining = False
        self._is_full = False
        self._changed = asyncio.Event()
        self.front = Front(settings, backend, self._on_end)
        self._sock = sock
        self._acceptor = Acceptor(self._loop, sock, self._on_accept, self._on_no_room)
        self.address = address_of(sock.getsockname())

    def start(self) -> None:
        self._acceptor.start()

    def _on_accept(self, sock: socket.socket) -> None:
        try:
            client = address_of(sock.getpeername())
        except OSError:
            sock.close()  # It has left already.
            return
        self.front.serve(sock, Peer(Direction.OUTBOUND, client, None, False, None))
        if len(self.front.sessions) >= self._max_connections and not self._is_draining:
            self._is_full = True
            self._acceptor.stop()
            log.warning("full", connections=len(self.front.sessions))

    def _on_no_room(self) -> None:
        log.warning("out of descriptors or memory", connections=len(self.front.sessions))

    def _on_end(self) -> None:
        self._changed.set()
        few = len(self.front.sessions) < _REOPEN_SHARE * self._max_connections
        if self._is_full and few and not self._is_draining:
            self._is_full = False
            self._acceptor.start()

    async def drain(self, timeout_s: float) -> None:
        """Take in who is connected already, answer what was asked, then close everything."""
        self._is_draining = True
        self._acceptor.finish()
        sessions = self.front.sessions
        deadline_s = self._loop.time() + timeout_s
        while sessions and self._loop.time() < deadline_s:
            silent_since_s = self._loop.time() - _FIRST_REQUEST_S
            for session in list(sessions.values()):
                if session.is_idle and (session.requests or session.started_s < silent_since_s):
                    session.client.close()
            self._changed.clear()
            try:
                async with asyncio.timeout_at(min(deadline_s, self._loop.time() + 0.05)):
                    await self._changed.wait()
            except TimeoutError:
                continue
        self.close()

    def close(self) -> None:
        """Close everything now."""
        self._is_draining = True
        self._acceptor.stop()
        self._sock.close()
        for session in list(self.front.sessions.values()):
            session.close()
