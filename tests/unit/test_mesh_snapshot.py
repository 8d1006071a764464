"""A connection's state as bytes: complete, and refused where it cannot be taken."""

from __future__ import annotations

from dataclasses import fields, replace
from random import Random

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire.mesh import (
    STATE_FORMAT,
    ConnectionState,
    MeshConnection,
    RequestReceived,
    Settings,
    StateError,
    decode_state,
    encode_state,
    mesh_state_pb2,
)
from proxy.wire.mesh.calls import CallsState, WaitingState
from proxy.wire.mesh.guard import BudgetState, GuardState
from proxy.wire.mesh.inbox import InboxState, IncomingState
from proxy.wire.mesh.outbox import OutboxState, OutgoingState
from proxy.wire.mesh.owed import OwedState
from proxy.wire.mesh.pulse import PulseState
from proxy.wire.mesh.settings import Hello
from tests.unit.mesh_ends import HEADER, OK, Call, Pipe, exchange, moved, pair, sent

SETTINGS = Settings(
    min_version=2,
    max_version=3,
    features=frozenset({"a", "b"}),
    max_streams=11,
    max_open=12,
    stream_window=13,
    max_body=114,
    max_header=15,
    max_buffered=116,
    max_queued=117,
    hello_timeout_s=1.5,
    ping_interval_s=2.5,
    ping_timeout_s=3.5,
    agent="agent",
    app="app",
    zone="zone",
)
PEER = Hello(4, 5, frozenset({"c"}), 21, 22, 23, 24, "their agent", "their app", "their zone")
CLIENT = ConnectionState(
    settings=SETTINGS,
    peer=PEER,
    side=CallsState(31, (32, 33), (WaitingState(34, b"h", (b"x", b"", b"y")),)),
    unread=b"MOA",
    unsent=b"unsent",
    outbox=OutboxState(
        (b"one", b"two"),
        (OutgoingState(41, 1, b"h", (b"x", b"y"), 42, started=False),),
        (OutgoingState(43, 1, b"i", (b"z",), 0, started=True),),
    ),
    inbox=InboxState(
        (IncomingState(51, b"h", 0.1, (b"x",), 52, 53), IncomingState(54, b"", 0.2, (), 55, 0)),
        (54,),
        ((51, 56),),
    ),
    guard=GuardState(BudgetState(0.3, 61.0), BudgetState(0.4, 62.0), BudgetState(0.5, 63.0)),
    pulse=PulseState(71.0, 72.0, 73, 74.0),
    said_goaway=True,
    got_goaway=True,
    failed=False,
)
FAILED = ConnectionState(
    settings=SETTINGS,
    peer=PEER,
    side=CallsState(31, (), ()),
    unread=b"",
    unsent=b"",
    outbox=OutboxState((b"GOAWAY",), (), ()),
    inbox=InboxState((), (), ()),
    guard=CLIENT.guard,
    pulse=CLIENT.pulse,
    said_goaway=True,
    got_goaway=False,
    failed=True,
)
SMALL = IncomingState(7, b"", 0.1, (), 13, 0)
SERVER = replace(
    CLIENT, side=OwedState(81, 82, 83, (84, 85)), outbox=OutboxState((), (), ()), peer=None
)


def as_message(state: ConnectionState) -> mesh_state_pb2.Connection:
    return mesh_state_pb2.Connection.FromString(encode_state(state))


def filled(message: Message) -> set[str]:
    """Full names of the fields that are not left out, in it and below."""
    names = set()
    for field, value in message.ListFields():
        names.add(field.full_name)
        for part in value if field.is_repeated else (value,):
            if isinstance(part, Message):
                names |= filled(part)
    return names


def defined(descriptor: object) -> set[str]:
    """Full names of all fields of a message, and below."""
    names: set[str] = set()
    for field in descriptor.fields:  # type: ignore[attr-defined]  # no types for descriptors
        names.add(field.full_name)
        if field.message_type is not None:
            names |= defined(field.message_type)
    return names


@pytest.mark.parametrize(
    "state", [CLIENT, SERVER, FAILED, replace(SERVER, side=OwedState(0, 0, None, ()))]
)
def test_every_value_survives(state: ConnectionState) -> None:
    assert decode_state(encode_state(state)) == state


def test_no_field_of_the_message_is_forgotten() -> None:
    seen = set().union(*(filled(as_message(state)) for state in (CLIENT, SERVER, FAILED)))
    assert seen == defined(mesh_state_pb2.Connection.DESCRIPTOR)


