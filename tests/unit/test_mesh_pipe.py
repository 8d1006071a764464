"""Two connections and any pipe between them: whole bodies, one end each, and no deadlock."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire.mesh import (
    ConnectionFailed,
    Event,
    Fate,
    MeshConnection,
    RequestFailed,
    RequestReceived,
    ResponseReceived,
    Settings,
    joined,
)
from tests.unit.mesh_ends import Call, Pipe, check, moved

SIZES = st.one_of(st.integers(0, 40), st.sampled_from((1000, 65_535, 65_536, 65_537, 200_000)))
CALLS = st.builds(Call, SIZES, SIZES)
WINDOWS = st.sampled_from((0, 1, 1000, 65_536, 150_000))
SEEDS = st.integers(0, 2**32)
SETTINGS = st.builds(
    lambda window, room, streams: Settings(
        stream_window=window, max_body=200_000, max_buffered=room, max_streams=streams
    ),
    WINDOWS,
    st.sampled_from((200_000, 450_000, 2**24)),
    st.sampled_from((1, 2, 5, 256)),
)


def failures(pipe: Pipe) -> list[ConnectionFailed]:
    events = (*pipe.out.client, *pipe.out.server)
    return [event for event in events if isinstance(event, ConnectionFailed)]


def whole(events: list[Event]) -> list[Event | str]:
    """The events with bodies in one piece: where a body is cut promises nothing."""
    return [
        event._replace(body=(joined(event.body),))
        if isinstance(event, RequestReceived | ResponseReceived)
        else repr(event)  # errors are equal only to themselves
        for event in events
    ]


@settings(deadline=None)
@given(seed=SEEDS, plan=st.lists(CALLS, max_size=12), client=SETTINGS, server=SETTINGS)
def test_every_body_arrives_whole_for_any_window_and_any_chunking(
    seed: int, plan: list[Call], client: Settings, server: Settings
) -> None:
    pipe = Pipe(Random(seed), client, server, plan)
    while pipe.step():
        pass
    assert not failures(pipe)
    check(pipe.out)
    replies = [event for event in pipe.out.client if isinstance(event, ResponseReceived)]
    assert len(replies) == len(plan)
    assert pipe.client.open_requests == pipe.server.open_requests == 0
    assert pipe.client.queued_bytes == pipe.server.queued_bytes == 0


@settings(deadline=None)
@given(
    seed=SEEDS,
    plan=st.lists(st.builds(Call, SIZES, SIZES, st.booleans()), max_size=12),
    client=SETTINGS,
    server=SETTINGS,
)
def test_cancel_at_any_moment_ends_one_request_alone(
    seed: int, plan: list[Call], client: Settings, server: Settings
) -> None:
    pipe = Pipe(Random(seed), client, server, plan)
    while pipe.step():
        pass
    assert not failures(pipe)
    check(pipe.out)
    assert pipe.client.open_requests == pipe.server.open_requests == 0


@settings(deadline=None)
@given(
    seed=SEEDS,
    plan=st.lists(st.builds(Call, SIZES, SIZES, st.booleans()), min_size=1, max_size=12),
    limits=SETTINGS,
    moment=st.integers(0, 120),
    closer=st.sampled_from(("client", "server", "both")),
)
def test_goaway_at_any_moment_loses_nothing_silently(
    seed: int, plan: list[Call], limits: Settings, moment: int, closer: str
) -> None:
    pipe = Pipe(Random(seed), limits, limits, plan)
    for _ in range(moment):
        pipe.step()
    if closer != "server":
        pipe.client.close("test")
    if closer != "client":
        pipe.server.close("test")
    while pipe.step():
        pass
    assert not failures(pipe)
    check(pipe.out)
    delivered = {e.request_id for e in pipe.out.server if isinstance(e, RequestReceived)}
    for event in pipe.out.client:
        if isinstance(event, RequestFailed):
            assert event.fate is Fate.NEVER_PROCESSED
            assert event.request_id not in delivered
    assert pipe.client.finished
    assert pipe.server.finished == (closer != "client")


@settings(deadline=None)
@given(
    seed=SEEDS,
    plan=st.lists(st.builds(Call, SIZES, SIZES, st.booleans()), min_size=1, max_size=12),
    limits=SETTINGS,
    moment=st.integers(0, 120),
)
def test_a_broken_connection_ends_every_request(
    seed: int, plan: list[Call], limits: Settings, moment: int
) -> None:
    pipe = Pipe(Random(seed), limits, limits, plan)
    for _ in range(moment):
        pipe.step()
    pipe.break_off()
    check(pipe.out)
    delivered = {e.request_id for e in pipe.out.server if isinstance(e, RequestReceived)}
    for event in pipe.out.client:
        if isinstance(event, RequestFailed) and event.fate is Fate.NEVER_PROCESSED:
            assert event.request_id not in delivered
    assert pipe.client.open_requests == pipe.server.open_requests == 0


def outward(connection: MeshConnection) -> tuple[object, ...]:
    """All that a driver can ask of it."""
    return (
        connection.open_requests,
        connection.queued_bytes,
        connection.closing,
        connection.finished,
        connection.wants_write,
        connection.next_tick_s,
    )


@settings(deadline=None)
@given(
    seed=SEEDS,
    plan=st.lists(st.builds(Call, SIZES, SIZES, st.booleans()), max_size=10),
    client=SETTINGS,
    server=SETTINGS,
    goaway=st.integers(0, 200),
    noise=st.none() | st.integers(0, 200),
)
def test_hand_over_between_any_two_chunks_changes_nothing(
    seed: int,
    plan: list[Call],
    client: Settings,
    server: Settings,
    goaway: int,
    noise: int | None,
) -> None:
    """Through bytes, at every moment: greeting, pings, GOAWAY, and a peer that breaks the rules."""
    stays = Pipe(Random(seed), client, server, plan, pings=4)
    moves = Pipe(Random(seed), client, server, plan, pings=4)
    for step in range(1000):
        for pipe in (stays, moves):
            if step == goaway:
                pipe.server.close("upgrade")
            if step == noise:
                pipe.up += b"MOA\x01\0\x08" + bytes(18)
        if not stays.step():
            break
        assert moves.step()
        for name in ("client", "server"):
            setattr(moves, name, moved(getattr(moves, name)))
            assert outward(getattr(moves, name)) == outward(getattr(stays, name))
    assert whole(moves.out.client) == whole(stays.out.client)
    assert whole(moves.out.server) == whole(stays.out.server)
    assert moves.out.upward == stays.out.upward
    assert moves.out.downward == stays.out.downward


@settings(deadline=None)
@given(seed=SEEDS, plan=st.lists(CALLS, max_size=8), limits=SETTINGS)
def test_hand_over_with_bytes_that_no_socket_took(
    seed: int, plan: list[Call], limits: Settings
) -> None:
    pipe = Pipe(Random(seed), limits, limits, plan, hand_over=Random(seed + 1))
    while pipe.step():
        pass
    assert not failures(pipe)
    check(pipe.out)
    assert pipe.client.open_requests == pipe.server.open_requests == 0
