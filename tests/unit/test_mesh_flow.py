"""Fair turns, credit, room for large bodies, and the bounds of every queue."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from proxy.wire.mesh import (
    CannotSend,
    Frame,
    FrameParser,
    FrameType,
    MeshConnection,
    Reason,
    Refusal,
    RequestReceived,
    ResponseHeader,
    Settings,
    encode_frame,
)
from proxy.wire.mesh.frames import CONTINUED, MAX_FRAME_BODY, MORE
from proxy.wire.mesh.headers import encode_request, encode_window
from tests.unit.mesh_ends import HEADER, OK, exchange, pair, sent
from tests.unit.test_mesh_connection import failed, kinds

MIB = 1024 * 1024


def frames(connection: MeshConnection) -> list[Frame]:
    return FrameParser().feed(sent(connection))


def test_large_body_is_cut_into_frames_of_64_kib() -> None:
    client, _ = pair(server=Settings(stream_window=MIB))
    client.send_request(HEADER, b"x" * 150_000)
    cut = frames(client)
    assert [(f.size, f.flags) for f in cut] == [
        (MAX_FRAME_BODY, MORE),
        (MAX_FRAME_BODY, MORE | CONTINUED),
        (150_000 - 2 * MAX_FRAME_BODY, CONTINUED),
    ]
    assert [bool(f.header) for f in cut] == [True, False, False]


def test_large_body_leaves_without_a_copy() -> None:
    client, _ = pair(server=Settings(stream_window=MIB))
    pieces = (b"x" * MAX_FRAME_BODY, b"y" * MAX_FRAME_BODY)
    client.send_request(HEADER, pieces)
    buffers = client.data_to_send()
    assert [piece for piece in pieces if any(piece is b for b in buffers)] == [*pieces]


@pytest.mark.parametrize("large_first", [True, False])
def test_small_ones_do_not_wait_for_a_large_one(large_first: bool) -> None:
    client, _ = pair(server=Settings(stream_window=4 * MIB))
    ids: list[int] = []
    if large_first:
        client.send_request(HEADER, b"x" * 2 * MIB)
    ids += [client.send_request(HEADER, b"small") for _ in range(100)]
    if not large_first:
        client.send_request(HEADER, b"x" * 2 * MIB)
    order = [f.request_id for f in frames(client)]
    behind = max(order.index(i) for i in ids)
    assert behind <= 100
    assert len(order) == 100 + 32


def test_small_one_that_comes_later_passes_the_large_ones() -> None:
    client, _ = pair(server=Settings(stream_window=4 * MIB))
    large = [client.send_request(HEADER, b"x" * 2 * MIB) for _ in range(4)]
    sent(client, 5 * MAX_FRAME_BODY)
    small = client.send_request(HEADER, b"small")
    order = [f.request_id for f in frames(client)]
    assert order.index(small) <= len(large)


def test_large_bodies_take_turns() -> None:
    client, _ = pair(server=Settings(stream_window=4 * MIB))
    a, b = (client.send_request(HEADER, b"x" * MIB) for _ in range(2))
    order = [f.request_id for f in frames(client)]
    assert order == [a, b] * 16


def test_responses_take_turns_as_well() -> None:
    client, server = pair(client=Settings(stream_window=4 * MIB))
    ids = [client.send_request(HEADER, b"") for _ in range(3)]
    exchange(client, server)
    server.send_response(ids[0], OK, b"x" * MIB)
    server.send_response(ids[1], OK, b"small")
    server.send_response(ids[2], OK, b"x" * MIB)
    assert [f.request_id for f in frames(server)][:5] == [1, 2, 3, 1, 3]


def test_body_stands_still_without_credit_and_goes_on_with_it() -> None:
    client, server = pair(server=Settings(stream_window=1000))
    client.send_request(HEADER, b"x" * 1500)
    first = sent(client)
    assert [(f.size, f.flags) for f in FrameParser().feed(first)] == [(1000, MORE)]
    assert not client.wants_write
    assert server.receive_data(first, 0.0) == []
    credit = sent(server)
    assert kinds(credit) == ["WINDOW 1"]
    client.receive_data(credit, 0.0)
    assert [(f.size, f.flags) for f in frames(client)] == [(500, CONTINUED)]


def test_small_window_holds_up_nobody_else() -> None:
    client, _ = pair(server=Settings(stream_window=0))
    client.send_request(HEADER, b"needs credit")
    client.send_request(HEADER, b"")
    assert [(f.request_id, f.size, f.flags) for f in frames(client)] == [(1, 0, MORE), (2, 0, 0)]


def test_room_is_given_in_order_and_comes_back_with_the_response() -> None:
    settings = Settings(stream_window=10, max_body=1000, max_buffered=1500)
    client, server = pair(server=settings)
    for _ in range(3):
        client.send_request(HEADER, b"x" * 1000)
    (event,) = exchange(client, server)
    assert isinstance(event, RequestReceived)
    assert event.request_id == 1
    assert exchange(client, server) == []
    server.send_response(1, OK, b"")
    assert [getattr(e, "request_id", 0) for e in exchange(client, server)] == [1, 2]


def test_cancel_gives_the_room_back() -> None:
    settings = Settings(stream_window=10, max_body=1000, max_buffered=1000)
    client, server = pair(server=settings)
    for _ in range(2):
        client.send_request(HEADER, b"x" * 1000)
    exchange(client, server)
    client.cancel(1)
    assert [getattr(e, "request_id", 0) for e in exchange(client, server)] == [1, 2]


def first_frame(size: int, length: int, flags: int = MORE) -> bytes:
    return encode_frame(FrameType.REQUEST, 1, encode_request(HEADER, length), b"x" * size, flags)


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (first_frame(101, 200), Reason.FLOW_CONTROL),
        (first_frame(101, 101, 0), Reason.FLOW_CONTROL),
        (first_frame(100, 1001), Reason.TOO_LARGE),
        (first_frame(100, 50), Reason.PROTOCOL_ERROR),
        (first_frame(100, 100), Reason.PROTOCOL_ERROR),
        (first_frame(10, 11, 0), Reason.PROTOCOL_ERROR),
        (first_frame(10, 9, 0), Reason.PROTOCOL_ERROR),
        (first_frame(50, 80) + first_frame(10, 80), Reason.PROTOCOL_ERROR),
        (
            first_frame(50, 80) + encode_frame(FrameType.REQUEST, 1, b"", b"x" * 31, CONTINUED),
            Reason.PROTOCOL_ERROR,
        ),
        (
            first_frame(50, 80) + encode_frame(FrameType.REQUEST, 1, b"", b"x" * 29, CONTINUED),
            Reason.PROTOCOL_ERROR,
        ),
    ],
)
def test_bodies_keep_to_their_length_and_their_credit(wire: bytes, reason: Reason) -> None:
    _, server = pair(server=Settings(stream_window=100, max_body=1000, max_buffered=1000))
    assert failed(server.receive_data(wire, 0.0)) is reason


def test_credit_has_a_ceiling() -> None:
    client, _ = pair()
    client.send_request(HEADER, b"x" * 100_000)
    wire = encode_frame(FrameType.WINDOW, 1, encode_window(2**31))
    assert failed(client.receive_data(wire, 0.0)) is Reason.FLOW_CONTROL


def test_peer_takes_so_many_streams_and_the_rest_waits() -> None:
    client, server = pair(client=Settings(max_open=5), server=Settings(max_streams=2))
    for _ in range(5):
        client.send_request(HEADER, b"")
    with pytest.raises(CannotSend) as caught:
        client.send_request(HEADER, b"")
    assert caught.value.refusal is Refusal.TOO_MANY
    assert len(exchange(client, server)) == 2
    server.send_response(1, OK, b"")
    assert [getattr(e, "request_id", 0) for e in exchange(client, server)] == [1, 3]


def test_more_streams_than_announced_is_the_peers_fault() -> None:
    _, server = pair(server=Settings(max_streams=2))
    wire = b"".join(
        encode_frame(FrameType.REQUEST, n, encode_request(HEADER, 0)) for n in (1, 2, 3)
    )
    assert failed(server.receive_data(wire, 0.0)) is Reason.TOO_MANY_STREAMS


def test_what_is_too_large_for_the_peer_is_not_sent() -> None:
    small = Settings(max_body=1000, max_header=100)
    client, server = pair(client=small, server=small)
    with pytest.raises(CannotSend, match="1001 bytes, the peer takes 1000"):
        client.send_request(HEADER, b"x" * 1001)
    client.send_request(HEADER, b"")
    exchange(client, server)
    for header, body in ((OK, b"x" * 1001), (ResponseHeader(200, "e" * 200), b"")):
        with pytest.raises(CannotSend) as caught:
            server.send_response(1, header, body)
        assert caught.value.refusal is Refusal.TOO_LARGE
    assert server.send_response(1, ResponseHeader(302, "too large"), b"")


def test_waiting_request_that_turns_out_too_large_fails() -> None:
    client = MeshConnection.client(Settings(), 0.0)
    server = MeshConnection.server(Settings(max_body=1000), 0.0)
    client.send_request(HEADER, b"x" * 1001)
    events = exchange(client, server)
    assert "body of 1001 bytes, the peer takes 1000" in [getattr(e, "text", "") for e in events]
    assert client.open_requests == 0


def test_queue_is_bounded_and_an_error_always_fits() -> None:
    settings = Settings(max_body=2000, max_queued=3000)
    client, server = pair(client=settings, server=settings)
    client.send_request(HEADER, b"x" * 2000)
    with pytest.raises(CannotSend) as caught:
        client.send_request(HEADER, b"x" * 2000)
    assert caught.value.refusal is Refusal.QUEUE_FULL
    exchange(client, server)
    client.send_request(HEADER, b"")
    exchange(client, server)
    server.send_response(1, OK, b"x" * 2000)
    with pytest.raises(CannotSend) as caught:
        server.send_response(2, OK, b"x" * 2000)
    assert caught.value.refusal is Refusal.QUEUE_FULL
    assert server.send_response(2, ResponseHeader(504, "queue is full"), b"")
    assert len(exchange(client, server)) == 2


@pytest.mark.parametrize(
    "make",
    [
        partial(Settings, max_body=2, max_buffered=1),
        partial(Settings, max_body=2, max_queued=1),
        partial(Settings, max_streams=0),
        partial(Settings, stream_window=-1),
        partial(Settings, min_version=2, max_version=1),
    ],
)
def test_settings_that_could_never_work_are_refused(make: Callable[[], Settings]) -> None:
    with pytest.raises(ValueError, match=r"max_|versions"):
        make()
