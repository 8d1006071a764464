"""The state of a mesh connection as bytes: refused by StateError, or a connection to go on with.

What is taken survives another hand-over as it is, can be driven to its end, and stays quiet
about whatever its peer sends: no exception leaves it.
"""

from __future__ import annotations

from tests.fuzz.harness import fuzz, instrumented

with instrumented():
    from proxy.wire.mesh import (
        FrameType,
        MeshConnection,
        RequestHeader,
        ResponseHeader,
        Settings,
        StateError,
        decode_state,
        encode_frame,
        encode_state,
    )
    from proxy.wire.mesh.headers import encode_request, encode_response, encode_window
    from proxy.wire.mesh.settings import encode_hello

WIRES = (
    encode_frame(FrameType.HELLO, 0, encode_hello(Settings())),
    encode_frame(FrameType.WINDOW, 1, encode_window(70_000)),
    encode_frame(FrameType.REQUEST, 9, encode_request(RequestHeader("/s", "m"), 3), b"abc"),
    encode_frame(FrameType.RESPONSE, 1, encode_response(ResponseHeader(200), 3), b"abc"),
    encode_frame(FrameType.CANCEL, 2),
)


def check(data: bytes) -> None:
    """Run one input; raises when a promise is broken."""
    if not data:
        return
    try:
        state = decode_state(data[1:])
    except StateError:
        return
    assert encode_state(decode_state(encode_state(state))) == encode_state(state)
    connection = MeshConnection.restore(state)
    connection.data_to_send(2**20)
    for number, wire in enumerate(WIRES):
        if data[0] & 1 << number:
            connection.receive_data(wire, state.pulse.heard_s)
            connection.data_to_send(2**20)
    connection.tick(state.pulse.heard_s + 1)
    connection.connection_lost()
    connection.data_to_send(2**31)
    assert connection.open_requests == 0


if __name__ == "__main__":
    fuzz(check)
