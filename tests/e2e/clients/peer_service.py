"""A service that tells whom it sees: `python peer_service.py HOST PORT NAME`.

Every GET is answered with its client's address, its own, how often it was pinged, and whether
a client ever sent a second request before the first was answered. Old servers are like it:
one thread for each connection, one request at a time.
"""

from __future__ import annotations

import io
import json
import socket
import socketserver
import sys
import threading


class Counts:
    """Of all connections."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connections = self.pings = self.pipelined = 0


COUNTS = Counts()


class Handler(socketserver.StreamRequestHandler):
    """One connection."""

    def handle(self) -> None:
        with COUNTS.lock:
            COUNTS.connections += 1
        try:
            while words := self._read():
                COUNTS.pipelined += self._has_more()
                self.wfile.write(self._answer(words))
        except (ConnectionError, ValueError):
            return

    def _has_more(self) -> bool:
        """Whether the next request is there already; tells nothing of one still to come."""
        assert isinstance(self.rfile, io.BufferedReader)
        self.connection.setblocking(False)
        try:
            return bool(self.rfile.peek(1))
        finally:
            self.connection.setblocking(True)

    def _read(self) -> list[bytes]:
        line = self.rfile.readline()
        if not line.startswith(b"*"):
            return line.split()
        words = []
        for _ in range(int(line[1:])):
            size = int(self.rfile.readline()[1:])
            words.append(self.rfile.read(size + 2)[:-2])
        return words

    def _answer(self, words: list[bytes]) -> bytes:
        if words[0].upper() == b"PING":
            with COUNTS.lock:
                COUNTS.pings += 1
            return b"+PONG from %s\r\n" % sys.argv[3].encode()
        if words[0].upper() != b"GET":
            return b"-ERR unknown command\r\n"
        result = {
            "name": sys.argv[3],
            "peer": self.client_address[0],
            "local": self.connection.getsockname()[0],
            "connections": COUNTS.connections,
            "pings": COUNTS.pings,
            "pipelined": COUNTS.pipelined,
        }
        body = json.dumps({"ec": 200, "em": "", "result": result}).encode()
        return b"$%d\r\n%s\r\n" % (len(body), body)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def main() -> None:
    host, port = sys.argv[1], int(sys.argv[2])
    Server.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with Server((host, port), Handler) as server:
        print("ready", flush=True)
        server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
