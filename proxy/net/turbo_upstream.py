"""One connection to a server that speaks binary packets: many requests, replies in any order.

Every request gets a number of ours, so that a reply finds its caller and a late one finds
nobody. A server that lets a request pass its deadline is asked with a PING whether it is
still there: without an end of the connection nothing else would tell (docs/PROTOCOL.md §2).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import NamedTuple

from proxy.core.model import Address
from proxy.net.stream import Stream
from proxy.net.upstream import LossCallback, Outgoing
from proxy.wire.turbo import (
    Cmd,
    Form,
    Packet,
    PacketLimits,
    PacketParser,
    ProtocolError,
    encode,
    encode9,
    encode_pong,
    ping_body,
)

PROBE_TIMEOUT_S = 2.0
_LAST_NUMBER = 2**31 - 1
"""The earlier form has signed numbers."""


PacketCallback = Callable[[Packet], None]


class _Asked(NamedTuple):
    on_reply: PacketCallback
    on_loss: LossCallback


class TurboUpstream:
    """Owns a connected socket; see `Upstream`. `on_late` counts replies that came too late.

    `capacity` is how many requests it takes at once.
    """

    __slots__ = (
        "_asked",
        "_form",
        "_last",
        "_loop",
        "_lost",
        "_on_late",
        "_parser",
        "_pings",
        "_probe",
        "address",
        "capacity",
        "heard_s",
        "on_idle_loss",
        "on_room",
        "stream",
        "used_s",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        address: Address,
        form: Form,
        limits: PacketLimits,
        on_late: Callable[[], None],
        capacity: int,
    ) -> None:
        self.capacity = capacity
        self.address = address
        self.used_s = 0.0
        self.heard_s = 0.0
        self.on_idle_loss: Callable[[], None] = lambda: None
        self.on_room: Callable[[], None] = lambda: None
        self._loop = loop
        self._form = form
        self._on_late = on_late
        self._parser = PacketParser(limits, form)
        self._asked: dict[int, _Asked] = {}
        self._pings: dict[int, tuple[Callable[[bool], None], LossCallback]] = {}
        self._last = 0
        self._lost = False
        self._probe: asyncio.TimerHandle | None = None
        self.stream = Stream(loop, sock)
        self.stream.on_data = self._on_data
        self.stream.on_eof = self._on_eof
        self.stream.on_close = self._on_close
        self.stream.on_drain = lambda: self.on_room()
        self.stream.resume_reading()

    @property
    def is_lost(self) -> bool:
        return self._lost

    @property
    def is_congested(self) -> bool:
        return self.stream.is_congested

    def looks_alive(self) -> bool:
        if self._lost:
            return False
        try:
            return bool(self.stream.sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def send(self, request: Outgoing, on_reply: PacketCallback, on_loss: LossCallback) -> int:
        """Write one packet under a number of ours, which is returned."""
        assert isinstance(request, bytes)
        number = self._next_number()
        self._asked[number] = _Asked(on_reply, on_loss)
        self.stream.write(b"".join((number.to_bytes(4, "big"), memoryview(request)[4:])))
        return number

    def _next_number(self) -> int:
        while True:
            self._last = self._last % _LAST_NUMBER + 1
            if self._last not in self._asked and self._last not in self._pings:
                return self._last

    @property
    def last_number(self) -> int:
        return self._last

    def number_after(self, last_number: int) -> None:
        """See `Upstream`."""
        self._last = last_number

    def forget(self, number: int) -> bool:
        """Whoever asked has gone; whether the server still lives is found out aside."""
        if self._asked.pop(number, None) is not None and self._probe is None and not self._lost:
            timer = self._loop.call_later(PROBE_TIMEOUT_S, self._on_silence, self.stream.bytes_in)
            self._probe = timer
            self.ping(lambda _is_well: self._end_probe(), lambda _why: None)
        return not self._lost

    def _end_probe(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    def _on_silence(self, bytes_then: int) -> None:
        """A server that sends a large reply may answer a PING late, but is heard."""
        self._probe = None
        if self.stream.bytes_in == bytes_then:
            self._lose(f"{self.address} does not answer PING")

    def ping(self, on_answer: Callable[[bool], None], on_loss: LossCallback) -> None:
        number, body = self._next_number(), ping_body(int(self._loop.time() * 1000))
        self._pings[number] = (on_answer, on_loss)
        write = encode if self._form is Form.PACKET19 else encode9
        self.stream.write(write(Cmd.PING, number, body))

    def _on_data(self, data: bytes) -> None:
        try:
            packets = self._parser.feed(data)
        except ProtocolError as error:
            self._lose(f"{self.address} broke the protocol: {error}")
            return
        for packet in packets:
            if self._lost:
                return
            self._take(packet)
        if self._parser.error is not None:
            self._lose(f"{self.address} broke the protocol: {self._parser.error}")

    def _take(self, packet: Packet) -> None:
        if packet.cmd is Cmd.RESP:
            asked = self._asked.pop(packet.opaque, None)
            if asked is not None:
                asked.on_reply(packet)
            else:
                self._on_late()
        elif packet.cmd is Cmd.PONG:
            if (pinged := self._pings.pop(packet.opaque, None)) is not None:
                pinged[0](True)
        elif packet.cmd is Cmd.PING:
            self.stream.write(encode_pong(packet))
        # What else a server may send (INFO) answers nothing that we ask.

    def _on_eof(self) -> None:
        self._lose(f"{self.address} closed the connection")

    def _on_close(self, error: OSError | None) -> None:
        reason = f": {error.strerror}" if error is not None else ""
        self._lose(f"{self.address} ended the connection{reason}")

    def _lose(self, why: str) -> None:
        if self._lost:
            return
        self._lost = True
        self._end_probe()
        asked, self._asked = self._asked, {}
        pings, self._pings = self._pings, {}
        self.stream.hang_up()
        for waiting in asked.values():
            waiting.on_loss(why)
        for _, on_loss in pings.values():
            on_loss(why)
        if not asked:
            self.on_idle_loss()

    def close(self) -> None:
        self._lost = True
        self._end_probe()
        self._asked.clear()
        self._pings.clear()
        self.stream.hang_up()
