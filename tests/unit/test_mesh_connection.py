"""Dialogues of two mesh connections: greeting, requests, cancels, pings and goodbyes."""

from __future__ import annotations

import pytest

from proxy.wire.mesh import (
    Agreement,
    CannotSend,
    ConnectionFailed,
    Event,
    Fate,
    FrameParser,
    FrameType,
    GoAwayReceived,
    MeshConnection,
    Negotiated,
    PongReceived,
    Reason,
    Refusal,
    RequestCancelled,
    RequestFailed,
    RequestHeader,
    RequestReceived,
    ResponseHeader,
    ResponseReceived,
    Settings,
    UsageError,
    encode_frame,
)
from proxy.wire.mesh.headers import encode_goaway, encode_request, encode_response
from proxy.wire.mesh.settings import encode_hello
from tests.unit.mesh_ends import HEADER, OK, exchange, pair, sent

HELLO = encode_frame(FrameType.HELLO, 0, encode_hello(Settings()))


def kinds(wire: bytes) -> list[str]:
    return [f"{FrameType(f.kind).name} {f.request_id}" for f in FrameParser().feed(wire)]


def only(events: list[Event]) -> Event:
    assert len(events) == 1, events
    return events[0]


def failed(events: list[Event]) -> Reason:
    last = events[-1]
    assert isinstance(last, ConnectionFailed)
    return last.error.reason


def test_both_sides_greet_first_and_agree() -> None:
    ours = Settings(max_version=3, features=frozenset({"a", "b"}), zone="z")
    client = MeshConnection.client(ours, 0.0)
    server = MeshConnection.server(Settings(max_version=2, features=frozenset({"b", "c"})), 0.0)
    at_server, at_client = exchange(client, server)
    assert isinstance(at_server, Negotiated)
    assert isinstance(at_client, Negotiated)
    assert at_server.agreement == at_client.agreement == Agreement(2, frozenset({"b"}))
    assert at_server.peer.zone == "z"


def test_no_common_version_says_so_and_loses_nothing() -> None:
    client = MeshConnection.client(Settings(), 0.0)
    server = MeshConnection.server(Settings(min_version=2, max_version=3), 0.0)
    request_id = client.send_request(HEADER, b"body")
    events = client.receive_data(sent(server), 0.0)
    assert events[0] == RequestFailed(
        request_id, Fate.NEVER_PROCESSED, "no common version: 1 to 1 here, 2 to 3 there"
    )
    assert failed(events) is Reason.VERSION_MISMATCH
    assert kinds(sent(client)) == ["HELLO 0", "GOAWAY 0"]
    assert client.finished


def test_a_peer_that_was_rolled_back_is_told_apart_at_once() -> None:
    client = MeshConnection.client(Settings(), 0.0)
    client.send_request(HEADER, b"body")
    events = client.receive_data(b"-ERR unknown command\r\n", 0.0)
    assert isinstance(events[0], RequestFailed)
    assert events[0].fate is Fate.NEVER_PROCESSED
    assert failed(events) is Reason.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "first",
    [
        encode_frame(FrameType.PING, 1),
        encode_frame(FrameType.REQUEST, 1, encode_request(HEADER, 0)),
        encode_frame(FrameType.HELLO, 0, b"\xff"),
        encode_frame(FrameType.HELLO, 0, b""),
        HELLO + HELLO,
    ],
)
def test_anything_but_one_good_hello_ends_the_connection(first: bytes) -> None:
    server = MeshConnection.server(Settings(), 0.0)
    assert failed(server.receive_data(first, 0.0)) in (
        Reason.PROTOCOL_ERROR,
        Reason.VERSION_MISMATCH,
    )
    assert kinds(sent(server)) == ["HELLO 0", "GOAWAY 0"]
    assert server.receive_data(HELLO, 0.0) == []


def test_requests_wait_for_the_greeting() -> None:
    client = MeshConnection.client(Settings(), 0.0)
    client.send_request(HEADER, b"early")
    assert kinds(sent(client)) == ["HELLO 0"]
    client.receive_data(HELLO, 0.0)
    assert kinds(sent(client)) == ["REQUEST 1"]


def test_request_and_response() -> None:
    client, server = pair()
    header = RequestHeader("/service/demo", "echo", deadline_ms=1500, props={"k": "v"})
    assert client.send_request(header, (b"bo", b"dy")) == 1
    event = only(server.receive_data(sent(client), 7.0))
    assert event == RequestReceived(1, header, (b"body",), 7.0, 8.5)
    assert server.send_response(1, ResponseHeader(200, load=3), b"reply")
    event = only(client.receive_data(sent(server), 7.1))
    assert event == ResponseReceived(1, ResponseHeader(200, load=3), (b"reply",))
    assert client.open_requests == server.open_requests == 0


def test_responses_in_any_order() -> None:
    client, server = pair()
    ids = [client.send_request(HEADER, b"%d" % n) for n in range(5)]
    server.receive_data(sent(client), 0.0)
    for request_id in reversed(ids):
        assert server.send_response(request_id, OK, b"%d" % request_id)
    events = client.receive_data(sent(server), 0.0)
    assert events == [ResponseReceived(i, OK, (b"%d" % i,)) for i in reversed(ids)]


