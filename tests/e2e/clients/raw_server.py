"""Servers that are no MOA services: `raw_server.py HOST MODE=PORT...`, one thread a connection.

echo     every byte back, and the FIN too
digest   reads to the FIN, then answers with the SHA-256 and the count, and closes
banner   speaks first, then echoes
first    ends its own side first, then reads on and prints what came
reset    answers four bytes with four bytes and a reset
blast    answers the first bytes with 64 MiB and a FIN
stall    reads nothing until SIGUSR1, then is `digest`
silent   reads everything and says nothing
tls      echo inside of TLS; the certificate is TLS_PEM's
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable

BLAST = bytes(range(256)) * 4096
BLASTS = 64
BANNER = b"220 ready when you are\r\n"

_go = threading.Event()


def read_all(sock: socket.socket) -> tuple[str, int]:
    digest, count = hashlib.sha256(), 0
    while chunk := sock.recv(65536):
        digest.update(chunk)
        count += len(chunk)
    return digest.hexdigest(), count


def echo(sock: socket.socket) -> None:
    while chunk := sock.recv(65536):
        sock.sendall(chunk)


def digest(sock: socket.socket) -> None:
    hexdigest, count = read_all(sock)
    sock.sendall(f"{hexdigest} {count}\n".encode())


def banner(sock: socket.socket) -> None:
    sock.sendall(BANNER)
    echo(sock)


def first(sock: socket.socket) -> None:
    sock.sendall(b"goodbye")
    sock.shutdown(socket.SHUT_WR)
    hexdigest, count = read_all(sock)
    print(f"first: got {count} {hexdigest}", flush=True)


def reset(sock: socket.socket) -> None:
    sock.sendall(sock.recv(4)[::-1])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def blast(sock: socket.socket) -> None:
    sock.recv(100)
    for _ in range(BLASTS):
        sock.sendall(BLAST)


def stall(sock: socket.socket) -> None:
    _go.wait()
    digest(sock)


def silent(sock: socket.socket) -> None:
    try:
        _, count = read_all(sock)
        print(f"silent: fin after {count}", flush=True)
    except ConnectionResetError:
        print("silent: reset", flush=True)


def tls(sock: socket.socket) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.environ["TLS_PEM"])
    with context.wrap_socket(sock, server_side=True) as inner:
        echo(inner)


MODES: dict[str, Callable[[socket.socket], None]] = {
    f.__name__: f for f in (echo, digest, banner, first, reset, blast, stall, silent, tls)
}


def serve(host: str, port: int, mode: str) -> None:
    def handle(sock: socket.socket) -> None:
        with sock:
            try:
                MODES[mode](sock)
            except OSError as error:
                print(f"{mode}: {error!r}", flush=True)

    with socket.create_server((host, port), backlog=512) as listener:
        print(f"ready {mode}", flush=True)
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=handle, args=(sock,), daemon=True).start()


def main() -> None:
    signal.signal(signal.SIGUSR1, lambda *_: _go.set())
    host, *modes = sys.argv[1:]
    for mode, _, port in (text.partition("=") for text in modes):
        threading.Thread(target=serve, args=(host, int(port), mode), daemon=True).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
