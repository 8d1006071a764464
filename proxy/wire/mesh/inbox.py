"""Bodies on their way in, and the room that is kept for the large ones.

The length of a body is in its first frame. Up to `window` bytes of each may come at once.
What is larger waits in order for room of its own; then it gets credit for all that is left,
and its sender can always finish it. So memory is bounded, and no set of half bodies can fill
it up and wait for each other.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from proxy.wire.mesh.errors import PeerError, Reason
from proxy.wire.mesh.frames import MORE, Frame
from proxy.wire.mesh.pieces import Pieces


@dataclass(frozen=True, slots=True)
class IncomingState:
    """A body that is not complete. `header` is its Protobuf header as it was received."""

    request_id: int
    header: bytes
    arrived_s: float
    body: tuple[bytes, ...]
    length: int
    credit: int


@dataclass(frozen=True, slots=True)
class InboxState:
    """Bodies that are not complete, who waits for room, and who has how much of it."""

    bodies: tuple[IncomingState, ...]
    waiting: tuple[int, ...]
    reserved: tuple[tuple[int, int], ...]


class Incoming:
    """One body; `credit` is what its sender may still send of it."""

    __slots__ = ("arrived_s", "body", "credit", "header", "length")

    def __init__(
        self, header: bytes, arrived_s: float, body: Pieces, length: int, credit: int
    ) -> None:
        self.header = header
        self.arrived_s = arrived_s
        self.body = body
        self.length = length
        self.credit = credit


class Inbox:
    """The bodies that one side receives at a time; `window` and `room` in bytes."""

    __slots__ = ("_bodies", "_reserved", "_room", "_waiting", "_window")

    def __init__(self, window: int, room: int) -> None:
        self._window = window
        self._room = room
        self._bodies: dict[int, Incoming] = {}
        self._waiting: OrderedDict[int, None] = OrderedDict()
        self._reserved: dict[int, int] = {}

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._bodies

    def __len__(self) -> int:
        return len(self._bodies)

    @property
    def empty(self) -> bool:
        """Whether no body is incomplete and no room is taken."""
        return not (self._bodies or self._reserved)

    @property
    def waiting(self) -> bool:
        """Whether a body waits for room."""
        return bool(self._waiting)

    def begin(self, frame: Frame, length: int, max_body: int, now_s: float) -> Incoming | None:
        """Take the first frame of a body; the body when that is complete already.

        Raises PeerError when the lengths do not fit together or pass a limit.
        """
        if length > max_body:
            raise PeerError(
                Reason.TOO_LARGE,
                f"body of {length} bytes in request {frame.request_id}, at most {max_body} "
                f"are taken",
            )
        body = Incoming(frame.header, now_s, Pieces(), length, self._window)
        if self._add(body, frame):
            return body
        self._bodies[frame.request_id] = body
        if length > self._window:
            self._waiting[frame.request_id] = None
        return None

    def go_on(self, frame: Frame) -> Incoming | None:
        """Take a further frame of a body that was begun; the body when it is complete."""
        body = self._bodies[frame.request_id]
        if not self._add(body, frame):
            return None
        del self._bodies[frame.request_id]
        return body

    def _add(self, body: Incoming, frame: Frame) -> bool:
        body.credit -= frame.size
        if body.credit < 0:
            raise PeerError(
                Reason.FLOW_CONTROL,
                f"request {frame.request_id}: body goes {-body.credit} bytes over its credit",
            )
        for piece in frame.body:
            body.body.add(piece)
        missing = body.length - body.body.size
        ended = not frame.flags & MORE
        if (missing != 0) if ended else (missing <= 0):
            raise PeerError(
                Reason.PROTOCOL_ERROR,
                f"request {frame.request_id}: body of {body.length} bytes "
                f"{'ends' if ended else 'goes on'} after {body.body.size}",
            )
        return ended

    def admit(self) -> list[tuple[int, int]]:
        """Give room to those who wait, in order; their ids and the credit that each gets."""
        admitted: list[tuple[int, int]] = []
        reserved = sum(self._reserved.values())
        while self._waiting:
            request_id = next(iter(self._waiting))
            body = self._bodies[request_id]
            if reserved + body.length > self._room:
                break
            del self._waiting[request_id]
            self._reserved[request_id] = body.length
            reserved += body.length
            credit = body.length - self._window
            body.credit += credit
            admitted.append((request_id, credit))
        return admitted

    def release(self, request_id: int) -> bool:
        """Give the room of a body back, and forget it when it is incomplete.

        True when it was incomplete: more frames of it may come.
        """
        self._reserved.pop(request_id, None)
        self._waiting.pop(request_id, None)
        return self._bodies.pop(request_id, None) is not None

    def clear(self) -> None:
        """Forget everything."""
        self._bodies.clear()
        self._waiting.clear()
        self._reserved.clear()

    def export(self) -> InboxState:
        """For `restore`."""
        return InboxState(
            tuple(
                IncomingState(request_id, b.header, b.arrived_s, b.body.held(), b.length, b.credit)
                for request_id, b in self._bodies.items()
            ),
            tuple(self._waiting),
            tuple(self._reserved.items()),
        )

    def restore(self, state: InboxState) -> None:
        """Go on where another one stood."""
        for s in state.bodies:
            self._bodies[s.request_id] = Incoming(
                s.header, s.arrived_s, Pieces(s.body), s.length, s.credit
            )
        self._waiting.update(dict.fromkeys(state.waiting))
        self._reserved.update(state.reserved)
