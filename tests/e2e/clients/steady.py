"""Callers as most are: `steady.py HOST PORT THREADS MODE`; each calls until SIGTERM.

MODE `redis-py` keeps its connections and has the library's defaults: what failed on an old
connection is tried again on a new one. MODE `short` has a connection for each request, as
PHP has, and tries nothing again. MODE `kept` has one connection for each thread, and tries
nothing again.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import redis

from tests.e2e.clients.raw import Connection, call, request


class Callers:
    """What all threads have seen."""

    def __init__(self, host: str, port: int, mode: str) -> None:
        client = redis.Redis(host=host, port=port, socket_timeout=5)
        self.get: Callable[[str], dict[str, Any]] = lambda body: json.loads(client.get(body) or b"")
        if mode == "short":
            self.get = partial(call, host, port)
        elif mode == "kept":
            own = threading.local()

            def get(body: str) -> dict[str, Any]:
                if not hasattr(own, "connection"):
                    own.connection = Connection(host, port)
                answer: dict[str, Any] = own.connection.call(body)
                return answer

            self.get = get
        self.stop = threading.Event()
        self.ok = 0
        self.slowest_s = 0.0
        self.failures: list[str] = []
        self.names: Counter[str] = Counter()
        self._lock = threading.Lock()

    def run(self) -> None:
        body = request("whoami")
        while not self.stop.is_set():
            start_s = time.monotonic()
            try:
                answer = self.get(body)
                failure = "" if answer.get("ec") == 200 else str(answer)
            except (redis.RedisError, OSError) as error:
                answer, failure = {}, repr(error)
            with self._lock:
                self.slowest_s = max(self.slowest_s, time.monotonic() - start_s)
                if failure:
                    self.failures.append(failure)
                else:
                    self.ok += 1
                    self.names[answer["result"]["name"]] += 1


def main() -> None:
    callers = Callers(sys.argv[1], int(sys.argv[2]), sys.argv[4])
    signal.signal(signal.SIGTERM, lambda *_: callers.stop.set())
    threads = [threading.Thread(target=callers.run) for _ in range(int(sys.argv[3]))]
    for thread in threads:
        thread.start()
    print("started", flush=True)
    callers.stop.wait()
    for thread in threads:
        thread.join()
    seen = {"ok": callers.ok, "failures": callers.failures, "names": dict(callers.names)}
    print(json.dumps(seen | {"slowest_s": callers.slowest_s}), flush=True)


if __name__ == "__main__":
    main()
