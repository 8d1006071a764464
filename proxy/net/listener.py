"""Accepts connections from a listening socket that stays ours."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from proxy.net.sockets import prepare_connection

_BATCH = 64
"""Accepted in one turn of the loop, so that a flood does not starve what is established."""

_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE_S = 0.1


class Acceptor:
    """Calls `on_accept` with each connected, non-blocking socket, which it then owns.

    `on_full` tells that the process or the node is out of descriptors or memory: accepting
    pauses for a moment, since the kernel would report the same socket again at once.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_accept: Callable[[socket.socket], None],
        on_full: Callable[[], None],
    ) -> None:
        self.sock = sock
        self._loop = loop
        self._on_accept = on_accept
        self._on_full = on_full
        self._timer: asyncio.TimerHandle | None = None
        self._listening = False

    def start(self) -> None:
        if not self._listening:
            self._listening = True
            self._loop.add_reader(self.sock.fileno(), self._on_readable)

    def stop(self) -> None:
        """Accept nothing more; the socket stays open."""
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self.sock.fileno())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        self.stop()
        self.sock.close()

    def finish(self) -> None:
        """Accept who is connected already, then close: a client that waits is not reset."""
        while self._accept_some():
            continue
        self.close()

    def _on_readable(self) -> None:
        self._accept_some()

    def _accept_some(self) -> bool:
        """Accept a batch; whether there may be more."""
        for _ in range(_BATCH):
            try:
                accepted, _peer = self.sock.accept()
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as e:
                if e.errno in _FULL:
                    self._pause()
                    return False
                continue  # The peer left before we came: ECONNABORTED and its kin.
            accepted.setblocking(False)
            prepare_connection(accepted)
            self._on_accept(accepted)
        return True

    def _pause(self) -> None:
        self.stop()
        self._on_full()
        self._timer = self._loop.call_later(_PAUSE_S, self.start)
