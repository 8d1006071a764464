"""A steady load that writes down when each request ended and how, until it gets SIGTERM.

    timeline.py resp|turbo HOST:PORT RATE CONNECTIONS PATIENCE_S

Two methods in turn: `whoami`, which a test may call idempotent, and `echo`, which it may not.
A line of JSON for each request: `[ended_s, method, who answered or "", what failed or ""]`, the
time by the machine's monotonic clock.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from tests.e2e.clients.raw import DEMO, Connection, request
from tests.samples.turbo_client import TurboClient


class Client(Protocol):
    def ask(self, method: str) -> dict[str, Any]: ...

    def close(self) -> None: ...


class RespClient:
    def __init__(self, host: str, port: int, patience_s: float) -> None:
        self._connection = Connection(host, port, patience_s)

    def ask(self, method: str) -> dict[str, Any]:
        return self._connection.call(request(method))

    def close(self) -> None:
        self._connection.close()


class PacketClient:
    def __init__(self, host: str, port: int, patience_s: float) -> None:
        self._client = TurboClient(host, port, timeout_s=patience_s)

    def ask(self, method: str) -> dict[str, Any]:
        return self._client.call(DEMO, method)

    def close(self) -> None:
        self._client.close()


def run(
    connect: Callable[[], Client], every_s: float, first_s: float, stop: threading.Event
) -> None:
    """One connection, made anew whenever it breaks; requests fall due every `every_s`."""
    client: Client | None = None
    number, due_s = 0, first_s
    while not stop.wait(max(0.0, due_s - time.monotonic())):
        method = ("whoami", "echo")[number % 2]
        number, due_s = number + 1, max(due_s + every_s, time.monotonic() - 1)
        who = failed = ""
        try:
            client = client or connect()
            answer = client.ask(method)
            if answer["ec"] != 200:
                failed = f"ec {answer['ec']}: {answer['em']}"
            elif method == "whoami":
                who = answer["result"]["name"]
        except OSError as error:
            failed = f"{type(error).__name__}: {error}"
            if client is not None:
                client.close()
            client = None
        row = json.dumps([time.monotonic(), method, who, failed])
        os.write(1, f"{row}\n".encode())  # one write: the lines of two threads stay apart
    if client is not None:
        client.close()


def main() -> None:
    protocol, target, rate, connections, patience_s = sys.argv[1:]
    host, _, port = target.rpartition(":")
    kind = RespClient if protocol == "resp" else PacketClient
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    count = int(connections)
    every_s, begin_s = count / float(rate), time.monotonic()
    for number in range(count):
        first_s = begin_s + number * every_s / count
        connect = partial(kind, host, int(port), float(patience_s))
        threading.Thread(target=run, args=(connect, every_s, first_s, stop)).start()


if __name__ == "__main__":
    main()
