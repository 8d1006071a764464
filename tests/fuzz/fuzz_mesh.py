"""Both sides of a mesh connection: no exception leaves it, chunking and hand-over change nothing.

The first byte chooses the side, and whether the rest is the wire itself or a recipe for
frames (the wire alone rarely gets behind a header). Whatever comes, memory stays in its
bounds and each open request has an end.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tests.fuzz.harness import fuzz, instrumented

with instrumented():
    from proxy.wire.mesh import (
        CannotSend,
        Event,
        FrameType,
        MeshConnection,
        RequestFailed,
        RequestHeader,
        RequestReceived,
        ResponseHeader,
        ResponseReceived,
        Settings,
        decode_state,
        encode_frame,
        encode_state,
        joined,
    )
    from proxy.wire.mesh.frames import HEAD_SIZE, MAX_FRAME_BODY
    from proxy.wire.mesh.headers import (
        encode_goaway,
        encode_request,
        encode_response,
        encode_window,
    )
    from proxy.wire.mesh.settings import encode_hello

SETTINGS = Settings(
    max_streams=4,
    max_open=8,
    stream_window=300,
    max_body=100_000,
    max_header=2000,
    max_buffered=150_000,
    max_queued=150_000,
)
HELLO = encode_frame(FrameType.HELLO, 0, encode_hello(SETTINGS))
HEADER = RequestHeader("/service/demo", "echo", deadline_ms=100, props={"a": "b"})
_SIZES = (0, 1, 299, 300, 301, 1023, 1024, 5000, 65_535, 65_536)
_CONTROL_BOUND = 8 * 4096 * HEAD_SIZE


def cooked(recipe: bytes, response: bool) -> Iterator[bytes]:
    """Frames of a recipe: type, flags, id, header, size of body, length that is announced."""
    for at in range(0, len(recipe) - 5, 6):
        kind, flags, request_id, choice, size, length = recipe[at : at + 6]
        body = b"x" * _SIZES[size % len(_SIZES)] if size < 200 else b""
        total = len(body) + (_SIZES[length % len(_SIZES)] if flags & 1 else 0)
        headers = (
            b"",
            encode_response(ResponseHeader(200, "ok"), total)
            if response
            else encode_request(HEADER, total),
            encode_window(1 + total * 200 * choice % 2**32),
            encode_goaway_of(choice),
            encode_hello(SETTINGS),
            recipe[at : at + choice],
        )
        # One of the right kind most of the time, so that recipes go deep.
        wanted = {1: 1, 2: 1, 5: 3, 7: 4, 8: 2}.get(kind % 10, 0)
        header = headers[wanted] if choice < 200 else headers[choice % 6]
        frame = encode_frame(
            FrameType.REQUEST, request_id % 12, b"" if flags & 2 else header, body, flags & 3
        )
        yield frame[:5] + bytes((kind % 10,)) + frame[6:]


def encode_goaway_of(choice: int) -> bytes:
    """A GOAWAY's header with any code."""
    return encode_goaway(choice % 8, "why")  # type: ignore[arg-type]  # any number may come


def opened(server: bool) -> MeshConnection:
    """One side after HELLO; a client has requests: one waiting for credit, two small ones."""
    connection = (MeshConnection.server if server else MeshConnection.client)(SETTINGS, 0.0)
    connection.receive_data(HELLO, 0.0)
    if not server:
        for body in (b"a" * 1000, b"b" * 10, b""):
            connection.send_request(HEADER, body)
        connection.data_to_send()
        connection.send_request(HEADER, b"late")
    return connection


def normal(events: list[Event]) -> list[str]:
    """Events as text, with bodies in one piece."""
    return [
        repr(event._replace(body=(joined(event.body),)))
        if isinstance(event, RequestReceived | ResponseReceived)
        else repr(event)
        for event in events
    ]


def bounded(connection: MeshConnection) -> None:
    """Nothing that the machine holds is over the bounds that its settings promise."""
    state = connection.export()
    assert len(state.unread) <= HEAD_SIZE + SETTINGS.max_header + MAX_FRAME_BODY
    incoming = sum(len(piece) for body in state.inbox.bodies for piece in body.body)
    assert incoming <= SETTINGS.max_streams * SETTINGS.stream_window + SETTINGS.max_buffered
    assert sum(size for _, size in state.inbox.reserved) <= SETTINGS.max_buffered
    assert sum(map(len, state.outbox.control)) <= _CONTROL_BOUND
    assert connection.open_requests <= max(SETTINGS.max_streams, SETTINGS.max_open)
    assert connection.queued_bytes >= 0


def finish(connection: MeshConnection, events: list[Event], server: bool) -> tuple[bytes, bytes]:
    """Answer what is owed, then break the connection; what was sent before and after."""
    if server:
        for event in events:
            if isinstance(event, RequestReceived):
                answer(connection, event.request_id)
    first = b"".join(connection.data_to_send(2**31))
    events += connection.connection_lost()
    assert connection.open_requests == 0
    if not server:
        ends = [e.request_id for e in events if isinstance(e, RequestFailed | ResponseReceived)]
        assert sorted(ends) == [1, 2, 3, 4], ends
    return first, b"".join(connection.data_to_send(2**31))


def answer(connection: MeshConnection, request_id: int) -> None:
    """Answer with a body that needs credit; an error when it does not fit."""
    try:
        connection.send_response(request_id, ResponseHeader(200), b"y" * 60_000)
    except CannotSend:
        assert connection.send_response(request_id, ResponseHeader(504), b"full") in (True, False)


def check(data: bytes) -> None:
    """Run one input; raises when a promise is broken."""
    if len(data) < 2:
        return
    server = bool(data[0] & 1)
    wire = b"".join(cooked(data[2:], response=not server)) if data[0] & 2 else data[2:]

    whole = opened(server)
    events = whole.receive_data(wire, 1.0)
    bounded(whole)

    cut = opened(server)
    rng = Random(data[1])
    seen: list[Event] = []
    at = 0
    while at < len(wire):
        size = rng.choice((1, 20, 300, 70_000))
        seen += cut.receive_data(wire[at : at + size], 1.0)
        at += size
        cut = MeshConnection.restore(decode_state(encode_state(cut.export())))
    bounded(cut)
    assert normal(seen) == normal(events)
    assert finish(cut, seen, server) == finish(whole, events, server)


if __name__ == "__main__":
    fuzz(check)
