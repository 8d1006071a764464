"""A plain client that speaks binary packets, to copy from; it knows nothing of an agent.

    with TurboClient("127.0.0.1", 5000) as client:
        client.call("/service/demo", "echo", "hello")

One connection, any number of requests at once: `send` returns the number under which `reply`
comes back, in whatever order (docs/PROTOCOL.md §2).
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

from tests.samples import hessian_lite

REQ, RESP, PING, PONG, INFO = range(1, 6)
EXT_HESSIAN = 2


class TurboClient:
    """Raises ConnectionError when it is hung up on, TimeoutError when nothing comes."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        form: str = "19",
        codec: str = "json",
        timeout_s: float = 10.0,
    ) -> None:
        self.sock = socket.create_connection((host, port), timeout=timeout_s)
        self._file = self.sock.makefile("rb")
        self._form = form
        self._codec = codec
        self._last = 0

    def encode(self, value: Any) -> bytes:
        """A body in the client's codec."""
        if self._codec == "hessian2":
            return hessian_lite.write(value)
        return json.dumps(value, ensure_ascii=False).encode()

    def packet(self, cmd: int, opaque: int, body: bytes) -> bytes:
        if self._form == "9":
            return struct.pack(">IBI", opaque, cmd, len(body)) + body + b"\r\n"
        extension = EXT_HESSIAN if self._codec == "hessian2" and cmd == REQ else 0
        return struct.pack(">IBhqi", opaque, cmd, 0, extension, len(body)) + body

    def send(self, body: bytes, cmd: int = REQ) -> int:
        """Send one packet; its number."""
        self._last += 1
        self.sock.sendall(self.packet(cmd, self._last, body))
        return self._last

    def read(self) -> tuple[int, int, int, bytes]:
        """The next packet: its number, command, extension and body."""
        size = 9 if self._form == "9" else 19
        head = self._file.read(size)
        if len(head) < size:
            raise ConnectionError("the connection was closed")
        if self._form == "9":
            opaque, cmd, size = struct.unpack(">IBI", head)
            extension = 0
        else:
            opaque, cmd, _version, extension, size = struct.unpack(">IBhqi", head)
        body = self._file.read(size)
        if len(body) < size or (self._form == "9" and self._file.read(2) != b"\r\n"):
            raise ConnectionError("the connection was closed within a packet")
        return opaque, cmd, extension, body

    def reply(self) -> tuple[int, bytes]:
        """The next reply's number and body."""
        opaque, cmd, _extension, body = self.read()
        if cmd != RESP:
            raise ConnectionError(f"expected a reply, got command {cmd}")
        return opaque, body

    def decode(self, body: bytes) -> dict[str, Any]:
        if self._codec == "hessian2":
            decoded: dict[str, Any] = hessian_lite.read(body)
        else:
            decoded = json.loads(body)
        return decoded

    def call(self, uri: str, method: str, *args: Any) -> dict[str, Any]:
        """One request and its reply."""
        asked = self.send(self.encode({"action": uri, "params": {"m": method, "args": list(args)}}))
        opaque, body = self.reply()
        if opaque != asked:
            raise ConnectionError(f"expected reply {asked}, got {opaque}")
        return self.decode(body)

    def ping(self) -> bytes:
        """The body of the PONG."""
        asked = self.send(b'{"timestamp":1}', PING)
        opaque, cmd, _extension, body = self.read()
        if (opaque, cmd) != (asked, PONG):
            raise ConnectionError(f"expected PONG {asked}, got {cmd} for {opaque}")
        return body

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    def __enter__(self) -> TurboClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
