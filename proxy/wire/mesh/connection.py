"""One mesh connection as a state machine: bytes and commands in, events and bytes out.

A client sends requests, a server answers them; all else is the same on both sides. The
driver gives what it reads to `receive_data` and acts on the events; it writes what
`data_to_send` returns whenever the socket takes more, so that frames are cut as late as
possible; it calls `tick` at `next_tick_s`, and `connection_lost` at the end. Nothing here
blocks. `now_s` is monotonic, in seconds.
"""

from __future__ import annotations

from proxy.wire.mesh.calls import Calls
from proxy.wire.mesh.errors import CannotSend, PeerError, Reason, Refusal, UsageError
from proxy.wire.mesh.events import Event
from proxy.wire.mesh.flow import Flow
from proxy.wire.mesh.frames import FrameParser, FrameType, encode_frame
from proxy.wire.mesh.headers import RequestHeader, ResponseHeader
from proxy.wire.mesh.link import Link
from proxy.wire.mesh.outbox import Buffer, Outbox
from proxy.wire.mesh.owed import Owed, OwedState
from proxy.wire.mesh.pieces import Body
from proxy.wire.mesh.pulse import Pulse
from proxy.wire.mesh.settings import Settings, encode_hello
from proxy.wire.mesh.state import ConnectionState

_JOIN_BELOW = 64 * 1024
"""Less than this leaves `data_to_send` in one piece, for one send()."""