def test_a_response_is_given_once() -> None:
    client, server = pair()
    client.send_request(HEADER, b"")
    exchange(client, server)
    assert server.send_response(1, OK, b"")
    assert not server.send_response(1, OK, b"")
    assert not server.send_response(99, OK, b"")


def test_cancel_of_a_delivered_request() -> None:
    client, server = pair()
    request_id = client.send_request(HEADER, b"")
    exchange(client, server)
    assert client.cancel(request_id) == []
    wire = sent(client)
    assert kinds(wire) == ["CANCEL 1"]
    assert only(server.receive_data(wire, 0.0)) == RequestCancelled(1)
    assert not server.send_response(request_id, OK, b"late")
    assert client.cancel(request_id) == []
    assert not client.wants_write


def test_cancel_before_anything_was_sent_says_nothing() -> None:
    client, _ = pair()
    client.cancel(client.send_request(HEADER, b""))
    assert not client.wants_write
    assert client.open_requests == 0


def test_late_response_is_dropped() -> None:
    client, server = pair()
    client.send_request(HEADER, b"")
    exchange(client, server)
    server.send_response(1, OK, b"x" * 200_000)
    late = sent(server)
    client.cancel(1)
    assert client.receive_data(late, 0.0) == []
    assert server.receive_data(sent(client), 0.0) == []
    assert server.open_requests == 0
    assert server.queued_bytes == 0


def test_early_response_to_a_request_that_is_still_sent() -> None:
    client, _ = pair()
    client.send_request(HEADER, b"x" * 200_000)
    sent(client)
    early = encode_frame(FrameType.RESPONSE, 1, encode_response(OK, 2), b"no")
    assert only(client.receive_data(early, 0.0)) == ResponseReceived(1, OK, (b"no",))
    assert kinds(sent(client)) == ["CANCEL 1"]
    assert client.queued_bytes == 0


def test_ping_is_answered_and_measured() -> None:
    client, server = pair()
    assert client.ping(1.0)
    assert not client.ping(1.0)
    server.receive_data(sent(client), 1.0)
    assert only(client.receive_data(sent(server), 1.25)) == PongReceived(0.25)


def test_a_quiet_peer_is_asked_and_a_silent_one_given_up() -> None:
    settings = Settings(ping_interval_s=10, ping_timeout_s=5)
    client, server = pair(settings)
    request_id = client.send_request(HEADER, b"")
    sent(client)
    assert client.next_tick_s == 10
    assert client.tick(9.9) == []
    assert not client.wants_write
    assert client.tick(10.0) == []
    assert kinds(sent(client)) == ["PING 1"]
    assert client.next_tick_s == 15
    assert client.tick(14.9) == []
    events = client.tick(15.0)
    assert events[0] == RequestFailed(request_id, Fate.UNKNOWN, "no answer to PING within 5 s")
    assert failed(events) is Reason.TIMEOUT
    assert client.tick(99.0) == []
    assert [client.next_tick_s] == [None]
    assert server.open_requests == 0


def test_other_frames_show_life_as_well() -> None:
    client, server = pair(Settings(ping_interval_s=10, ping_timeout_s=5))
    client.tick(10.0)
    server.ping(12.0)
    client.receive_data(sent(server), 12.0)
    assert client.tick(15.0) == []
    assert client.next_tick_s == 22.0


def test_no_greeting_in_time() -> None:
    server = MeshConnection.server(Settings(hello_timeout_s=3), 100.0)
    assert server.next_tick_s == 103.0
    assert failed(server.tick(103.0)) is Reason.TIMEOUT


def test_server_closes_and_open_requests_go_on() -> None:
    client, server = pair()
    client.send_request(HEADER, b"first")
    exchange(client, server)
    server.close("upgrade")
    crossing = client.send_request(HEADER, b"crosses the GOAWAY")
    crossed = sent(client)
    assert client.receive_data(sent(server), 0.0) == [
        GoAwayReceived(1, Reason.NO_ERROR, "upgrade"),
        RequestFailed(crossing, Fate.NEVER_PROCESSED, "the peer takes no new requests: upgrade"),
    ]
    assert server.receive_data(crossed, 0.0) == []
    with pytest.raises(CannotSend) as caught:
        client.send_request(HEADER, b"")
    assert caught.value.refusal is Refusal.CLOSING
    assert not server.finished
    assert not client.finished
    assert server.send_response(1, OK, b"reply")
    assert only(client.receive_data(sent(server), 0.0)) == ResponseReceived(1, OK, (b"reply",))
    assert [end.finished for end in (client, server)] == [True, True]
    assert client.connection_lost() == []


