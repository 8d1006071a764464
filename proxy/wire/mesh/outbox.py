"""What waits to be sent: control frames first, then one frame of each body in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from proxy.wire.mesh.errors import PeerError, Reason
from proxy.wire.mesh.frames import (
    CONTINUED,
    HEAD,
    HEAD_SIZE,
    MAGIC,
    MAX_FRAME_BODY,
    MORE,
    FrameType,
)
from proxy.wire.mesh.pieces import Body

Buffer = bytes | memoryview

_JOIN_BELOW = 16 * 1024
"""A frame below this leaves in one piece; a larger body is never copied (performance.md)."""
MAX_CREDIT = 2**31 - 1
"""Bytes that a message may be allowed beyond what was sent of it."""


@dataclass(frozen=True, slots=True)
class OutgoingState:
    """A message that is not sent to its end. `body` is what is left of it."""

    request_id: int
    kind: int
    header: bytes
    body: tuple[bytes, ...]
    credit: int
    started: bool


@dataclass(frozen=True, slots=True)
class OutboxState:
    """Everything that waits, in the order in which it would leave."""

    control: tuple[bytes, ...]
    ready: tuple[OutgoingState, ...]
    stalled: tuple[OutgoingState, ...]


class _Outgoing:
    __slots__ = ("credit", "header", "kind", "left", "pieces", "started")

    def __init__(
        self, kind: int, header: bytes, body: Body, length: int, credit: int, started: bool
    ) -> None:
        self.kind = kind
        self.header = header
        self.pieces: list[Buffer] = [body] if isinstance(body, bytes) else [*reversed(body)]
        """What is left of the body, the last piece first."""
        self.left = length
        self.credit = credit
        self.started = started

    def take(self, size: int) -> list[Buffer]:
        """The next `size` bytes of the body, without a copy."""
        taken: list[Buffer] = []
        self.left -= size
        self.credit -= size
        while size:
            piece = self.pieces.pop()
            if len(piece) > size:
                view = memoryview(piece)
                self.pieces.append(view[size:])
                piece = view[:size]
            taken.append(piece)
            size -= len(piece)
        return taken

    def export(self, request_id: int) -> OutgoingState:
        body = tuple(bytes(piece) for piece in reversed(self.pieces) if piece)
        return OutgoingState(
            request_id, int(self.kind), self.header, body, self.credit, self.started
        )


class Outbox:
    """Control frames, and messages of which each has credit of its own.

    Messages take turns of one frame, at most 64 KiB of body, so a small one waits for one
    frame of each other at most, however large they are. A message without credit stands
    aside until `grant`. Bodies are kept by reference and not copied.
    """

    __slots__ = ("_control", "_ready", "_stalled", "queued_bytes")

    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._ready: OrderedDict[int, _Outgoing] = OrderedDict()
        self._stalled: dict[int, _Outgoing] = {}
        self.queued_bytes = 0
        """Bytes of headers and bodies that wait; control frames do not count."""

    @property
    def empty(self) -> bool:
        """Whether everything was taken by `pull`."""
        return not (self._control or self._ready or self._stalled)

    @property
    def sendable(self) -> bool:
        """Whether `pull` would return something."""
        return bool(self._control or self._ready)

    @property
    def control_frames(self) -> int:
        """How many control frames wait."""
        return len(self._control)

    def __len__(self) -> int:
        """How many messages are not sent to their end."""
        return len(self._ready) + len(self._stalled)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._ready or request_id in self._stalled

    def control(self, frame: bytes) -> None:
        """Put a whole frame before all messages, behind other control frames."""
        self._control.append(frame)

    def add(
        self, request_id: int, kind: FrameType, header: bytes, body: Body, length: int, credit: int
    ) -> None:
        """Put a message behind the others.

        `length` is the body's; `credit` is how much of it may be sent to begin with.
        """
        self.queued_bytes += length + len(header)
        self._ready[request_id] = _Outgoing(kind, header, body, length, credit, started=False)

    def grant(self, request_id: int, credit: int) -> bool:
        """Let a message go on; False when there is none of this id. Raises PeerError."""
        message = self._ready.get(request_id) or self._stalled.get(request_id)
        if message is None:
            return False
        if message.credit + credit > MAX_CREDIT:
            raise PeerError(
                Reason.FLOW_CONTROL,
                f"WINDOW of {credit} for request {request_id} lifts its credit over {MAX_CREDIT}",
            )
        message.credit += credit
        if self._stalled.pop(request_id, None) is not None:
            self._ready[request_id] = message
        return True

    def drop(self, request_id: int) -> bool:
        """Forget a message; True when a frame of it was sent, so that the peer knows it."""
        message = self._ready.pop(request_id, None) or self._stalled.pop(request_id, None)
        if message is None:
            return False
        self._forget(message)
        return message.started

    def drop_all(self) -> None:
        """Forget all messages; control frames stay."""
        self._ready.clear()
        self._stalled.clear()
        self.queued_bytes = 0

    def pull(self, max_bytes: int) -> list[Buffer]:
        """The next bytes to send, `max_bytes` and at most one frame more.

        A message of which the last frame is pulled is no longer in the outbox.
        """
        parts: list[Buffer] = []
        room = max_bytes
        control, ready = self._control, self._ready
        while control and room > 0:
            parts.append(control.popleft())
            room -= len(parts[-1])
        while ready and room > 0:
            room -= self._pull_frame(parts)
        return parts

    def _pull_frame(self, parts: list[Buffer]) -> int:
        """Append one frame of the message whose turn it is; return its size."""
        request_id, message = self._ready.popitem(last=False)
        size, header = message.left, message.header
        if size < _JOIN_BELOW and size <= message.credit and not message.started:
            # All of a small message, as nearly every one is.
            header_size = len(header)
            head = HEAD.pack(MAGIC, 0, message.kind, 0, header_size, size, request_id)
            pieces = message.pieces
            body = pieces[0] if len(pieces) == 1 else b"".join(reversed(pieces))
            parts.append(b"".join((head, header, body)))
            self.queued_bytes -= size + header_size
            return HEAD_SIZE + header_size + size
        return self._pull_piece(request_id, message, parts)

    def _pull_piece(self, request_id: int, message: _Outgoing, parts: list[Buffer]) -> int:
        size = min(message.left, message.credit, MAX_FRAME_BODY)
        flags = MORE if size < message.left else 0
        header = message.header
        if message.started:
            header = b""
            flags |= CONTINUED
        message.started = True
        head = HEAD.pack(MAGIC, flags, message.kind, 0, len(header), size, request_id)
        pieces = message.take(size)
        self.queued_bytes -= len(header) + size
        if size < _JOIN_BELOW:
            parts.append(b"".join((head, header, *pieces)))
        else:
            parts.append(head + header)
            parts += pieces
        if flags & MORE:
            queue = self._ready if message.credit else self._stalled
            queue[request_id] = message
        return HEAD_SIZE + len(header) + size

    def _forget(self, message: _Outgoing) -> None:
        self.queued_bytes -= message.left + (0 if message.started else len(message.header))

    def export(self) -> OutboxState:
        """Everything that waits, for `restore`; copies what is left of partly sent bodies."""
        return OutboxState(
            tuple(self._control),
            tuple(message.export(request_id) for request_id, message in self._ready.items()),
            tuple(message.export(request_id) for request_id, message in self._stalled.items()),
        )

    @classmethod
    def restore(cls, state: OutboxState) -> Outbox:
        """An outbox that goes on where the exported one stood."""
        outbox = cls()
        outbox._control.extend(state.control)
        outbox._ready.update(outbox._load(state.ready))
        outbox._stalled.update(outbox._load(state.stalled))
        return outbox

    def _load(self, states: Iterable[OutgoingState]) -> Iterable[tuple[int, _Outgoing]]:
        for s in states:
            length = sum(map(len, s.body))
            message = _Outgoing(s.kind, s.header, s.body, length, s.credit, s.started)
            self.queued_bytes += message.left + (0 if s.started else len(s.header))
            yield s.request_id, message
