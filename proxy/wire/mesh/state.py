"""The whole state of a connection as plain values, for a hand-over to another process."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.wire.mesh.calls import CallsState
from proxy.wire.mesh.errors import PeerError
from proxy.wire.mesh.frames import REQUEST, RESPONSE, FrameParser
from proxy.wire.mesh.guard import GuardState
from proxy.wire.mesh.inbox import InboxState
from proxy.wire.mesh.outbox import MAX_CREDIT, OutboxState
from proxy.wire.mesh.owed import OwedState
from proxy.wire.mesh.pulse import PulseState
from proxy.wire.mesh.settings import Hello, Settings


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """A connection at one moment; numbers, text, bytes, tuples and sets all the way down.

    `side` is CallsState for a client and OwedState for a server. `unread` is half a frame,
    `unsent` what `data_to_send` gave out and no socket took. Times are seconds on the
    monotonic clock, which processes of one boot share.
    """

    settings: Settings
    peer: Hello | None
    side: CallsState | OwedState
    unread: bytes
    unsent: bytes
    outbox: OutboxState
    inbox: InboxState
    guard: GuardState
    pulse: PulseState
    said_goaway: bool
    got_goaway: bool
    failed: bool


def contradiction(state: ConnectionState) -> str | None:
    """Why no connection can be in this state; None for one that can be gone on from.

    Finds what would otherwise fail later, inside of a connection that serves.
    """
    parser = FrameParser(max_header=state.settings.max_header)
    try:
        complete = len(parser.feed(state.unread))
    except PeerError as error:
        return f"unread bytes: {error}"
    if complete or parser.error is not None:
        return f"{len(state.unread)} unread bytes, expected less than one frame"
    if state.failed and _is_anything_open(state):
        return "it has failed, and has open requests"
    return _of_outbox(state) or _of_inbox(state)


def _is_anything_open(state: ConnectionState) -> bool:
    side = state.side
    requests = side.placed or side.waiting if isinstance(side, CallsState) else side.owed
    return bool(requests or state.outbox.ready or state.outbox.stalled or state.inbox.bodies)


def _of_outbox(state: ConnectionState) -> str | None:
    messages = (*state.outbox.ready, *state.outbox.stalled)
    kind = REQUEST if isinstance(state.side, CallsState) else RESPONSE
    if len({message.request_id for message in messages}) != len(messages):
        return "an id has two messages on their way out"
    for message in messages:
        if message.kind != kind or message.credit > MAX_CREDIT:
            return (
                f"message {message.request_id} is of type {message.kind} with credit "
                f"{message.credit}, expected {int(kind)} and at most {MAX_CREDIT}"
            )
    return None


def _of_inbox(state: ConnectionState) -> str | None:
    bodies = {body.request_id: body for body in state.inbox.bodies}
    if len(bodies) != len(state.inbox.bodies):
        return "an id has two bodies on their way in"
    limits = state.settings
    for body in bodies.values():
        if not sum(map(len, body.body)) <= body.length <= limits.max_body:
            return f"body {body.request_id}: {body.length} bytes, at most {limits.max_body}"
    for request_id in state.inbox.waiting:
        waits = bodies.get(request_id)
        if waits is None or waits.length <= limits.stream_window:
            return f"body {request_id} waits for room that it does not need"
    return None
