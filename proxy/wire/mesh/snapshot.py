"""A connection's state as bytes and back, for the hand-over to another process of the node.

    old: encode_state(connection.export(unsent))   new: MeshConnection.restore(decode_state(raw))

The form is mesh_state.proto. A reader takes each format up to its own STATE_FORMAT; who
writes asks the reader's number first, and keeps its connection when that is lower.

What the old driver does: it stops reading, exports, and sends the descriptor along. `unsent`
is what it took by `data_to_send` and its socket did not take. Events that it was given stay
its own: it finishes the requests that it began, and passes each outcome on by request id, to
be given to the new one's `send_response` (a server), or gets each ResponseReceived and
RequestFailed from there (a client). Nothing of it is lost when the new one refuses: the old
connection may go on until something else has read or written its socket.
"""

from __future__ import annotations

from dataclasses import fields

from google.protobuf.message import DecodeError

from proxy.wire.mesh import mesh_pb2, mesh_state_pb2
from proxy.wire.mesh.calls import CallsState, WaitingState
from proxy.wire.mesh.errors import StateError
from proxy.wire.mesh.guard import BudgetState, GuardState
from proxy.wire.mesh.inbox import InboxState, IncomingState
from proxy.wire.mesh.outbox import OutboxState, OutgoingState
from proxy.wire.mesh.owed import OwedState
from proxy.wire.mesh.pulse import PulseState
from proxy.wire.mesh.settings import Hello, Settings
from proxy.wire.mesh.state import ConnectionState, contradiction

STATE_FORMAT = 1
"""What `encode_state` writes, and the highest that `decode_state` takes."""

_SETTINGS = tuple(field.name for field in fields(Settings) if field.name != "features")
_HELLO = tuple(field.name for field in fields(Hello) if field.name != "features")


def encode_state(state: ConnectionState) -> bytes:
    """The state as bytes; bodies are copied once."""
    message = mesh_state_pb2.Connection(
        format=STATE_FORMAT,
        settings=mesh_state_pb2.Settings(
            **{name: getattr(state.settings, name) for name in _SETTINGS},
            features=sorted(state.settings.features),
        ),
        unread=state.unread,
        unsent=state.unsent,
        outbox=mesh_state_pb2.Outbox(
            control=state.outbox.control,
            ready=map(_outgoing_message, state.outbox.ready),
            stalled=map(_outgoing_message, state.outbox.stalled),
        ),
        inbox=_inbox_message(state.inbox),
        guard=_guard_message(state.guard),
        pulse=_pulse_message(state.pulse),
        said_goaway=state.said_goaway,
        got_goaway=state.got_goaway,
        failed=state.failed,
    )
    if state.peer is not None:
        known = {name: getattr(state.peer, name) for name in _HELLO}
        features = sorted(state.peer.features)
        message.peer.CopyFrom(mesh_pb2.Hello(**known, features=features))
    if isinstance(state.side, CallsState):
        message.calls.CopyFrom(_calls_message(state.side))
    else:
        message.owed.CopyFrom(_owed_message(state.side))
    return message.SerializeToString()


def decode_state(raw: bytes) -> ConnectionState:
    """The state of these bytes. Raises StateError when they are none that this version takes."""
    try:
        message = mesh_state_pb2.Connection.FromString(raw)
    except (DecodeError, UnicodeDecodeError):
        raise StateError(f"{len(raw)} bytes are no state of a mesh connection") from None
    if not 1 <= message.format <= STATE_FORMAT:
        raise StateError(
            f"state of a mesh connection in format {message.format}, "
            f"this agent takes 1 to {STATE_FORMAT}"
        )
    try:
        settings = _settings(message.settings)
    except ValueError as error:
        raise StateError(f"state of a mesh connection: {error}") from None
    state = ConnectionState(
        settings=settings,
        peer=_hello(message.peer) if message.HasField("peer") else None,
        side=_side(message),
        unread=message.unread,
        unsent=message.unsent,
        outbox=OutboxState(
            tuple(message.outbox.control),
            tuple(map(_outgoing, message.outbox.ready)),
            tuple(map(_outgoing, message.outbox.stalled)),
        ),
        inbox=_inbox(message.inbox),
        guard=_guard(message.guard),
        pulse=_pulse(message.pulse),
        said_goaway=message.said_goaway,
        got_goaway=message.got_goaway,
        failed=message.failed,
    )
    if why := contradiction(state):
        raise StateError(f"state of a mesh connection: {why}")
    return state


