"""One end of a mesh connection over a blocking socket, for tests; also a server that tells what
it got: `python -m tests.support.mesh_peer HOST PORT [ROOM]`.

ROOM are the bytes that it keeps for large bodies; method `hold` is never answered, and keeps its
room for ever.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

from proxy.wire.mesh import (
    Event,
    MeshConnection,
    RequestHeader,
    RequestReceived,
    ResponseHeader,
    ResponseReceived,
    Settings,
)
from proxy.wire.mesh.headers import (
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)

NEWER = "from the future"
_FIELD = b"\xa2\x06" + bytes([len(NEWER)]) + NEWER.encode()
"""Field 100, of type string."""


def newer_request(header: RequestHeader) -> RequestHeader:
    """The header as an agent of a newer version writes it, with a field that ours lacks."""
    return decode_request(encode_request(header, 0) + _FIELD)[0]


def newer_response(header: ResponseHeader) -> ResponseHeader:
    return decode_response(encode_response(header, 0) + _FIELD)[0]


class MeshPeer:
    """Sends and receives; raises ConnectionError when the other side hangs up."""

    def __init__(
        self, sock: socket.socket, *, is_client: bool = True, settings: Settings | None = None
    ) -> None:
        make = MeshConnection.client if is_client else MeshConnection.server
        self.connection = make(settings or Settings(), time.monotonic())
        self.sock = sock
        self._responses: list[ResponseReceived] = []
        self.flush()

    @classmethod
    def dial(cls, host: str, port: int, timeout_s: float = 10.0) -> MeshPeer:
        return cls(socket.create_connection((host, port), timeout=timeout_s))

    def flush(self) -> None:
        while self.connection.wants_write:
            for part in self.connection.data_to_send():
                self.sock.sendall(part)

    def events(self) -> list[Event]:
        """What the next bytes of the other side mean."""
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("the connection was closed")
        events = self.connection.receive_data(data, time.monotonic())
        self.flush()
        return events

    def ask(self, header: RequestHeader, body: bytes) -> int:
        number = self.connection.send_request(header, body)
        self.flush()
        return number

    def response(self) -> ResponseReceived:
        """The next response."""
        while not self._responses:
            self._responses += [e for e in self.events() if isinstance(e, ResponseReceived)]
        return self._responses.pop(0)


def _serve(sock: socket.socket, settings: Settings) -> None:
    peer = MeshPeer(sock, is_client=False, settings=settings)
    try:
        while True:
            for event in peer.events():
                if isinstance(event, RequestReceived) and event.header.method != "hold":
                    header = event.header
                    result = {
                        "newer": NEWER.encode() in header.received,
                        "deadline_ms": header.deadline_ms,
                        "attempt": header.attempt,
                        "traceparent": header.traceparent,
                        "props": dict(header.props),
                        "body": b"".join(event.body)[:1024].decode(),
                    }
                    body = json.dumps({"ec": 200, "em": "", "result": result}).encode()
                    answer = newer_response(ResponseHeader(200, load=7))
                    peer.connection.send_response(event.request_id, answer, body)
            peer.flush()
    except OSError:
        sock.close()


def main() -> None:
    room = [int(word) for word in sys.argv[3:4]]
    settings = Settings(max_buffered=room[0]) if room else Settings()
    with socket.create_server((sys.argv[1], int(sys.argv[2]))) as listener:
        print("ready", flush=True)
        while True:
            args = (listener.accept()[0], settings)
            threading.Thread(target=_serve, args=args, daemon=True).start()


if __name__ == "__main__":
    main()
