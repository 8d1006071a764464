"""The way of a client's packets to the address that it dialled, and of the answers back.

Packets pass as they came, with the client's own numbers: the connection is this client's
alone. Opened when it is first needed, and again after it has ended.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from proxy.net.lane import Lane
from proxy.net.resp_upstream import RespUpstream
from proxy.net.stream import Stream
from proxy.wire.turbo import Cmd, Form, Packet, PacketLimits, PacketParser, ProtocolError


class PacketUser(Protocol):
    """Who sends packets on a lane."""

    def on_lane_packet(self, packet: Packet) -> None:
        """The server sent a packet."""

    def on_lane_drain(self) -> None:
        """The server takes packets again."""

    def on_lane_end(self, why: str, unanswered: list[Packet], *, was_reset: bool) -> None:
        """The connection ended; `unanswered` were sent and are requests."""

    def on_lane_broken(self, rest: bytes) -> None:
        """The server sent what is no packet; `rest` was read of it."""


class PacketLane:
    """Sends on a connection that it takes from `lane`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        lane: Lane,
        form: Form,
        limits: PacketLimits,
        patience_s: float,
        user: PacketUser,
    ) -> None:
        self._loop = loop
        self._lane = lane
        self._form = form
        self._limits = limits
        self._patience_s = patience_s
        self._user = user
        self._parser = PacketParser(limits, form)
        self._stream: Stream | None = None
        self._queue: deque[tuple[Packet, Callable[[], None]]] = deque()
        self._is_dialling = False
        self._unanswered: dict[int, Packet] = {}
        self._taker: Callable[[Stream | None, bytes], None] | None = None
        self._closed = False

    @property
    def is_open(self) -> bool:
        return self._stream is not None

    @property
    def is_congested(self) -> bool:
        """Whether more waits for the server than a well-behaved one leaves waiting."""
        return bool(self._queue) or (self._stream is not None and self._stream.is_congested)

    @property
    def owes(self) -> bool:
        """Whether a request was passed on and not answered."""
        return bool(self._unanswered or self._queue)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is under way: no connection on its way, no answer to come."""
        return not (self.owes or self._is_dialling or self._parser.mid_frame)

    @property
    def is_mid_packet(self) -> bool:
        """Whether an answer has begun and is not complete."""
        return self._parser.mid_frame

    @property
    def stream(self) -> Stream | None:
        return self._stream

    def adopt(self, sock: socket.socket, unsent: bytes) -> None:
        """Use this connection, which is idle, as if it had been opened here."""
        self._lane.adopt(sock)
        self.open()
        if self._stream is not None:
            self._stream.write(unsent)

    def detach(self) -> None:
        """Another process has the connection: forget it."""
        self._closed = True
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.detach()
        self._lane.detach()

    def open(self) -> None:
        """Connect now, or take over what the lane has opened."""
        if self._stream is None and not self._is_dialling:
            self._is_dialling = True
            self._lane.take(self._on_connection)

    def send(self, packet: Packet, on_unreachable: Callable[[], None], *, is_patient: bool) -> None:
        """Pass on one packet, or call back that it cannot be; without patience, soon."""
        if self._stream is not None:
            self._write(packet)
            return
        entry = (packet, on_unreachable)
        self._queue.append(entry)
        if not is_patient:
            self._loop.call_later(self._patience_s, self._lose_patience, entry)
        self.open()

    def _lose_patience(self, entry: tuple[Packet, Callable[[], None]]) -> None:
        if entry in self._queue:
            self._queue.remove(entry)
            entry[1]()

    def _write(self, packet: Packet) -> None:
        assert self._stream is not None
        if packet.cmd is Cmd.REQ:
            self._unanswered[packet.opaque] = packet
        self._stream.write(packet.raw)

    def _on_connection(self, upstream: RespUpstream | None) -> None:
        self._is_dialling = False
        if self._taker is not None:
            self._taker(*((None, b"") if upstream is None else upstream.take_stream()))
            return
        if upstream is None:
            while self._queue and not self._closed:
                self._queue.popleft()[1]()
            return
        stream, extra = upstream.take_stream()
        self._stream = stream
        self._parser = PacketParser(self._limits, self._form)
        stream.on_data = self._on_data
        stream.on_eof = lambda: self._on_end("closed the connection", was_reset=False)
        stream.on_close = self._on_close
        stream.on_drain = self._user.on_lane_drain
        while self._queue:
            self._write(self._queue.popleft()[0])
        if extra:
            self._on_data(extra)
        stream.resume_reading()

    def pause(self) -> None:
        """Read no answers: the client does not read them either."""
        if self._stream is not None:
            self._stream.pause_reading()

    def resume(self) -> None:
        if self._stream is not None:
            self._stream.resume_reading()

    def _on_data(self, data: bytes) -> None:
        packets: list[Packet] = []
        # What broke the protocol is in the parser's `error`.
        with suppress(ProtocolError):
            packets = self._parser.feed(data)
        for packet in packets:
            if packet.cmd is Cmd.RESP:
                self._unanswered.pop(packet.opaque, None)
            self._user.on_lane_packet(packet)
        if self._parser.error is not None and not self._closed:
            self._user.on_lane_broken(self._parser.pending)

    def _on_close(self, error: OSError | None) -> None:
        self._on_end("ended the connection", was_reset=error is not None)

    def _on_end(self, what: str, *, was_reset: bool) -> None:
        stream, self._stream = self._stream, None
        if stream is None or self._closed:
            return
        stream.hang_up()
        unanswered, self._unanswered = list(self._unanswered.values()), {}
        self._user.on_lane_end(what, unanswered, was_reset=was_reset)

    def take(self, taker: Callable[[Stream | None, bytes], None]) -> None:
        """Give up the connection, now or when there is one, to be spliced.

        `taker` gets it and what was read of it, or None when it cannot be had; nothing else is
        called back any more.
        """
        self._closed = True
        stream, self._stream = self._stream, None
        if stream is not None:
            taker(stream, b"")
            return
        self._taker = taker
        self.open()

    def close(self, *, was_reset: bool = False) -> None:
        """End it as the client has ended; nothing is called back any more."""
        self._closed = True
        self._queue.clear()
        self._unanswered.clear()
        stream, self._stream = self._stream, None
        if stream is not None and was_reset:
            stream.abort()
        elif stream is not None:
            stream.hang_up()
        if was_reset:
            self._lane.abort()
        else:
            self._lane.close()
