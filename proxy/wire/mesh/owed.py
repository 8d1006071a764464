"""The serving side: requests of the peer, each until its response is sent."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.wire.mesh.errors import CannotSend, PeerError, Reason, Refusal
from proxy.wire.mesh.events import Event, RequestCancelled, RequestReceived
from proxy.wire.mesh.flow import Flow
from proxy.wire.mesh.frames import CONTINUED, RESPONSE, Frame
from proxy.wire.mesh.headers import (
    RequestHeader,
    ResponseHeader,
    decode_request,
    encode_response,
)
from proxy.wire.mesh.pieces import Body, length_of

ALWAYS_FITS = 1024
"""A response of at most so many bytes is taken whatever waits: an error can always be told."""


@dataclass(frozen=True, slots=True)
class OwedState:
    """The requests without a response; `last_taken` is None before our GOAWAY."""

    last_seen: int
    last_delivered: int
    last_taken: int | None
    owed: tuple[int, ...]


class Owed:
    """Requests by id: coming in (in the inbox), owed a response, being answered (outbox)."""

    __slots__ = ("_flow", "_last_delivered", "_last_seen", "_last_taken", "_owed")

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._last_seen = 0
        self._last_delivered = 0
        self._last_taken: int | None = None
        self._owed: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._flow.inbox) + len(self._owed) + len(self._flow.outbox)

    @property
    def last_delivered(self) -> int:
        """The highest id that the driver was told of; a higher one was never processed."""
        return self._last_delivered

    def refuse_new(self) -> int:
        """Take no request that did not begin yet; the last id that is still taken."""
        if self._last_taken is None:
            self._last_taken = self._last_seen
        return self._last_taken

    def received(self, frame: Frame, now_s: float) -> Event | None:
        """Take a frame of a request; the event when it completes one. Raises PeerError."""
        request_id = frame.request_id
        if frame.flags & CONTINUED:
            if request_id not in self._flow.inbox:
                self._flow.late(frame, self._last_seen, now_s)
                return None
            incoming = self._flow.go_on(frame, now_s)
            if incoming is None:
                return None
            header, _ = decode_request(incoming.header)
            return self._deliver(request_id, header, incoming.body.held(), incoming.arrived_s)
        self._check_new(request_id)
        self._last_seen = request_id
        if self._last_taken is not None:
            return None
        header, length = decode_request(frame.header)
        body = self._flow.begin(frame, length, now_s)
        return None if body is None else self._deliver(request_id, header, body, now_s)

    def _check_new(self, request_id: int) -> None:
        if request_id <= self._last_seen:
            raise PeerError(
                Reason.PROTOCOL_ERROR,
                f"REQUEST {request_id} after {self._last_seen}: ids must rise",
            )
        if len(self) >= self._flow.settings.max_streams:
            raise PeerError(
                Reason.TOO_MANY_STREAMS,
                f"REQUEST {request_id} beside {len(self)} open ones, at most "
                f"{self._flow.settings.max_streams} are taken",
            )

    def _deliver(
        self, request_id: int, header: RequestHeader, body: tuple[bytes, ...], arrived_s: float
    ) -> RequestReceived:
        self._owed[request_id] = None
        if request_id > self._last_delivered:
            self._last_delivered = request_id
        left_ms = header.deadline_ms
        deadline_s = None if left_ms is None else arrived_s + left_ms / 1000
        return RequestReceived(request_id, header, body, arrived_s, deadline_s)

    def respond(self, request_id: int, header: ResponseHeader, body: Body) -> bool:
        """Answer a request; False when nobody waits for it any more. Raises CannotSend."""
        flow = self._flow
        if request_id not in self._owed or flow.peer is None:
            return False
        length = length_of(body)
        raw = encode_response(header, length)
        if length > flow.peer.max_body or len(raw) > flow.peer.max_header:
            raise CannotSend(
                Refusal.TOO_LARGE,
                f"response {request_id}: body of {length} and header of {len(raw)} bytes, the "
                f"peer takes {flow.peer.max_body} and {flow.peer.max_header}",
            )
        size = len(raw) + length
        queued = flow.outbox.queued_bytes
        if size > ALWAYS_FITS and queued and queued + size > flow.settings.max_queued:
            raise CannotSend(
                Refusal.QUEUE_FULL,
                f"response {request_id}: {queued} bytes wait for the peer, {size} more do not fit",
            )
        del self._owed[request_id]
        flow.release(request_id)
        flow.outbox.add(request_id, RESPONSE, raw, body, length, flow.peer.stream_window)
        flow.guard.cancels.earn()
        return True

    def cancelled(self, frame: Frame, now_s: float) -> Event | None:
        """The caller of a request has gone. Raises PeerError."""
        request_id = frame.request_id
        was_owed = request_id in self._owed
        if self._flow.release(request_id) or was_owed:
            self._flow.guard.cancels.take(now_s)
        elif not self._flow.outbox.drop(request_id):
            self._flow.late(frame, self._last_seen, now_s)
        if not was_owed:
            return None
        del self._owed[request_id]
        return RequestCancelled(request_id)

    def lost(self) -> list[Event]:
        """End everything, because nothing can be answered any more."""
        events: list[Event] = [RequestCancelled(request_id) for request_id in self._owed]
        self._owed.clear()
        return events

    def export(self) -> OwedState:
        """For `restore`."""
        return OwedState(self._last_seen, self._last_delivered, self._last_taken, tuple(self._owed))

    @classmethod
    def restore(cls, flow: Flow, state: OwedState) -> Owed:
        """What is owed in `state`, over the queues of the same moment."""
        owed = cls(flow)
        owed._last_seen = state.last_seen
        owed._last_delivered = state.last_delivered
        owed._last_taken = state.last_taken
        owed._owed.update(dict.fromkeys(state.owed))
        return owed
