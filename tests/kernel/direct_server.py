"""A plain TCP server: answers each connection with one JSON line that says it is itself.

The line has the shape of tests/support/stub_agent.py's, with the slot DIRECT, so that a
caller can tell by its first bytes who answered.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket


def listening(endpoint: str, device: str) -> socket.socket:
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    info = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    sock = socket.socket(info[0], socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    sock.bind(info[4])
    sock.listen(1024)
    return sock


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoints", nargs="+", help="host:port, [host]:port")
    parser.add_argument("--device", default="")
    options = parser.parse_args()
    with selectors.DefaultSelector() as selector:
        for endpoint in options.endpoints:
            selector.register(listening(endpoint, options.device), selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                sock, peer = key.fileobj.accept()
                answer = {
                    "slot": "DIRECT",
                    "local": list(sock.getsockname()[:2]),
                    "peer": list(peer[:2]),
                }
                with sock:
                    sock.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