def test_a_connection_at_its_beginning_survives() -> None:
    for connection in (
        MeshConnection.client(Settings(), 5.0),
        MeshConnection.server(Settings(), 5.0),
    ):
        assert sent(moved(connection)) == sent(connection)


def test_a_setting_that_an_older_agent_does_not_know_is_the_default() -> None:
    message = as_message(SERVER)
    message.settings.ClearField("ping_timeout_s")
    state = decode_state(message.SerializeToString())
    assert state.settings == replace(SETTINGS, ping_timeout_s=Settings().ping_timeout_s)


def test_fields_of_a_newer_agent_are_passed_over() -> None:
    newer = encode_state(CLIENT) + b"\xa2\x06\x03new"  # field 100
    assert decode_state(newer) == CLIENT


def test_a_newer_format_is_refused() -> None:
    message = as_message(CLIENT)
    message.format = STATE_FORMAT + 1
    with pytest.raises(StateError, match="in format 2, this agent takes 1 to 1"):
        decode_state(message.SerializeToString())


def test_what_is_no_state_is_refused() -> None:
    for raw in (b"", b"\xff", b"GET /", encode_state(CLIENT)[:-3]):
        with pytest.raises(StateError):
            decode_state(raw)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"unread": b"GET"}, "begins with b'G'"),
        ({"unread": b"MOA\x01" + bytes(20)}, "expected less than one frame"),
        ({"inbox": InboxState((), (7,), ())}, "waits for room"),
        (
            {"inbox": InboxState((IncomingState(7, b"", 0.1, (), 13, 0),), (7,), ())},
            "does not need",
        ),
        ({"inbox": InboxState((IncomingState(7, b"", 0.1, (b"xx",), 1, 0),), (), ())}, "1 bytes"),
        ({"inbox": InboxState(CLIENT.inbox.bodies[:1] * 2, (), ())}, "two bodies on their way in"),
        ({"outbox": OutboxState((), CLIENT.outbox.ready * 2, ())}, "two messages on their way out"),
        ({"side": SERVER.side}, "is of type 1 with credit 42, expected 2"),
    ],
)
def test_a_state_that_contradicts_itself_is_refused(change: dict[str, object], why: str) -> None:
    with pytest.raises(StateError, match=why):
        decode_state(encode_state(replace(CLIENT, **change)))  # type: ignore[arg-type]


def test_settings_that_make_no_sense_are_refused() -> None:
    message = as_message(CLIENT)
    message.settings.max_streams = 0
    with pytest.raises(StateError, match="state of a mesh connection: max_streams 0"):
        decode_state(message.SerializeToString())


def test_the_successor_answers_what_its_predecessor_was_asked() -> None:
    """The driver hands over which request it has where; the state knows that it is owed."""
    client, server = pair()
    ids = [client.send_request(HEADER, b"%d" % n) for n in range(3)]
    events = exchange(client, server)
    assert [e.request_id for e in events if isinstance(e, RequestReceived)] == ids
    server = moved(server)
    for request_id in ids:
        assert server.send_response(request_id, OK, b"reply")
        assert not server.send_response(request_id, OK, b"again")
    exchange(client, server)
    assert client.open_requests == server.open_requests == 0


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    moment=st.integers(0, 60),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=5),
)
def test_damaged_bytes_are_refused_or_make_a_connection(
    seed: int, moment: int, flips: list[tuple[int, int]]
) -> None:
    """Nothing but StateError leaves decode_state, and what it lets pass can be used and ended."""
    limits = Settings(max_body=3000, max_buffered=3000, max_queued=9000, stream_window=100)
    pipe = Pipe(Random(seed), limits, limits, [Call(2000, 1500)] * 5)
    for _ in range(moment):
        pipe.step()
    for connection in (pipe.client, pipe.server):
        raw = bytearray(encode_state(connection.export()))
        for at, value in flips:
            raw[at % len(raw)] = value
        try:
            restored = MeshConnection.restore(decode_state(bytes(raw)))
        except StateError:
            continue
        restored.data_to_send(2**20)
        restored.receive_data(bytes(pipe.down), pipe.now_s)
        restored.tick(1e9)
        restored.connection_lost()
        assert restored.open_requests == 0 or not restored.finished


def test_the_states_have_no_value_that_the_test_above_leaves_at_its_default() -> None:
    """A new field of ConnectionState or Settings must be added here, hence to the message."""
    assert {f.name for f in fields(ConnectionState)} == {
        f.name for f in mesh_state_pb2.Connection.DESCRIPTOR.fields
    } - {"format", "calls", "owed"} | {"side"}
    assert {f.name for f in fields(Settings)} == {
        f.name for f in mesh_state_pb2.Settings.DESCRIPTOR.fields
    }
