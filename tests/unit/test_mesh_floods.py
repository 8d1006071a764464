"""Peers that cost work or memory and give nothing: counted, told so, and cut off."""

from __future__ import annotations

import pytest

from proxy.wire.mesh import (
    ConnectionFailed,
    Event,
    FrameType,
    MeshConnection,
    PeerError,
    Reason,
    RequestHeader,
    RequestReceived,
    Settings,
    encode_frame,
)
from proxy.wire.mesh.frames import CONTINUED, MORE
from proxy.wire.mesh.guard import Budget
from proxy.wire.mesh.headers import encode_request, encode_window
from tests.unit.mesh_ends import HEADER, OK, pair, sent
from tests.unit.test_mesh_connection import failed, kinds


def flood(server: MeshConnection, wire: bytes, times: int, per_s: float) -> list[Event]:
    """The same bytes again and again, `per_s` times a second; the events of the end."""
    for n in range(times):
        events = server.receive_data(wire, 1.0 + n / per_s)
        if any(isinstance(event, ConnectionFailed) for event in events):
            return events
    return []


IDLE = {
    "pings": encode_frame(FrameType.PING, 1),
    "pongs": encode_frame(FrameType.PONG, 1),
    "windows of requests that are over": encode_frame(FrameType.WINDOW, 1, encode_window(1)),
    "cancels of requests that are over": encode_frame(FrameType.CANCEL, 1),
    "bodies of requests that are over": encode_frame(
        FrameType.REQUEST, 1, b"", b"x", MORE | CONTINUED
    ),
    "frames of unknown types": b"MOA\x01\x00\xc8" + bytes(18),
}


@pytest.mark.parametrize("what", IDLE)
def test_flood_is_cut_off(what: str) -> None:
    client, server = pair()
    client.cancel(client.send_request(HEADER, b""))
    client.send_request(HEADER, b"")
    server.receive_data(sent(client), 0.0)
    assert failed(flood(server, IDLE[what], 100_000, per_s=50_000)) is Reason.FLOOD
    assert kinds(sent(server))[-1].startswith("GOAWAY")


@pytest.mark.parametrize("what", sorted(set(IDLE) - {"pings"}))
def test_a_few_do_no_harm(what: str) -> None:
    client, server = pair()
    client.cancel(client.send_request(HEADER, b""))
    client.send_request(HEADER, b"")
    server.receive_data(sent(client), 0.0)
    assert flood(server, IDLE[what], 3000, per_s=500) == []


def test_pings_at_the_pace_of_a_health_check_do_no_harm() -> None:
    _, server = pair()
    for n in range(1000):
        assert server.receive_data(IDLE["pings"], n / 2) == []
        assert kinds(sent(server)) == ["PONG 1"]


def test_body_in_crumbs_is_cut_off() -> None:
    _, server = pair()
    header = encode_request(HEADER, 60_000)
    server.receive_data(encode_frame(FrameType.REQUEST, 1, header, b"x", MORE), 0.0)
    crumb = encode_frame(FrameType.REQUEST, 1, b"", b"x", MORE | CONTINUED)
    assert failed(flood(server, crumb, 50_000, per_s=100_000)) is Reason.FLOOD


def test_body_in_nothing_at_all_is_cut_off() -> None:
    _, server = pair()
    header = encode_request(HEADER, 60_000)
    server.receive_data(encode_frame(FrameType.REQUEST, 1, header, b"x", MORE), 0.0)
    nothing = encode_frame(FrameType.REQUEST, 1, b"", b"", MORE | CONTINUED)
    assert failed(flood(server, nothing, 50_000, per_s=100_000)) is Reason.FLOOD


def rapid_reset(server: MeshConnection, request_id: int, now_s: float) -> list[Event]:
    request = encode_frame(FrameType.REQUEST, request_id, encode_request(HEADER, 0))
    return server.receive_data(request + encode_frame(FrameType.CANCEL, request_id), now_s)


def test_rapid_reset_is_cut_off() -> None:
    _, server = pair()
    events: list[Event] = []
    request_id = 0
    for request_id in range(1, 5000):
        events = rapid_reset(server, request_id, request_id / 10_000)
        if len(events) != 2:
            break
    assert failed(events) is Reason.FLOOD
    assert request_id < 1200


def test_deadlines_that_pass_on_a_working_connection_are_no_flood() -> None:
    _, server = pair()
    for n in range(1, 20_000):
        if n % 2:
            assert len(rapid_reset(server, n, 0.0)) == 2
        else:
            request = encode_frame(FrameType.REQUEST, n, encode_request(HEADER, 0))
            (event,) = server.receive_data(request, 0.0)
            assert isinstance(event, RequestReceived)
            assert server.send_response(n, OK, b"")
            sent(server)


def test_a_peer_that_never_reads_cannot_make_us_owe_without_end() -> None:
    _, server = pair(server=Settings(stream_window=10))
    header = encode_request(RequestHeader("/s", "m"), 1000)
    events: list[Event] = []
    n = 0
    for n in range(1, 100_000):
        events = server.receive_data(
            encode_frame(FrameType.REQUEST, n, header, b"x", MORE)
            + encode_frame(FrameType.CANCEL, n)
            + encode_frame(FrameType.PING, n),
            float(n),
        )
        assert server.queued_bytes == 0
        if events:
            break
    assert failed(events) is Reason.FLOOD
    assert n <= 4096
    assert len(sent(server)) < 4200 * 40


def test_tokens_come_back_with_time_and_with_work() -> None:
    budget = Budget("x", burst=2, per_s=1, now_s=0.0)
    budget.take(0.0)
    budget.take(0.0)
    budget.earn()
    budget.take(0.0)
    budget.take(1.0)
    with pytest.raises(PeerError, match="x: more than 2 at once and 1 a second"):
        budget.take(1.5)


def test_clock_that_stands_gives_no_tokens() -> None:
    budget = Budget("x", burst=1, per_s=1000, now_s=5.0)
    budget.take(5.0)
    with pytest.raises(PeerError):
        budget.take(4.0)
