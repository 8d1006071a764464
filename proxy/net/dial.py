"""One attempt to connect a socket, without a task or a future."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from proxy.net.sockets import set_reset_on_close


class Dial:
    """One attempt to connect; calls back once with a socket or an error, unless cancelled."""

    __slots__ = ("_done", "_fd", "_loop", "_on_done", "_sock", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        target: tuple[str, int],
        timeout_s: float,
        on_done: Callable[[socket.socket | OSError], None],
    ) -> None:
        """Takes over `sock` until it is handed to `on_done`."""
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._on_done = on_done
        self._done = False
        self._timer = loop.call_later(timeout_s, self._expire)
        try:
            sock.connect(target)
        except BlockingIOError:
            loop.add_writer(self._fd, self._on_writable)
        except OSError as e:
            loop.call_soon(self._end, e)
        else:
            loop.call_soon(self._end, None)

    def cancel(self) -> None:
        """Give up, with a reset if the peer has accepted; nothing is called back."""
        if not self._done:
            set_reset_on_close(self._sock)
        self._on_done = lambda _result: None
        self._end(TimeoutError("cancelled"))

    def _expire(self) -> None:
        self._end(TimeoutError("connect timed out"))

    def _on_writable(self) -> None:
        number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._end(OSError(number, os.strerror(number)) if number else None)

    def _end(self, error: OSError | None) -> None:
        if self._done:
            return
        self._done = True
        self._timer.cancel()
        self._loop.remove_writer(self._fd)
        if error is not None:
            self._sock.close()
            self._on_done(error)
        else:
            self._on_done(self._sock)
