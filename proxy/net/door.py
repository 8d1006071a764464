"""The door to other nodes: takes their callers while their own agent does not serve.

Who may come in is decided by the address that a connection comes from: it must be that of an
agent of the same application. What comes in is served like this node's own callers, in the
eyes of the zone that they are in.

The supervisors of the other nodes hold a connection here and ask PING on it, which a session
answers by itself. To hang up on them is how we say that we take no more: they hear it at once.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from proxy.core.model import Address, PeerAgent
from proxy.net.listener import Acceptor
from proxy.net.served import Served
from proxy.net.sockets import address_of, open_listener, set_reset_on_close
from proxy.obs.metrics import Metrics

_NEARLY_FULL = 0.9
"""Of the bound: from here on supervisors are told to send no more."""

_FIRST_REQUEST_S = 1.0
"""A caller that has just come may not have said what it wants."""

log = structlog.get_logger("door")


@dataclass(frozen=True, slots=True)
class DoorSettings:
    """Where to listen, nowhere by default; how many connections of other nodes at once."""

    listen: tuple[Address, ...] = ()
    max_connections: int = 0


class Door:
    """Listens between `open` and `close`.

    `serve` takes a connection and returns the number of its session, or None when it was not
    served; `on_full` tells that descriptors have run out.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: DoorSettings,
        metrics: Metrics,
        sessions: Mapping[int, Served],
        caller_of: Callable[[str], PeerAgent | None],
    ) -> None:
        self.serve: Callable[[socket.socket, PeerAgent], int | None] = lambda _sock, _caller: None
        self.on_full: Callable[[], None] = lambda: None
        self._loop = loop
        self._settings = settings
        self._metrics = metrics
        self._sessions = sessions
        self._caller_of = caller_of
        self.listeners: dict[str, socket.socket] = {}
        """By address; the door's own."""
        self._numbers: set[int] = set()
        self._acceptors: list[Acceptor] = []

    def open(self, taken: Mapping[str, socket.socket] | None = None) -> None:
        """Listen, on sockets of these addresses where another agent had them.

        Raises `OSError` that names the address which is taken or not this node's.
        """
        for address in self._settings.listen:
            sock = (taken or {}).get(str(address)) or open_listener(address)
            acceptor = Acceptor(self._loop, sock, self._on_accept, self._full)
            acceptor.start()
            self._acceptors.append(acceptor)
            self.listeners[str(address)] = sock

    def know(self, number: int) -> None:
        """A session of another agent's door is one of ours from now on."""
        self._numbers.add(number)

    def rest(self) -> None:
        """Accept nobody for now; the sockets stay open."""
        for acceptor in self._acceptors:
            acceptor.stop()

    def resume(self) -> None:
        for acceptor in self._acceptors:
            acceptor.start()

    @property
    def is_open(self) -> bool:
        return bool(self._acceptors)

    def close(self) -> None:
        """Take nobody any more; who is served stays."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()
        self.listeners.clear()

    def dismiss(self) -> None:
        """Hang up on who asks for nothing: the supervisors, who send us callers."""
        latest_s = self._loop.time() - _FIRST_REQUEST_S
        for number in self._present():
            session = self._sessions[number]
            has_begun = session.requests > 0 or session.started_s < latest_s
            if not session.service and session.is_idle and has_begun:
                session.close()

    def _present(self) -> set[int]:
        self._numbers &= self._sessions.keys()
        return set(self._numbers)

    def _full(self) -> None:
        self.on_full()

    def _on_accept(self, sock: socket.socket) -> None:
        try:
            host = address_of(sock.getpeername()).host
        except OSError:
            sock.close()  # It has left already.
            return
        caller, number = self._caller_of(host), None
        if caller is not None and self._has_room():
            number = self.serve(sock, caller)
        if number is None:
            self._metrics.peer_refused += 1
            log.debug("refused", host=host, is_known=caller is not None)
            set_reset_on_close(sock)
            sock.close()
            return
        self._metrics.peer_accepted += 1
        self._numbers.add(number)

    def _has_room(self) -> bool:
        """Tells the supervisors before it is too late; who has left is forgotten here."""
        limit = self._settings.max_connections
        if len(self._numbers) < _NEARLY_FULL * limit:
            return True
        if len(self._present()) >= _NEARLY_FULL * limit:
            self.dismiss()
        return len(self._numbers) < limit
