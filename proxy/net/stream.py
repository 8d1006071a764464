"""A TCP connection on the event loop whose socket stays ours.

asyncio's transports own their sockets, and uvloop's hide them; this one only borrows the
loop's readiness events, so that the descriptor and the unread bytes can leave at any time
(docs/adr/0005). No task and no future is made for a read or a write.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from proxy.net.sockets import set_reset_on_close

READ_SIZE = 64 * 1024
READS_AT_ONCE = 4
"""Reads in one turn of the loop, so that one fast peer does not starve the others."""
HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024
FLUSH_STALL_S = 10.0
"""A peer that takes nothing of our last bytes for so long is reset."""

DataCallback = Callable[[bytes], None]
Callback = Callable[[], None]
CloseCallback = Callable[[OSError | None], None]


def _ignore() -> None:
    return


class StreamNotes(Protocol):
    """What a stream writes down as it goes (`proxy/net/notes.py`)."""

    def receive(self, sock: socket.socket, before: int) -> bytes:
        """As `recv` of up to READ_SIZE, after `before` bytes."""

    def writing(self, written: int) -> None:
        """Bytes are about to be handed to the kernel: so many with them."""

    def keep(self, data: bytes | memoryview, written: int, waiting: int) -> None:
        """The kernel did not take these, the last of `written`; `waiting` in all."""

    def flushed(self) -> None:
        """The kernel has taken all that it had not."""

    def closed(self) -> None:
        """The descriptor is about to be closed, or belongs to another agent."""


class Stream:
    """Reads and writes one connected, non-blocking socket, which it owns.

    `on_data` gets what arrived, `on_eof` says that the peer will send no more, `on_close`
    comes exactly once, last, with the error if there was one. `on_drain` says that a
    congested stream takes data again, `on_flushed` that the kernel has taken all that waited.
    """

    __slots__ = (
        "_buffered",
        "_closed",
        "_eof_wanted",
        "_fd",
        "_flush_close",
        "_flush_timer",
        "_held",
        "_is_reading_on",
        "_loop",
        "_out",
        "_paused",
        "_peer_done",
        "_poll",
        "_send_error",
        "_writing",
        "bytes_in",
        "bytes_out",
        "notes",
        "on_close",
        "on_data",
        "on_drain",
        "on_eof",
        "on_flushed",
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
        self.on_flushed: Callback = _ignore
        self.bytes_in = 0
        self.bytes_out = 0
        self.notes: StreamNotes | None = None
        """What outlives this process, if anything does."""
        self._out: deque[memoryview] = deque()
        self._buffered = 0
        self._is_reading_on = False
        self._paused = True
        self._held = False
        self._peer_done = False
        self._poll: Callable[[float], object] | None = None
        self._eof_wanted = False
        self._flush_close = False
        self._flush_timer: asyncio.TimerHandle | None = None
        self._send_error: OSError | None = None
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

    @property
    def has_unsent(self) -> bool:
        """Whether the kernel has not yet taken all that was written."""
        return bool(self._out)

    def count_from(self, read: int, written: int) -> None:
        """Count from the beginning of the connection: so much had been read and sent by now."""
        self.bytes_in, self.bytes_out = read, written + self._buffered

    def hand_out(self) -> bytes:
        """What the kernel has not yet taken; nothing more is sent until `unhold`."""
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)
        return b"".join(self._out)

    @property
    def bytes_taken(self) -> int:
        """Bytes that the kernel has taken of what was written."""
        return self.bytes_out - self._buffered

    def resume_reading(self) -> None:
        if self._paused and not (self._closed or self._flush_close or self._peer_done):
            self._paused = False
            if not self._held:
                self._loop.add_reader(self._fd, self._on_readable)

    def pause_reading(self) -> None:
        if not self._paused and not self._closed:
            self._paused = True
            if not self._held:
                self._loop.remove_reader(self._fd)

    def hold(self) -> None:
        """Read nothing, whatever `resume_reading` says, until `unhold`: it may leave soon."""
        if not self._held and not self._closed:
            self._held = True
            if not self._paused:
                self._loop.remove_reader(self._fd)

    def unhold(self) -> None:
        if self._held and not self._closed:
            self._held = False
            if not self._paused:
                self._loop.add_reader(self._fd, self._on_readable)
            if self._out and not self._writing:
                self._writing = True
                self._loop.add_writer(self._fd, self._on_writable)

    def detach(self) -> None:
        """Let go without a word to the peer: another process has the socket, and goes on.

        Our descriptor is closed, what waits to be sent is dropped, nothing is called back.
        """
        if self._closed:
            return
        self.hold()
        self._drop_unsent()
        self._closed = True
        self.on_close = lambda _error: None
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        self.forget()
        self.sock.close()

    def forget(self) -> None:
        """Note nothing any more: nobody is to go on with this connection after us."""
        if self.notes is not None:
            self.notes.closed()
            self.notes = None

    def _on_readable(self) -> None:
        """Read until nothing is left.

        libuv reports a reset once and then no event at all: who stops at the data that came
        before it never learns of it (uv__poll_io, libuv 1.52). Less than was asked for is all
        that was there; what is left to be asked then is a pending error, which costs a third
        of a receive in vain.
        """
        if self._is_reading_on:
            return
        size = READ_SIZE
        for _ in range(READS_AT_ONCE):
            if self._paused or self._held:
                return  # By what the last bytes led to.
            if size < READ_SIZE:
                self._check_error()
                return
            notes = self.notes
            try:
                if notes is None:
                    data = self.sock.recv(READ_SIZE)
                else:
                    data = notes.receive(self.sock, self.bytes_in)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as e:
                self._finish(e)
                return
            if not data:
                self._on_fin()
                return
            size = len(data)
            self.bytes_in += size
            self.on_data(data)
        self._is_reading_on = True
        self._loop.call_soon(self._read_on)

    def _check_error(self) -> None:
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not error:
            return
        # Asked for, the error is gone: bytes that came before it can be read, and then an end.
        with suppress(OSError):
            if data := self.sock.recv(READ_SIZE):
                self.bytes_in += len(data)
                self.on_data(data)
        self._finish(OSError(error, os.strerror(error)))

    def is_quiet(self) -> bool:
        """Whether the kernel has nothing for us: no byte, no FIN, no error.

        The loop may not have told us yet. Poll says it without the exception of a receive in
        vain, which takes three times as long.
        """
        if self._closed:
            return False
        if self._poll is None:
            poller = select.poll()
            poller.register(self._fd, select.POLLIN | select.POLLRDHUP)
            self._poll = poller.poll
        return not self._poll(0)

    def _read_on(self) -> None:
        self._is_reading_on = False
        self._on_readable()

    def _on_fin(self) -> None:
        if self._send_error is not None:
            self._finish(self._send_error)
            return
        self.pause_reading()
        self._peer_done = True
        self.on_eof()

    def write(self, data: bytes | memoryview) -> None:
        """Send now what the kernel takes and keep the rest; never blocks."""
        if self._closed or self._flush_close or self._send_error is not None or not data:
            return
        size = len(data)
        self.bytes_out += size
        notes = self.notes
        if notes is not None:
            notes.writing(self.bytes_out)
        if not self._out:
            try:
                sent = self.sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as e:
                self._on_send_error(e)
                return
            if sent == size:
                return
            data = memoryview(data)[sent:]
        self._out.append(memoryview(data))
        self._buffered += len(data)
        if notes is not None:
            notes.keep(data, self.bytes_out, self._buffered)
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        was_congested = self._buffered > LOW_WATER
        try:
            self._send_buffered()
        except OSError as e:
            self._on_send_error(e)
            return
        if not self._out:
            self._writing = False
            self._loop.remove_writer(self._fd)
            if self.notes is not None:
                self.notes.flushed()
            if self._flush_close:
                self._finish(None)
                return
            if self._eof_wanted:
                self._shutdown()
            self.on_flushed()
        if was_congested and self._buffered <= LOW_WATER:
            self.on_drain()

    def _send_buffered(self) -> None:
        while self._out:
            head = self._out[0]
            try:
                sent = self.sock.send(head)
            except (BlockingIOError, InterruptedError):
                return
            self._buffered -= sent
            if sent < len(head):
                self._out[0] = head[sent:]
                return
            self._out.popleft()

    def _on_send_error(self, error: OSError) -> None:
        """What the peer sent before it hung up is read first: it may say why.

        Told from the loop, so that no caller is torn down inside its own call.
        """
        was_congested = self._buffered > LOW_WATER
        self._send_error = error
        self._drop_unsent()
        if self._flush_close or self._peer_done:
            self._loop.call_soon(self._finish, error)
        elif was_congested:
            self._loop.call_soon(self._tell_drained)

    def _tell_drained(self) -> None:
        if not self._closed:
            self.on_drain()

    def _drop_unsent(self) -> None:
        self._out.clear()
        self._buffered = 0
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

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
        if self._closed or self._flush_close:
            return
        self.pause_reading()
        self._flush_close = True
        if not self._out:
            self.forget()
            self._loop.call_soon(self._finish, self._send_error)
        else:
            self._watch_flush(left=-1)

    def _watch_flush(self, left: int) -> None:
        if self._buffered == left:
            self.abort()
        else:
            self._flush_timer = self._loop.call_later(
                FLUSH_STALL_S, self._watch_flush, self._buffered
            )

    def abort(self) -> None:
        """Close with RST and drop what is not sent."""
        if not self._closed:
            self.forget()
            set_reset_on_close(self.sock)
            self._flush_close = True
            self._drop_unsent()
            self.pause_reading()
            self._loop.call_soon(self._finish, None)

    def hang_up(self) -> None:
        """Close without a wait: what is not sent is dropped, with RST so that it is noticed."""
        if self._out:
            self.abort()
        else:
            self.close()

    def _finish(self, error: OSError | None) -> None:
        if self._closed:
            return
        self.pause_reading()
        self._drop_unsent()
        self._closed = True
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        self.forget()
        self.sock.close()
        self.on_close(error)