class MeshConnection:
    """The protocol's state for one connection; make it by `client`, `server` or `restore`.

    Everything that a peer can make it hold is bounded by `Settings`. A peer that breaks the
    rules gets a GOAWAY; the driver gets the end of each open request and ConnectionFailed.
    """

    __slots__ = ("_flow", "_link", "_parser", "_pulse", "_unsent")

    def __init__(self, link: Link) -> None:
        self._link = link
        self._flow = link.flow
        self._pulse = link.pulse
        self._parser = FrameParser(max_header=link.flow.settings.max_header)
        self._unsent = b""

    @classmethod
    def client(cls, settings: Settings, now_s: float) -> MeshConnection:
        """The side that connected; its HELLO is ready to be sent."""
        flow = _greeting(settings, now_s)
        return cls(Link(flow, Calls(flow), Pulse(settings, now_s)))

    @classmethod
    def server(cls, settings: Settings, now_s: float) -> MeshConnection:
        """The side that accepted; its HELLO is ready to be sent."""
        flow = _greeting(settings, now_s)
        return cls(Link(flow, Owed(flow), Pulse(settings, now_s)))

    @property
    def open_requests(self) -> int:
        """Requests without a complete response; waiting and half received ones count."""
        return len(self._link.side)

    @property
    def queued_bytes(self) -> int:
        """Bytes of requests or responses that wait for the peer to take them."""
        return self._flow.outbox.queued_bytes

    @property
    def closing(self) -> bool:
        """Whether either side said GOAWAY, or the connection failed: no new requests."""
        link = self._link
        return link.said_goaway or link.got_goaway or link.failed

    @property
    def finished(self) -> bool:
        """Whether nothing is left to send or to wait for: the socket may be closed.

        Half-close it and read on to its end first: a reset would destroy what the peer has
        not read yet. A client's GOAWAY overtakes requests that it still sends, so a server
        that has not said GOAWAY itself waits for the client to close.
        """
        if self.wants_write:
            return False
        link = self._link
        leaving = self.closing if isinstance(link.side, Calls) else link.said_goaway
        return link.failed or (leaving and len(link.side) == 0)

    @property
    def wants_write(self) -> bool:
        """Whether `data_to_send` would return something."""
        return bool(self._unsent) or self._flow.outbox.sendable

    @property
    def next_tick_s(self) -> float | None:
        """When `tick` wants to be called; None when never again."""
        return None if self._link.failed else self._pulse.next_s

    def send_request(self, header: RequestHeader, body: Body) -> int:
        """Queue a request and return its id, which its ResponseReceived or RequestFailed has.

        Before the peer's HELLO, and while the peer is full, it waits here. The body is kept
        by reference. Raises CannotSend; UsageError on a server or for an impossible header.
        """
        calls = self._calls()
        if self.closing:
            raise CannotSend(Refusal.CLOSING, "the connection takes no new requests")
        return calls.send(header, body)

    def cancel(self, request_id: int) -> list[Event]:
        """Give a request up, because its caller has gone or its deadline passed.

        No event follows for it; one that is over already is left alone. The events are of
        waiting requests that now turn out not to fit. Raises UsageError on a server.
        """
        calls = self._calls()
        calls.cancel(request_id)
        return calls.place_waiting()

    def send_response(self, request_id: int, header: ResponseHeader, body: Body) -> bool:
        """Queue the response to a request; False when nobody waits for it any more.

        Raises CannotSend when it does not fit; the request stays owed: answer it with an
        error of at most 1 KiB then, which always fits. UsageError on a client.
        """
        if not isinstance(self._link.side, Owed):
            raise UsageError("a client has no responses to send")
        return self._link.side.respond(request_id, header, body)

    def ping(self, now_s: float) -> bool:
        """Ask whether the peer lives; False when that is being asked, or cannot be asked."""
        ping_id = None if self._link.failed else self._pulse.ping(now_s)
        if ping_id is None:
            return False
        self._flow.outbox.control(encode_frame(FrameType.PING, ping_id))
        return True

    def close(self, text: str = "") -> None:
        """Say GOAWAY: open requests go on, new ones are refused; then wait for `finished`."""
        link = self._link
        if not (link.said_goaway or link.failed):
            side = link.side
            last_id = side.refuse_new() if isinstance(side, Owed) else side.last_id
            link.say_goaway(last_id, Reason.NO_ERROR, text)

    def receive_data(self, data: bytes, now_s: float) -> list[Event]:
        """Take what was read from the socket; after a failure it is ignored."""
        link = self._link
        events: list[Event] = []
        if link.failed:
            return events
        try:
            frames = self._parser.feed(data)
            if frames:
                self._pulse.heard(now_s)
            for frame in frames:
                events += link.received(frame, now_s)
            if self._parser.error is not None:
                raise self._parser.error
        except PeerError as error:
            events += link.fail(error)
        return events

    def data_to_send(self, max_bytes: int = 256 * 1024) -> list[Buffer]:
        """The next bytes for the socket, in order; empty when nothing can be sent now.

        Stops behind `max_bytes`, at most one frame beyond. What is returned counts as sent:
        the driver keeps what the socket did not take.
        """
        flow = self._flow
        parts = flow.outbox.pull(max_bytes)
        if self._unsent:
            parts.insert(0, self._unsent)
            self._unsent = b""
        if flow.inbox.waiting:
            flow.give_room()
        if len(parts) > 1 and sum(map(len, parts)) < _JOIN_BELOW:
            return [b"".join(parts)]
        return parts

    def tick(self, now_s: float) -> list[Event]:
        """Send a PING when it is due; fail when the peer is silent."""
        if self._link.failed:
            return []
        try:
            ping_id = self._pulse.due(now_s)
        except PeerError as error:
            return self._link.fail(error)
        if ping_id is not None:
            self._flow.outbox.control(encode_frame(FrameType.PING, ping_id))
        return []

    def connection_lost(self, text: str = "connection lost") -> list[Event]:
        """The socket is closed, by either side: the end of each request that is still open."""
        return [] if self._link.failed else self._link.end_all(text)

    def export(self, unsent: bytes = b"") -> ConnectionState:
        """The whole state, for `restore` in another process (snapshot.py makes it bytes).

        `unsent` is what `data_to_send` returned and the socket did not take. Which request
        the driver has where is the driver's own to hand over. Changes nothing here: this one
        may go on when the other refuses, but only one of both may touch the socket.
        """
        link = self._link
        return ConnectionState(
            settings=self._flow.settings,
            peer=self._flow.peer,
            side=link.side.export(),
            unread=self._parser.pending,
            unsent=unsent + self._unsent,
            outbox=self._flow.outbox.export(),
            inbox=self._flow.inbox.export(),
            guard=self._flow.guard.export(),
            pulse=self._pulse.export(),
            said_goaway=link.said_goaway,
            got_goaway=link.got_goaway,
            failed=link.failed,
        )

    @classmethod
    def restore(cls, state: ConnectionState) -> MeshConnection:
        """The connection that `state` was exported from, under the settings of then."""
        flow = Flow(state.settings, 0.0)
        flow.peer = state.peer
        flow.outbox = Outbox.restore(state.outbox)
        flow.inbox.restore(state.inbox)
        flow.guard.restore(state.guard)
        pulse = Pulse(state.settings, 0.0)
        pulse.restore(state.pulse, greeted=state.peer is not None)
        side: Calls | Owed
        if isinstance(state.side, OwedState):
            side = Owed.restore(flow, state.side)
        else:
            side = Calls.restore(flow, state.side)
        link = Link(flow, side, pulse)
        link.said_goaway, link.got_goaway = state.said_goaway, state.got_goaway
        link.failed = state.failed
        connection = cls(link)
        connection._parser.feed(state.unread)
        connection._unsent = state.unsent
        return connection

    def _calls(self) -> Calls:
        if not isinstance(self._link.side, Calls):
            raise UsageError("a server has no requests to send")
        return self._link.side


def _greeting(settings: Settings, now_s: float) -> Flow:
    flow = Flow(settings, now_s)
    flow.outbox.control(encode_frame(FrameType.HELLO, 0, encode_hello(settings)))
    return flow
