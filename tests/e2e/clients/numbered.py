"""Requests with numbers, `put` and `get` in turns, until SIGTERM; then one line of JSON.

`failures` has the number, method, `em` and monotonic time of each that did not succeed;
a caller never repeats a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import sys
import time
from typing import Any

from tests.e2e.clients.raw import frame, request

CALLERS = 12
PAUSE_S = 0.02


class Callers:
    def __init__(self, host: str, port: int, uri: str) -> None:
        self._target = (host, port)
        self._uri = uri
        self._numbers = itertools.count(1)
        self.sent = 0
        self.failures: list[dict[str, Any]] = []

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._connection(stop)

    async def _connection(self, stop: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection(*self._target)
        try:
            while not stop.is_set():
                await self._request(reader, writer)
                await asyncio.sleep(PAUSE_S)
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(self._numbers)
        method = "put" if number % 2 else "get"
        self.sent += 1
        try:
            writer.write(frame(request(method, number, uri=self._uri)))
            line = await reader.readline()
            if not line:
                raise ConnectionError("closed")
            answer = json.loads((await reader.readexactly(int(line[1:]) + 2))[:-2])
        except (OSError, asyncio.IncompleteReadError) as error:
            self._failed(number, method, 0, repr(error))
            raise
        if answer["ec"] != 200:
            self._failed(number, method, answer["ec"], answer["em"])

    def _failed(self, number: int, method: str, ec: int, em: str) -> None:
        failure = {"number": number, "method": method, "ec": ec, "em": em}
        self.failures.append(failure | {"at_s": time.monotonic()})


async def main() -> None:
    callers = Callers(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(callers.run(stop))
        print("started", flush=True)
    print(json.dumps({"sent": callers.sent, "failures": callers.failures}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
