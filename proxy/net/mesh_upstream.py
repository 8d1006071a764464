"""One connection to an instance's agent: many requests, replies in any order.

It takes requests once the peer's HELLO has come, so that nothing is ever entrusted to a peer
that turns out not to speak the protocol.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol

from proxy.core.mesh_calls import MeshCall, Origin, header_of
from proxy.core.message import Unsent
from proxy.core.model import Address
from proxy.net.mesh_link import MeshLink
from proxy.net.stream import Stream
from proxy.net.upstream import AnswerCallback, LossCallback, Outgoing
from proxy.wire.mesh import (
    ConnectionFailed,
    Event,
    Fate,
    GoAwayReceived,
    MeshConnection,
    MeshError,
    Negotiated,
    RequestFailed,
    ResponseReceived,
    Settings,
)
from proxy.wire.mesh.hop import RandomBits


class MeshOwner(Protocol):
    """Who keeps the connections of one peer."""

    def on_ready(self, upstream: MeshUpstream) -> None:
        """The peer's HELLO came."""

    def on_leaving(self, upstream: MeshUpstream) -> None:
        """It takes no more requests; what is open goes on."""

    def on_end(self, upstream: MeshUpstream, why: str) -> None:
        """It is over."""


_Asked = tuple[AnswerCallback, LossCallback]
"""Who asked: a bare tuple, because each request makes one."""


class MeshUpstream:
    """Owns a connected socket; see `Upstream`."""

    __slots__ = (
        "_asked",
        "_bits",
        "_link",
        "_loop",
        "_origin",
        "_owner",
        "_refused",
        "address",
        "capacity",
        "heard_s",
        "is_ready",
        "load_hint",
        "on_idle_loss",
        "on_room",
        "ready_s",
        "used_s",
        "was_greeted",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        address: Address,
        settings: Settings,
        origin: Origin,
        bits: RandomBits,
        owner: MeshOwner,
    ) -> None:
        self.address = address
        self.capacity = settings.max_open
        self.used_s = self.heard_s = self.ready_s = loop.time()
        self.on_idle_loss: Callable[[], None] = lambda: None
        self.on_room: Callable[[], None] = lambda: None
        self.is_ready = False
        """Whether it takes requests: greeted, and neither side is leaving."""
        self.was_greeted = False
        """Whether the peer has shown that it speaks the protocol."""
        self.load_hint: int | None = None
        """Requests in flight at the instance, as its agent said last."""
        self._asked: dict[int, _Asked] = {}
        self._refused = 0
        self._loop = loop
        self._origin = origin
        self._bits = bits
        self._owner = owner
        connection = MeshConnection.client(settings, loop.time())
        stream = Stream(loop, sock)
        self._link = MeshLink(loop, stream, connection, self._on_event, self._on_end)

    def start(self) -> None:
        """Say HELLO."""
        self._link.start()

    @property
    def open_requests(self) -> int:
        return len(self._asked)

    @property
    def is_congested(self) -> bool:
        return len(self._asked) >= self.capacity

    @property
    def is_lost(self) -> bool:
        return self._link.has_ended

    @property
    def stream(self) -> Stream:
        return self._link.stream

    def looks_alive(self) -> bool:
        return not self.is_lost

    def send(self, request: Outgoing, on_reply: AnswerCallback, on_loss: LossCallback) -> int:
        """Queue one request under a number of ours, which is returned."""
        assert isinstance(request, MeshCall)
        link = self._link
        asked = on_reply, on_loss
        try:
            header = header_of(request, self._loop.time(), self._bits, self._origin)
            number = link.connection.send_request(header, request.body)
        except MeshError as error:
            # Told from the loop: the caller is still in the call that sends.
            self._refused -= 1
            self._asked[self._refused] = asked
            self._loop.call_soon(self._never_sent, self._refused, str(error))
            return self._refused
        self._asked[number] = asked
        link.flush()
        return number

    def _never_sent(self, number: int, why: str) -> None:
        asked = self._asked.pop(number, None)
        if asked is not None:
            asked[0](Unsent(f"{self.address}: {why}"))

    @property
    def last_number(self) -> int:
        """Its connection knows."""
        return 0

    def number_after(self, _last_number: int) -> None:
        """Its connection does."""

    def forget(self, number: int) -> bool:
        """Whoever asked has gone: the peer is told, and tells the service if it can."""
        if self._asked.pop(number, None) is not None and number > 0:
            for event in self._link.connection.cancel(number):
                self._on_event(event)
            self._link.flush()
        return not self.is_lost

    def ping(self, on_answer: Callable[[bool], None], on_loss: LossCallback) -> None:
        """The connection asks by itself; whether the peer has said anything wrong so far."""
        self._loop.call_soon(on_answer, not self.is_lost)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, ResponseReceived):
            self.load_hint = event.header.load
            asked = self._asked.pop(event.request_id, None)
            if asked is not None:
                asked[0](event)
        elif isinstance(event, RequestFailed):
            self._fail(event)
        elif isinstance(event, Negotiated):
            self.is_ready = self.was_greeted = True
            self.ready_s = self._loop.time()
            self._owner.on_ready(self)
        elif isinstance(event, GoAwayReceived):
            self._leave()
        elif isinstance(event, ConnectionFailed):
            self._leave()
            if not self.was_greeted:
                # Whoever that is, a GOAWAY means nothing to it.
                self._link.end(str(event.error))

    def _fail(self, event: RequestFailed) -> None:
        if self._link.has_ended:
            # First: what is sent elsewhere now must not meet what ends with this agent.
            self._leave()
        if event.fate is Fate.NEVER_PROCESSED:
            self._never_sent(event.request_id, event.text)
        elif (asked := self._asked.pop(event.request_id, None)) is not None:
            asked[1](f"{self.address} {event.text}")

    def _leave(self) -> None:
        if self.is_ready:
            self.is_ready = False
            self._owner.on_leaving(self)

    def _on_end(self, why: str) -> None:
        self._leave()
        self._owner.on_end(self, why)

    def retire(self) -> None:
        """Take nothing new, end when what is open has ended."""
        self._leave()
        self._link.connection.close("no longer needed")
        self._link.flush()

    def close(self) -> None:
        """End the connection; of its requests nothing is called back."""
        self._asked.clear()
        self._link.end("closed by us")
