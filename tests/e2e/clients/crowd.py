"""Clients of every protocol at once, whose every request has a number that its reply must have.

`crowd.py HOST PORT RAW_PORT NAME=CONNECTIONS@RATE...`, until SIGTERM; then one line of JSON.
NAME is `resp`, `pipelined`, `turbo`, `turbo9` or `raw`; RATE is of all its connections together.
Nobody connects again: a connection that is lost is a failure, and its client stops there. Every
third request is sent in two halves, so that at any moment some agent has half a frame.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import struct
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from tests.e2e.clients.raw import frame, request

BURST = 16
TIMEOUT_S = 20.0
HALF_S = 0.015
"""Between the two halves of a request."""
_BLOCK = struct.Struct(">QQ")
_HEADS = {"turbo": struct.Struct(">IBhqi"), "turbo9": struct.Struct(">IBI")}


class Seen:
    """What the clients of one protocol have seen; `replies` are (ended_s, latency_ms), which
    counts from when the request, or the burst that it is in, was sent."""

    def __init__(self) -> None:
        self.sent = self.ok = 0
        self.failures: list[str] = []
        self.replies: list[tuple[float, float]] = []

    def answered(self, wanted: int, answer: Any, started_s: float) -> None:
        if answer != {"ec": 200, "em": "", "result": wanted}:
            self.failures.append(f"{time.monotonic():.3f} request {wanted}: {answer}"[:300])
            return
        now_s = time.monotonic()
        self.ok += 1
        self.replies.append((round(now_s, 4), round((now_s - started_s) * 1000, 2)))

    def as_dict(self) -> dict[str, Any]:
        failed = {"failed": len(self.failures), "failures": self.failures[:20]}
        return {"sent": self.sent, "ok": self.ok, "replies": self.replies, **failed}


class Connection:
    """A connection and its turns: one every `every_s`, as long as the crowd goes on."""

    def __init__(self, seen: Seen, numbers: itertools.count[int], every_s: float) -> None:
        self.seen = seen
        self.numbers = numbers
        self.every_s = every_s
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def run(
        self,
        host: str,
        port: int,
        turn: Callable[[Connection], Awaitable[None]],
        stop: asyncio.Event,
    ) -> None:
        self.reader, self.writer = await asyncio.open_connection(host, port, limit=1 << 20)
        due_s = time.monotonic() + self.every_s * int.from_bytes(os.urandom(1), "big") / 256
        try:
            while not stop.is_set():
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                due_s = max(due_s + self.every_s, time.monotonic() - 5 * self.every_s)
                async with asyncio.timeout(TIMEOUT_S):
                    await turn(self)
        except (OSError, EOFError, ValueError) as error:
            self.seen.failures.append(f"{time.monotonic():.3f} connection lost: {error!r}")
        finally:
            self.writer.close()

    async def send(self, data: bytes, number: int) -> None:
        if number % 3:
            self.writer.write(data)
            return
        cut = 1 + number % (len(data) - 1)
        self.writer.write(data[:cut])
        await asyncio.sleep(HALF_S)
        self.writer.write(data[cut:])

    async def resp_reply(self) -> Any:
        line = await self.reader.readline()
        if not line.startswith(b"$"):
            raise ConnectionError(f"no reply but {line!r}")
        return json.loads((await self.reader.readexactly(int(line[1:]) + 2))[:-2])


async def resp(link: Connection) -> None:
    """One request at a time."""
    number = next(link.numbers)
    link.seen.sent += 1
    await link.send(frame(request("echo", number)), number)
    started_s = time.monotonic()
    link.seen.answered(number, await link.resp_reply(), started_s)


async def pipelined(link: Connection) -> None:
    """Many requests at once, whose replies come in their order."""
    numbers = [next(link.numbers) for _ in range(BURST)]
    link.seen.sent += BURST
    await link.send(b"".join(frame(request("echo", n)) for n in numbers), numbers[0])
    started_s = time.monotonic()
    for number in numbers:
        link.seen.answered(number, await link.resp_reply(), started_s)


def packets(form: str) -> Callable[[Connection], Awaitable[None]]:
    """Many requests at once, whose replies come as they are ready."""

    async def turn(link: Connection) -> None:
        waiting: dict[int, tuple[int, float]] = {}
        for opaque in range(BURST):
            number = next(link.numbers)
            link.seen.sent += 1
            await link.send(_packet(form, opaque, request("echo", number).encode()), number)
            waiting[opaque] = number, time.monotonic()
        while waiting:
            opaque, body = await _read_packet(form, link.reader)
            number, started_s = waiting.pop(opaque)
            link.seen.answered(number, json.loads(body), started_s)

    return turn


def _packet(form: str, opaque: int, body: bytes) -> bytes:
    if form == "turbo9":
        return _HEADS[form].pack(opaque, 1, len(body)) + body + b"\r\n"
    return _HEADS[form].pack(opaque, 1, 0, 0, len(body)) + body


async def _read_packet(form: str, reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = _HEADS[form].unpack(await reader.readexactly(_HEADS[form].size))
    body = await reader.readexactly(head[-1])
    if form == "turbo9" and await reader.readexactly(2) != b"\r\n":
        raise ConnectionError("no CRLF behind a packet")
    if head[1] != 2:
        raise ConnectionError(f"no reply but command {head[1]}")
    return head[0], body


async def raw(link: Connection) -> None:
    """No MOA at all: an echo of numbered blocks, in their order."""
    sent: deque[tuple[int, float]] = deque()
    for _ in range(BURST):
        number = next(link.numbers)
        link.seen.sent += 1
        await link.send(_BLOCK.pack(0xFEFFFFFFFFFFFFFF, number), number)
        sent.append((number, time.monotonic()))
    while sent:
        number, started_s = sent.popleft()
        came = _BLOCK.unpack(await link.reader.readexactly(_BLOCK.size))[1]
        link.seen.answered(number, {"ec": 200, "em": "", "result": came}, started_s)


TURNS = {
    "resp": (resp, 1),
    "pipelined": (pipelined, BURST),
    "turbo": (packets("turbo"), BURST),
    "turbo9": (packets("turbo9"), BURST),
    "raw": (raw, BURST),
}


async def main() -> None:
    host, port, raw_port, *kinds = sys.argv[1:]
    stop, numbers, seen = asyncio.Event(), itertools.count(1), {}
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with asyncio.TaskGroup() as group:
        for kind in kinds:
            name, _, load = kind.partition("=")
            count, rate = (int(part) for part in load.split("@"))
            turn, size = TURNS[name]
            seen[name] = Seen()
            for _ in range(count):
                link = Connection(seen[name], numbers, count * size / rate)
                where = int(raw_port if name == "raw" else port)
                group.create_task(link.run(host, where, turn, stop))
        print("started", flush=True)
    print(json.dumps({name: what.as_dict() for name, what in seen.items()}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
