"""What each frame does to a connection, and how a connection ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from proxy.wire.mesh.calls import Calls
from proxy.wire.mesh.errors import PeerError, Reason
from proxy.wire.mesh.events import (
    ConnectionFailed,
    Event,
    GoAwayReceived,
    Negotiated,
    PongReceived,
)
from proxy.wire.mesh.flow import Flow
from proxy.wire.mesh.frames import REQUEST, RESPONSE, Frame, FrameType, encode_frame
from proxy.wire.mesh.headers import decode_goaway, decode_window, encode_goaway
from proxy.wire.mesh.owed import Owed
from proxy.wire.mesh.pulse import Pulse
from proxy.wire.mesh.settings import agree, decode_hello

_Handler = Callable[["Link", Frame, float], Sequence[Event]]
_NOTHING: tuple[Event, ...] = ()


class Link:
    """The two ends' agreement on what is open: `side` is Calls for a client, Owed for a server."""

    __slots__ = ("failed", "flow", "got_goaway", "pulse", "said_goaway", "side")

    def __init__(self, flow: Flow, side: Calls | Owed, pulse: Pulse) -> None:
        self.flow = flow
        self.side = side
        self.pulse = pulse
        self.said_goaway = False
        self.got_goaway = False
        self.failed = False

    def received(self, frame: Frame, now_s: float) -> Sequence[Event]:
        """Act on one frame. Raises PeerError; the connection is over then, see `fail`."""
        if self.flow.peer is None and frame.kind != FrameType.HELLO:
            raise PeerError(
                Reason.PROTOCOL_ERROR, f"first frame is of type {frame.kind}, expected HELLO"
            )
        handle = _HANDLERS.get(frame.kind)
        if handle is None:
            self.flow.guard.idle.take(now_s)
            return _NOTHING
        if frame.size and handle is not Link._message:
            raise PeerError(
                Reason.PROTOCOL_ERROR, f"frame of type {frame.kind} with {frame.size} bytes of body"
            )
        return handle(self, frame, now_s)

    def _message(self, frame: Frame, now_s: float) -> Sequence[Event]:
        side = self.side
        if isinstance(side, Owed):
            if frame.kind != REQUEST:
                raise PeerError(Reason.PROTOCOL_ERROR, "RESPONSE from a client")
            event = side.received(frame, now_s)
            return _NOTHING if event is None else [event]
        if frame.kind != RESPONSE:
            raise PeerError(Reason.PROTOCOL_ERROR, "REQUEST from a server")
        event = side.received(frame, now_s)
        if event is None:
            return _NOTHING
        return [event, *side.place_waiting()] if side.anybody_waits else [event]

    def _hello(self, frame: Frame, now_s: float) -> Sequence[Event]:
        if self.flow.peer is not None:
            raise PeerError(Reason.PROTOCOL_ERROR, "a second HELLO")
        hello = decode_hello(frame.header)
        agreement = agree(self.flow.settings, hello)
        self.flow.peer = hello
        self.pulse.greeted()
        events: list[Event] = [Negotiated(agreement, hello)]
        if isinstance(self.side, Calls):
            events += self.side.place_waiting()
        return events

    def _ping(self, frame: Frame, now_s: float) -> Sequence[Event]:
        self.flow.guard.pings.take(now_s)
        self.flow.owe(encode_frame(FrameType.PONG, frame.request_id))
        return _NOTHING

    def _pong(self, frame: Frame, now_s: float) -> Sequence[Event]:
        rtt_s = self.pulse.pong(frame.request_id, now_s)
        if rtt_s is None:
            self.flow.guard.idle.take(now_s)
            return _NOTHING
        return [PongReceived(rtt_s)]

    def _goaway(self, frame: Frame, now_s: float) -> Sequence[Event]:
        self.flow.guard.idle.take(now_s)
        code, text = decode_goaway(frame.header)
        self.got_goaway = True
        events: list[Event] = [GoAwayReceived(frame.request_id, code, text)]
        if isinstance(self.side, Calls):
            why = f"the peer takes no new requests: {text or code}"
            events += self.side.refused_above(frame.request_id, why)
            events += self.side.place_waiting()
        return events

    def _cancel(self, frame: Frame, now_s: float) -> Sequence[Event]:
        if not isinstance(self.side, Owed):
            raise PeerError(Reason.PROTOCOL_ERROR, "CANCEL from a server")
        event = self.side.cancelled(frame, now_s)
        return _NOTHING if event is None else [event]

    def _window(self, frame: Frame, now_s: float) -> Sequence[Event]:
        self.flow.guard.idle.take(now_s)
        # Of a message that is over: it was on its way when we cancelled or ended it.
        self.flow.outbox.grant(frame.request_id, decode_window(frame.header))
        return _NOTHING

    def say_goaway(self, last_id: int, reason: Reason, text: str) -> None:
        """Queue a GOAWAY."""
        self.said_goaway = True
        header = encode_goaway(reason, text)
        self.flow.outbox.control(encode_frame(FrameType.GOAWAY, last_id, header))

    def fail(self, error: PeerError) -> list[Event]:
        """End the connection over what the peer did."""
        events = self.end_all(str(error))
        last_id = self.side.last_delivered if isinstance(self.side, Owed) else 0
        self.say_goaway(last_id, error.reason, str(error))
        events.append(ConnectionFailed(error))
        return events

    def end_all(self, text: str) -> list[Event]:
        """The end of each open request; control frames stay, to be sent if that is possible."""
        events = self.side.lost() if isinstance(self.side, Owed) else self.side.lost(text)
        self.flow.outbox.drop_all()
        self.flow.inbox.clear()
        self.failed = True
        return events


_HANDLERS: dict[int, _Handler] = {
    FrameType.REQUEST: Link._message,
    FrameType.RESPONSE: Link._message,
    FrameType.PING: Link._ping,
    FrameType.PONG: Link._pong,
    FrameType.GOAWAY: Link._goaway,
    FrameType.CANCEL: Link._cancel,
    FrameType.HELLO: Link._hello,
    FrameType.WINDOW: Link._window,
}
