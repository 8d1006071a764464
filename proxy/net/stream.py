"""A TCP connection on the event loop whose socket stays ours.

asyncio's transports own their sockets, and uvloop's hide them; this one only borrows the
loop's readiness events, so that the descriptor and the unread bytes can leave at any time
(docs/adr/0005). No task and no future is made for a read or a write.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from proxy.net.sockets import set_reset_on_close

READ_SIZE = 64 * 1024
HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024

DataCallback = Callable[[bytes], None]
Callback = Callable[[], None]
CloseCallback = Callable[[OSError | None], None]


def _ignore() -> None:
    return


class Stream:
    """Reads and writes one connected, non-blocking socket, which it owns.

    `on_data` gets what arrived, `on_eof` says that the peer will send no more, `on_close`
    comes exactly once, last, with the error if there was one. `on_drain` says that a
    congested stream takes data again.
    """

    __slots__ = (
        "_buffered",
        "_closed",
        "_eof_wanted",
        "_fd",
        "_flush_close",
        "_loop",
        "_out",
        "_paused",
        "_peer_done",
        "_writing",
        "bytes_in",
        "bytes_out",
        "on_close",
        "on_data",
        "on_drain",
        "on_eof",
        "sock",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self.sock = sock
        self._fd = sock.fileno()
        self.on_data: DataCallback = lambda _data: None
        self.on_eof: Callback = _ignore
        self.on_close: CloseCallback = lambda _error: None
        self.on_drain: Callback = _ignore
        self.bytes_in = 0
        self.bytes_out = 0
        self._out: deque[memoryview] = deque()
        self._buffered = 0
        self._paused = True
        self._peer_done = False
        self._eof_wanted = False
        self._flush_close = False
        self._writing = False
        self._closed = False

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def is_congested(self) -> bool:
        """Whether more is waiting to be sent than a well-behaved peer leaves waiting."""
        return self._buffered > HIGH_WATER

    @property
    def peer_done(self) -> bool:
        """Whether the peer has sent its FIN."""
        return self._peer_done

    @property
    def is_paused(self) -> bool:
        """Whether nothing is read at present, by our own choice or because all is read."""
        return self._paused

    def resume_reading(self) -> None:
        if self._paused and not self._closed and not self._peer_done:
            self._paused = False
            self._loop.add_reader(self._fd, self._on_readable)

    def pause_reading(self) -> None:
        if not self._paused and not self._closed:
            self._paused = True
            self._loop.remove_reader(self._fd)

    def _on_readable(self) -> None:
        try:
            data = self.sock.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            self._finish(e)
            return
        if data:
            self.bytes_in += len(data)
            self.on_data(data)
            return
        self.pause_reading()
        self._peer_done = True
        self.on_eof()

    def write(self, data: bytes | memoryview) -> None:
        """Send now what the kernel takes and keep the rest; never blocks."""
        if self._closed or not data:
            return
        size = len(data)
        self.bytes_out += size
        if not self._out:
            try:
                sent = self.sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as e:
                # Told from the loop, so that no caller is torn down inside its own call.
                self._loop.call_soon(self._finish, e)
                return
            if sent == size:
                return
            data = memoryview(data)[sent:]
        self._out.append(memoryview(data))
        self._buffered += len(data)
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        was_congested = self._buffered > LOW_WATER
        try:
            while self._out:
                head = self._out[0]
                sent = self.sock.send(head)
                self._buffered -= sent
                if sent < len(head):
                    self._out[0] = head[sent:]
                    break
                self._out.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            self._finish(e)
            return
        if not self._out:
            self._writing = False
            self._loop.remove_writer(self._fd)
            if self._flush_close:
                self._finish(None)
                return
            if self._eof_wanted:
                self._shutdown()
        if was_congested and self._buffered <= LOW_WATER:
            self.on_drain()

    def write_eof(self) -> None:
        """Send FIN once everything is sent; reading goes on."""
        self._eof_wanted = True
        if not self._out and not self._closed:
            self._shutdown()

    def _shutdown(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close once everything is sent; nothing more is read."""
        if self._closed:
            return
        self.pause_reading()
        self._flush_close = True
        if not self._out:
            self._loop.call_soon(self._finish, None)

    def abort(self) -> None:
        """Close with RST and drop what is not sent."""
        if not self._closed:
            set_reset_on_close(self.sock)
            self._out.clear()
            self._loop.call_soon(self._finish, None)
            self._stop_events()

    def _stop_events(self) -> None:
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._paused = True

    def _finish(self, error: OSError | None) -> None:
        if self._closed:
            return
        self._stop_events()
        self._closed = True
        self._out.clear()
        self._buffered = 0
        self.sock.close()
        self.on_close(error)


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
        """Give up; nothing is called back."""
        self._on_done = lambda _result: None
        self._end(TimeoutError("cancelled"))

    def _expire(self) -> None:
        self._end(TimeoutError("connect timed out"))

    def _on_writable(self) -> None:
        number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._end(OSError(number, "connect failed") if number else None)

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
