"""One mesh connection on the event loop: a state machine joined to a socket.

Frames are pulled out of the state machine only when the socket has taken all that came
before, so that a small message waits for one frame of a large one and not for all of it.
What the peer sends is always read: the protocol bounds it (docs/PROTOCOL.md §3).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

from proxy.net.stream import Stream
from proxy.wire.mesh import Event, MeshConnection

PULL_BYTES = 64 * 1024
"""Taken from the state machine at once; at most one frame more waits in the stream."""
LINGER_S = 5.0
"""How long a peer may take to close after we said that nothing follows."""
STALL_S = 10.0
"""A peer that takes nothing of what waits for it for so long is given up, whatever it says:
agents never stop reading, so what it holds up is lost, and costs us memory."""

_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
_UNSENT_IN_KERNEL = 128 * 1024


class MeshLink:
    """Drives `connection` over `stream`, both of which it owns.

    `on_event` gets each event in its order, `on_end` comes once, last, with the reason in
    words; by then every open request has had its event.
    """

    __slots__ = (
        "_ended",
        "_is_receiving",
        "_loop",
        "_on_end",
        "_on_event",
        "_said_fin",
        "_stall_timer",
        "_timer",
        "connection",
        "is_held",
        "stream",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stream: Stream,
        connection: MeshConnection,
        on_event: Callable[[Event], None],
        on_end: Callable[[str], None],
    ) -> None:
        self.connection = connection
        self.stream = stream
        self._loop = loop
        self._on_event = on_event
        self._on_end = on_end
        self._is_receiving = False
        self._said_fin = False
        self._ended = False
        self.is_held = False
        """Whether nothing is to be sent: the connection may leave."""
        self._timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def start(self, first: bytes = b"") -> None:
        """Send our HELLO and read; `first` was read of the socket before."""
        stream = self.stream
        with suppress(OSError):
            # A large body must not fill the kernel's buffer before a small one.
            stream.sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _UNSENT_IN_KERNEL)
        stream.on_data = self._on_data
        stream.on_eof = lambda: self._lose("closed the connection")
        stream.on_close = self._on_close
        stream.on_drain = lambda: None
        stream.on_flushed = self.flush
        self._arm()
        if first:
            self._on_data(first)
        else:
            self.flush()
        if not self._ended:
            stream.resume_reading()

    @property
    def has_ended(self) -> bool:
        return self._ended

    def flush(self) -> None:
        """Send what the socket takes; called after each command to the connection."""
        if self._is_receiving or self._ended or self.is_held:
            return
        connection, stream = self.connection, self.stream
        while connection.wants_write and not stream.has_unsent:
            for part in connection.data_to_send(PULL_BYTES):
                stream.write(part)
        # `finished` says all of it, but hardly a connection is closing.
        if (
            connection.closing
            and connection.finished
            and not self._said_fin
            and not stream.has_unsent
        ):
            self._said_fin = True
            stream.write_eof()
            self._rearm(self._loop.time() + LINGER_S)
        if stream.has_unsent and self._stall_timer is None:
            self._watch_stall()

    def _watch_stall(self) -> None:
        taken = self.stream.bytes_taken
        self._stall_timer = self._loop.call_later(STALL_S, self._on_stall_timer, taken)

    def _on_stall_timer(self, taken: int) -> None:
        self._stall_timer = None
        if self.stream.bytes_taken == taken and self.stream.has_unsent:
            self._lose(f"took nothing for {STALL_S:g} s")
        elif self.stream.has_unsent:
            self._watch_stall()

    def _on_data(self, data: bytes) -> None:
        self._tell(self.connection.receive_data(data, self._loop.time()))

    def _tell(self, events: list[Event]) -> None:
        """Hand out events; what they lead to is sent at once, behind the last of them."""
        self._is_receiving = True
        try:
            for event in events:
                self._on_event(event)
        finally:
            self._is_receiving = False
        self.flush()

    def _arm(self) -> None:
        due_s = self.connection.next_tick_s
        if due_s is not None and not self._said_fin:
            self._rearm(due_s)

    def _rearm(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due_s, self._on_timer)

    def _on_timer(self) -> None:
        """Hearing something moves the next tick, but not the timer: it only comes too early."""
        if self._said_fin:
            self._lose("did not close the connection")
            return
        if not self.is_held:
            self._tell(self.connection.tick(self._loop.time()))
        if not self._ended:
            self._arm()

    def _on_close(self, error: OSError | None) -> None:
        reason = f": {error.strerror}" if error is not None else ""
        self._lose(f"ended the connection{reason}")

    def _lose(self, why: str) -> None:
        if not self._ended:
            self.end(why)

    def detach(self) -> None:
        """Another process has the connection: forget it; nothing is called back."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        self.stream.detach()

    def end(self, why: str) -> None:
        """End it now: every open request gets its event, and `on_end` is called."""
        if self._ended:
            return
        self._ended = True
        for timer in (self._timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        for event in self.connection.connection_lost(why):
            self._on_event(event)
        self.stream.hang_up()
        self._on_end(why)
