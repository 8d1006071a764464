"""The packets of one client: read ahead within bounds, complete within a bounded time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from proxy.net.stream import Stream
from proxy.wire.turbo import Form, Packet, PacketLimits, PacketParser, ProtocolError


class PacketReader:
    """What was read of `client` and not served yet.

    `slow_after_s` says how long a packet that has begun may take now, and `on_slow` tells that
    one has taken longer.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: Stream,
        form: Form,
        limits: PacketLimits,
        slow_after_s: Callable[[], float],
        on_slow: Callable[[], None],
    ) -> None:
        self.packets: deque[Packet] = deque()
        self._loop = loop
        self._client = client
        self._form = form
        self._parser = PacketParser(limits, form)
        self._slow_after_s = slow_after_s
        self._on_slow = on_slow
        self._timer: asyncio.TimerHandle | None = None

    @property
    def form(self) -> Form:
        return self._form

    @property
    def mid_frame(self) -> bool:
        """Whether a packet has begun and is not complete."""
        return self._parser.mid_frame

    @property
    def error(self) -> ProtocolError | None:
        """Why there is nothing behind the packets that were read."""
        return self._parser.error

    @property
    def begun(self) -> bytes:
        """The bytes behind the last packet, which an error is about if there is one."""
        return self._parser.pending

    def feed(self, data: bytes) -> None:
        packets: list[Packet] = []
        with suppress(ProtocolError):
            packets = self._parser.feed(data)
        self.packets.extend(packets)
        if packets or not self._parser.mid_frame:
            self.stop_timer()
        if self._parser.mid_frame:
            self._start_timer()

    def peek_all(self) -> bytes:
        """Every byte that was read and not served, in its order."""
        return b"".join(packet.raw for packet in self.packets) + self._parser.pending

    def take_all(self) -> bytes:
        """The same, and forget them."""
        self.stop_timer()
        rest = self.peek_all()
        self.packets.clear()
        return rest

    def resume_timer(self) -> None:
        """Count anew, after a pause in which nothing was read."""
        if self._parser.mid_frame:
            self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._slow_after_s(), self._on_timer)

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        if self._client.is_paused and not self._client.peer_done:
            # It is we who do not read; the client may have sent the rest long ago.
            self._start_timer()
        else:
            self._on_slow()
