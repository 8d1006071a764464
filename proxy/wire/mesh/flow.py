"""What both sides of a connection share: what goes out, what comes in, and its limits."""

from __future__ import annotations

from proxy.wire.mesh.errors import PeerError, Reason
from proxy.wire.mesh.frames import CONTINUED, MORE, Frame, FrameType, encode_frame
from proxy.wire.mesh.guard import Guard
from proxy.wire.mesh.headers import encode_window
from proxy.wire.mesh.inbox import Inbox, Incoming
from proxy.wire.mesh.outbox import Outbox
from proxy.wire.mesh.settings import Hello, Settings

_SMALL_PIECE = 1024
"""A frame of less body whose body goes on is counted: only a flood consists of them."""
_MAX_CONTROL = 4096
"""Control frames that wait; a peer that makes us owe more does not read its connection."""


class Flow:
    """The queues of one connection; `peer` is None until its HELLO came."""

    __slots__ = ("guard", "inbox", "outbox", "peer", "settings")

    def __init__(self, settings: Settings, now_s: float) -> None:
        self.settings = settings
        self.peer: Hello | None = None
        self.outbox = Outbox()
        self.inbox = Inbox(settings.stream_window, settings.max_buffered)
        self.guard = Guard(now_s)

    def begin(self, frame: Frame, length: int, now_s: float) -> tuple[bytes, ...] | None:
        """Take the first frame of a body; the body when that is all of it.

        Raises PeerError, also when the peer already sends another body of this id.
        """
        whole = not frame.flags & MORE and frame.size == length
        if frame.request_id in self.inbox:
            raise PeerError(Reason.PROTOCOL_ERROR, f"request {frame.request_id} begins twice")
        if whole and length <= self.settings.stream_window:
            return frame.body
        body = self.inbox.begin(frame, length, self.settings.max_body, now_s)
        if body is not None:
            return body.body.held()
        self.give_room()
        return None

    def go_on(self, frame: Frame, now_s: float) -> Incoming | None:
        """Take a further frame of a body; the body when it is complete. Raises PeerError."""
        if frame.request_id not in self.inbox:
            raise PeerError(
                Reason.PROTOCOL_ERROR,
                f"request {frame.request_id}: a body goes on that did not begin",
            )
        if frame.size < _SMALL_PIECE and frame.flags & MORE:
            self.guard.idle.take(now_s)
        return self.inbox.go_on(frame)

    def late(self, frame: Frame, last_id: int, now_s: float) -> None:
        """Drop a frame of a request that is over. Raises PeerError when it never was."""
        if frame.request_id > last_id:
            kind = FrameType(frame.kind).name
            part = "continued " if frame.flags & CONTINUED else ""
            raise PeerError(
                Reason.PROTOCOL_ERROR,
                f"{part}{kind} for request {frame.request_id}, the last one is {last_id}",
            )
        self.guard.idle.take(now_s)

    def release(self, request_id: int) -> bool:
        """Free the room of a body; True when it was incomplete."""
        if self.inbox.empty:
            return False
        incomplete = self.inbox.release(request_id)
        self.give_room()
        return incomplete

    def give_room(self) -> None:
        """Send credit for the bodies that have room now; later, while too much waits."""
        if self.inbox.waiting and self.outbox.control_frames < _MAX_CONTROL:
            for request_id, credit in self.inbox.admit():
                header = encode_window(credit)
                self.outbox.control(encode_frame(FrameType.WINDOW, request_id, header))

    def owe(self, frame: bytes) -> None:
        """Queue a control frame that the peer asked for. Raises PeerError."""
        if self.outbox.control_frames >= _MAX_CONTROL:
            raise PeerError(
                Reason.FLOOD, f"{_MAX_CONTROL} control frames wait: the peer does not read"
            )
        self.outbox.control(frame)
