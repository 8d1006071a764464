"""The calling side: requests of ours, each until its response or its failure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from proxy.wire.mesh.errors import CannotSend, PeerError, Reason, Refusal
from proxy.wire.mesh.events import Event, Fate, RequestFailed, ResponseReceived
from proxy.wire.mesh.flow import Flow
from proxy.wire.mesh.frames import (
    CONTINUED,
    MAX_ID,
    REQUEST,
    Frame,
    FrameType,
    encode_frame,
)
from proxy.wire.mesh.headers import RequestHeader, decode_response, encode_request
from proxy.wire.mesh.pieces import Body, length_of
from proxy.wire.mesh.settings import Hello


@dataclass(frozen=True, slots=True)
class WaitingState:
    """A request that waits for the peer's HELLO or for a place there."""

    request_id: int
    header: bytes
    body: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class CallsState:
    """The requests without a response; `placed` have a place at the peer."""

    next_id: int
    placed: tuple[int, ...]
    waiting: tuple[WaitingState, ...]


class Calls:
    """Requests by id: `waiting` for a place at the peer, then placed: sent or being sent."""

    __slots__ = ("_flow", "_next_id", "_placed", "_waiting", "_waiting_bytes")

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._next_id = 1
        self._placed: dict[int, None] = {}
        self._waiting: OrderedDict[int, tuple[bytes, Body, int]] = OrderedDict()
        self._waiting_bytes = 0

    def __len__(self) -> int:
        return len(self._placed) + len(self._waiting)

    @property
    def last_id(self) -> int:
        """The last id that was given to a request."""
        return self._next_id - 1

    def send(self, header: RequestHeader, body: Body) -> int:
        """Take a request and return its id. Raises CannotSend."""
        flow, settings = self._flow, self._flow.settings
        if len(self._placed) + len(self._waiting) >= settings.max_open or self._next_id > MAX_ID:
            raise CannotSend(Refusal.TOO_MANY, f"{len(self)} requests are open on this connection")
        length = length_of(body)
        raw = encode_request(header, length)
        if flow.peer is not None and (error := _misfit(flow.peer, raw, length)):
            raise CannotSend(Refusal.TOO_LARGE, error)
        size = len(raw) + length
        queued = flow.outbox.queued_bytes + self._waiting_bytes
        if queued and queued + size > settings.max_queued:
            raise CannotSend(
                Refusal.QUEUE_FULL, f"{queued} bytes wait for the peer, {size} more do not fit"
            )
        request_id = self._next_id
        self._next_id += 1
        if self._waiting or flow.peer is None or len(self._placed) >= flow.peer.max_streams:
            self._waiting[request_id] = (raw, body, size)
            self._waiting_bytes += size
        else:
            self._place(flow.peer, request_id, raw, body, length)
        return request_id

    def _place(self, peer: Hello, request_id: int, raw: bytes, body: Body, length: int) -> None:
        self._placed[request_id] = None
        self._flow.outbox.add(request_id, REQUEST, raw, body, length, peer.stream_window)

    @property
    def anybody_waits(self) -> bool:
        """Whether `place_waiting` may have something to do."""
        return bool(self._waiting)

    def place_waiting(self) -> list[Event]:
        """Give free places at the peer to those who wait, in order."""
        events: list[Event] = []
        peer = self._flow.peer
        while self._waiting and peer is not None and len(self._placed) < peer.max_streams:
            request_id, (raw, body, size) = self._waiting.popitem(last=False)
            self._waiting_bytes -= size
            if error := _misfit(peer, raw, size - len(raw)):
                events.append(RequestFailed(request_id, Fate.NEVER_PROCESSED, error))
            else:
                self._place(peer, request_id, raw, body, size - len(raw))
        return events

    def cancel(self, request_id: int) -> None:
        """Give a request up; nothing happens when it is over already."""
        if request_id in self._waiting:
            self._waiting_bytes -= self._waiting.pop(request_id)[2]
        elif request_id in self._placed:
            self._give_up(request_id)
            self._end(request_id)

    def _give_up(self, request_id: int) -> bool:
        """Stop sending; tell the peer when it knows the request, and return whether it does."""
        outbox = self._flow.outbox
        known = outbox.drop(request_id) if request_id in outbox else True
        if known:
            outbox.control(encode_frame(FrameType.CANCEL, request_id))
        return known

    def _end(self, request_id: int) -> None:
        del self._placed[request_id]
        self._flow.release(request_id)

    def received(self, frame: Frame, now_s: float) -> Event | None:
        """Take a frame of a response; the event when it completes one. Raises PeerError."""
        request_id = frame.request_id
        if request_id not in self._placed:
            last_sent = next(iter(self._waiting), self._next_id) - 1
            self._flow.late(frame, last_sent, now_s)
            return None
        if frame.flags & CONTINUED:
            incoming = self._flow.go_on(frame, now_s)
            if incoming is None:
                return None
            header, _ = decode_response(incoming.header)
            body = incoming.body.held()
        else:
            header, length = decode_response(frame.header)
            if request_id in self._flow.outbox and not self._give_up(request_id):
                raise PeerError(
                    Reason.PROTOCOL_ERROR, f"response {request_id}, its request was not sent"
                )
            whole = self._flow.begin(frame, length, now_s)
            if whole is None:
                return None
            body = whole
        self._end(request_id)
        return ResponseReceived(request_id, header, body)

    def refused_above(self, last_id: int, text: str) -> list[Event]:
        """End what the peer's GOAWAY leaves out: it was never processed."""
        events: list[Event] = []
        for request_id in [i for i in (*self._placed, *self._waiting) if i > last_id]:
            events.append(RequestFailed(request_id, Fate.NEVER_PROCESSED, text))
            if request_id in self._waiting:
                self._waiting_bytes -= self._waiting.pop(request_id)[2]
            else:
                self._flow.outbox.drop(request_id)
                self._end(request_id)
        return events

    def lost(self, text: str) -> list[Event]:
        """End everything, because nothing comes any more."""
        outbox = self._flow.outbox
        fates = {
            request_id: Fate.NEVER_PROCESSED if request_id in outbox else Fate.UNKNOWN
            for request_id in self._placed
        }
        fates.update(dict.fromkeys(self._waiting, Fate.NEVER_PROCESSED))
        self._placed.clear()
        self._waiting.clear()
        self._waiting_bytes = 0
        return [RequestFailed(request_id, fate, text) for request_id, fate in fates.items()]

    def export(self) -> CallsState:
        """For `restore`."""
        waiting = (
            WaitingState(request_id, raw, (body,) if isinstance(body, bytes) else body)
            for request_id, (raw, body, _) in self._waiting.items()
        )
        return CallsState(self._next_id, tuple(self._placed), tuple(waiting))

    @classmethod
    def restore(cls, flow: Flow, state: CallsState) -> Calls:
        """The calls of `state`, over the queues of the same moment."""
        calls = cls(flow)
        calls._next_id = state.next_id
        calls._placed.update(dict.fromkeys(state.placed))
        for w in state.waiting:
            size = len(w.header) + length_of(w.body)
            calls._waiting[w.request_id] = (w.header, w.body, size)
            calls._waiting_bytes += size
        return calls


def _misfit(peer: Hello, raw: bytes, length: int) -> str | None:
    if len(raw) > peer.max_header:
        return f"header of {len(raw)} bytes, the peer takes {peer.max_header}"
    if length > peer.max_body:
        return f"body of {length} bytes, the peer takes {peer.max_body}"
    return None
