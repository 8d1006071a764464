"""MOA over a bare socket: every byte in sight."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from typing import Any

DEMO = "/service/demo"


def request(method: str, *args: object, uri: str = DEMO, **props: str) -> str:
    """The JSON of a request; `props` only when there are any."""
    body: dict[str, Any] = {"action": uri, "params": {"m": method, "args": list(args)}}
    if props:
        body["props"] = props
    return json.dumps(body, ensure_ascii=False)


def frame(body: str) -> bytes:
    """`GET body`, as every Redis client sends it."""
    data = body.encode()
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(data), data)


class Connection:
    """One connection to where it dials; raises ConnectionError when it is hung up on."""

    def __init__(self, host: str, port: int, timeout_s: float = 10.0) -> None:
        self.sock = socket.create_connection((host, port), timeout=timeout_s)
        self._file = self.sock.makefile("rb")

    def send(self, *bodies: str) -> None:
        self.sock.sendall(b"".join(map(frame, bodies)))

    def read(self) -> bytes:
        """The bytes of one reply: a line, or a bulk string."""
        line = self._file.readline()
        if not line:
            raise ConnectionError("the connection was closed")
        if not line.startswith(b"$") or line == b"$-1\r\n":
            return line
        return line + self._file.read(int(line[1:]) + 2)

    def reply(self) -> dict[str, Any]:
        """One MOA reply."""
        raw = self.read()
        assert raw.startswith(b"$"), raw
        answer: dict[str, Any] = json.loads(raw.split(b"\r\n", 1)[1])
        return answer

    def call(self, body: str) -> dict[str, Any]:
        self.send(body)
        return self.reply()

    def command(self, line: bytes) -> bytes:
        """An inline command and its reply."""
        self.sock.sendall(line + b"\r\n")
        return self.read()

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def call(host: str, port: int, body: str) -> dict[str, Any]:
    """One request on a connection of its own."""
    with Connection(host, port) as connection:
        return connection.call(body)


def call_each(host: str, port: int, bodies: Iterable[str]) -> list[dict[str, Any]]:
    """One request after the other on one connection."""
    with Connection(host, port) as connection:
        return [connection.call(body) for body in bodies]


def names(host: str, port: int, count: int = 20, uri: str = DEMO) -> list[str]:
    """Who answered each of `count` requests."""
    replies = call_each(host, port, [request("whoami", uri=uri)] * count)
    assert all(reply["ec"] == 200 for reply in replies), replies
    return [reply["result"]["name"] for reply in replies]