def test_client_closes_and_the_server_waits_for_its_last_bytes() -> None:
    client, server = pair()
    client.send_request(HEADER, b"x" * 100_000)
    client.close()
    assert isinstance(only(server.receive_data(sent(client, 1), 0.0)), GoAwayReceived)
    assert not server.finished
    (event,) = exchange(client, server)
    assert isinstance(event, RequestReceived)
    server.send_response(1, OK, b"")
    exchange(client, server)
    assert [end.finished for end in (client, server)] == [True, False]
    assert server.connection_lost() == []
    assert [end.finished for end in (client, server)] == [True, True]


def test_second_goaway_may_only_take_away() -> None:
    client, _ = pair()
    for _ in range(3):
        client.send_request(HEADER, b"")
    sent(client)
    first = encode_frame(FrameType.GOAWAY, 3, encode_goaway(Reason.NO_ERROR, ""))
    second = encode_frame(FrameType.GOAWAY, 1, encode_goaway(Reason.TIMEOUT, "gone"))
    assert len(client.receive_data(first, 0.0)) == 1
    _, *ends = client.receive_data(second, 0.0)
    why = "the peer takes no new requests: gone"
    assert ends == [RequestFailed(i, Fate.NEVER_PROCESSED, why) for i in (2, 3)]
    assert client.connection_lost("EOF") == [RequestFailed(1, Fate.UNKNOWN, "EOF")]


def test_fate_says_what_was_sent() -> None:
    client, _ = pair(server=Settings(stream_window=10, max_streams=2))
    for body in (b"small", b"x" * 50, b"waits"):
        client.send_request(HEADER, body)
    sent(client)
    assert client.connection_lost("reset") == [
        RequestFailed(1, Fate.UNKNOWN, "reset"),
        RequestFailed(2, Fate.NEVER_PROCESSED, "reset"),
        RequestFailed(3, Fate.NEVER_PROCESSED, "reset"),
    ]
    assert client.connection_lost("again") == []


def test_our_own_mistakes_are_ours() -> None:
    client, server = pair()
    with pytest.raises(UsageError, match="a client has no responses"):
        client.send_response(1, OK, b"")
    with pytest.raises(UsageError, match="a server has no requests"):
        server.send_request(HEADER, b"")
    with pytest.raises(UsageError, match="a server has no requests"):
        server.cancel(1)


REQUEST = encode_frame(FrameType.REQUEST, 1, encode_request(HEADER, 0))


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (encode_frame(FrameType.RESPONSE, 1, encode_response(OK, 0)), Reason.PROTOCOL_ERROR),
        (encode_frame(FrameType.REQUEST, 0, encode_request(HEADER, 0)), Reason.PROTOCOL_ERROR),
        (REQUEST + REQUEST, Reason.PROTOCOL_ERROR),
        (encode_frame(FrameType.REQUEST, 1, b"\xff"), Reason.PROTOCOL_ERROR),
        (encode_frame(FrameType.REQUEST, 5, b"", b"x", 2), Reason.PROTOCOL_ERROR),
        (encode_frame(FrameType.CANCEL, 1), Reason.PROTOCOL_ERROR),
        (encode_frame(FrameType.PING, 1, b"", b"x"), Reason.PROTOCOL_ERROR),
        (encode_frame(FrameType.WINDOW, 1, b""), Reason.FLOW_CONTROL),
        (REQUEST + b"garbage", Reason.PROTOCOL_ERROR),
    ],
)
def test_what_a_client_may_not_say(wire: bytes, reason: Reason) -> None:
    _, server = pair()
    events = server.receive_data(wire, 0.0)
    assert failed(events) is reason
    assert server.closing
    sent(server)
    assert server.finished


@pytest.mark.parametrize(
    "wire",
    [
        REQUEST,
        encode_frame(FrameType.CANCEL, 1),
        encode_frame(FrameType.RESPONSE, 2, encode_response(OK, 0)),
        encode_frame(FrameType.RESPONSE, 1, encode_response(OK, 0), b"x"),
        encode_frame(FrameType.RESPONSE, 1, b"", b"x", 2),
    ],
)
def test_what_a_server_may_not_say(wire: bytes) -> None:
    client, _ = pair()
    client.send_request(HEADER, b"")
    sent(client)
    events = client.receive_data(wire, 0.0)
    assert isinstance(events[0], RequestFailed)
    assert events[0].fate is Fate.UNKNOWN
    assert failed(events) is Reason.PROTOCOL_ERROR


def test_response_to_what_was_never_sent() -> None:
    client, _ = pair()
    client.send_request(HEADER, b"")
    wire = encode_frame(FrameType.RESPONSE, 1, encode_response(OK, 0))
    assert failed(client.receive_data(wire, 0.0)) is Reason.PROTOCOL_ERROR


def test_a_broken_peer_costs_the_server_its_open_requests_and_says_which_were_delivered() -> None:
    client, server = pair()
    for _ in range(3):
        client.send_request(HEADER, b"")
    exchange(client, server)
    server.send_response(2, OK, b"")
    sent(server)
    events = server.receive_data(b"MOX", 0.0)
    assert events[:-1] == [RequestCancelled(1), RequestCancelled(3)]
    assert kinds(sent(server)) == ["GOAWAY 3"]
