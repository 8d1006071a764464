"""The agent's control socket with canned answers, for tests that need no agent."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def http_answer(body: bytes, status: str = "200 OK") -> bytes:
    """A whole HTTP response."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


@contextmanager
def serving(path: Path, answers: Mapping[str, bytes]) -> Iterator[None]:
    """Answer each path of `answers` with these very bytes, until the block ends.

    b"" as an answer means that the connection is held open and nothing is said.
    """
    over = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            request = self.rfile.readline().split()
            while self.rfile.readline().strip():
                pass
            path = request[1].decode().partition("?")[0]
            raw = answers.get(path, http_answer(b'{"error": "none"}', "404 X"))
            if raw:
                self.wfile.write(raw)
            else:
                over.wait(30)

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            over.set()
            server.shutdown()
            thread.join()