def _settings(message: mesh_state_pb2.Settings) -> Settings:
    known = {name: getattr(message, name) for name in _SETTINGS if message.HasField(name)}
    return Settings(features=frozenset(message.features), **known)


def _hello(message: mesh_pb2.Hello) -> Hello:
    known = {name: getattr(message, name) for name in _HELLO}
    return Hello(features=frozenset(message.features), **known)


def _calls_message(side: CallsState) -> mesh_state_pb2.Calls:
    return mesh_state_pb2.Calls(
        next_id=side.next_id,
        placed=side.placed,
        waiting=[
            mesh_state_pb2.Waiting(request_id=w.request_id, header=w.header, body=w.body)
            for w in side.waiting
        ],
    )


def _owed_message(side: OwedState) -> mesh_state_pb2.Owed:
    return mesh_state_pb2.Owed(
        last_seen=side.last_seen,
        last_delivered=side.last_delivered,
        last_taken=side.last_taken,
        owed=side.owed,
    )


def _side(message: mesh_state_pb2.Connection) -> CallsState | OwedState:
    which = message.WhichOneof("side")
    if which == "calls":
        calls = message.calls
        waiting = (WaitingState(w.request_id, w.header, tuple(w.body)) for w in calls.waiting)
        return CallsState(calls.next_id, tuple(calls.placed), tuple(waiting))
    if which == "owed":
        owed = message.owed
        last_taken = owed.last_taken if owed.HasField("last_taken") else None
        return OwedState(owed.last_seen, owed.last_delivered, last_taken, tuple(owed.owed))
    raise StateError("state of a mesh connection: neither a client's nor a server's")


def _outgoing_message(state: OutgoingState) -> mesh_state_pb2.Outgoing:
    return mesh_state_pb2.Outgoing(
        request_id=state.request_id,
        kind=state.kind,
        header=state.header,
        body=state.body,
        credit=state.credit,
        started=state.started,
    )


def _outgoing(message: mesh_state_pb2.Outgoing) -> OutgoingState:
    return OutgoingState(
        message.request_id,
        message.kind,
        message.header,
        tuple(message.body),
        message.credit,
        message.started,
    )


def _incoming_message(state: IncomingState) -> mesh_state_pb2.Incoming:
    return mesh_state_pb2.Incoming(
        request_id=state.request_id,
        header=state.header,
        arrived_s=state.arrived_s,
        body=state.body,
        length=state.length,
        credit=state.credit,
    )


def _incoming(message: mesh_state_pb2.Incoming) -> IncomingState:
    return IncomingState(
        message.request_id,
        message.header,
        message.arrived_s,
        tuple(message.body),
        message.length,
        message.credit,
    )


def _inbox_message(state: InboxState) -> mesh_state_pb2.Inbox:
    return mesh_state_pb2.Inbox(
        bodies=map(_incoming_message, state.bodies),
        waiting=state.waiting,
        reserved=[
            mesh_state_pb2.Reserved(request_id=request_id, size=size)
            for request_id, size in state.reserved
        ],
    )


def _inbox(message: mesh_state_pb2.Inbox) -> InboxState:
    return InboxState(
        tuple(map(_incoming, message.bodies)),
        tuple(message.waiting),
        tuple((reserved.request_id, reserved.size) for reserved in message.reserved),
    )


def _guard_message(state: GuardState) -> mesh_state_pb2.Guard:
    return mesh_state_pb2.Guard(
        pings=_budget_message(state.pings),
        cancels=_budget_message(state.cancels),
        idle=_budget_message(state.idle),
    )


def _guard(message: mesh_state_pb2.Guard) -> GuardState:
    return GuardState(_budget(message.pings), _budget(message.cancels), _budget(message.idle))


def _budget_message(state: BudgetState) -> mesh_state_pb2.Budget:
    return mesh_state_pb2.Budget(tokens=state.tokens, at_s=state.at_s)


def _budget(message: mesh_state_pb2.Budget) -> BudgetState:
    return BudgetState(message.tokens, message.at_s)


def _pulse_message(state: PulseState) -> mesh_state_pb2.Pulse:
    return mesh_state_pb2.Pulse(
        started_s=state.started_s,
        heard_s=state.heard_s,
        last_ping=state.last_ping,
        ping_sent_s=state.ping_sent_s,
    )


def _pulse(message: mesh_state_pb2.Pulse) -> PulseState:
    ping_sent_s = message.ping_sent_s if message.HasField("ping_sent_s") else None
    return PulseState(message.started_s, message.heard_s, message.last_ping, ping_sent_s)
