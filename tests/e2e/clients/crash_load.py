"""Clients that never come back: what each of their connections saw, from start to SIGTERM.

`crash_load.py HOST PORT RAW_PORT URI KIND=COUNT...`; at the end one line of JSON: for each kind
what was sent, how often which answer came, and what went wrong. `put` and `get` in turns.

resp     one request at a time              halves   with a pause in the middle of each
piped    five at a time, answers in order   large    1 MiB each, sent in pieces with pauses
slow     answers take 300 ms                bulky    answers of 2 MiB, read in small pieces
turbo    four at once, by their numbers     turbo9   the same in packets of 2015
raw      bytes that come back as they were  idle     one request at the start and one at the end
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

from tests.e2e.clients.raw import frame, request

WITHIN_S = 60.0
"""Longer than four agents, killed before they have answered, take to start on a busy machine."""
PAUSE_S = 0.01
_ids = itertools.count(1)


class Wrong(Exception):
    """An answer that is another request's, or none at all."""


class Load:
    def __init__(self, host: str, port: int, raw_port: int, uri: str) -> None:
        self.host, self.port, self.raw_port, self.uri = host, port, raw_port, uri
        self.stop = asyncio.Event()
        self.ready = 0
        self.sent: Counter[str] = Counter()
        self.answers: dict[str, Counter[str]] = defaultdict(Counter)
        self.failed: dict[str, list[str]] = defaultdict(list)
        self.lost: dict[str, list[str]] = defaultdict(list)

    def ask(self, kind: str, delay_ms: int = 0, size: int = 0, pad: int = 0) -> tuple[str, str]:
        """A new request; its JSON, and what its answer must name."""
        number = next(_ids)
        method = "put" if number % 2 else "get"
        self.sent[kind] += 1
        args = (number, delay_ms, size, "y" * pad)
        return request(method, *args, uri=self.uri), f"{method} {number}"

    def judge(self, kind: str, wanted: str, answer: dict[str, Any]) -> None:
        if answer["ec"] == 200:
            seen = f"{answer['result']['m']} {answer['result']['id']}"
            if seen != wanted:
                raise Wrong(f"asked {wanted}, answered {seen}")
        else:
            self.failed[kind].append(f"{wanted}: {answer['ec']} {answer['em']}")
        self.answers[kind][f"{wanted.split()[0]} {answer['ec']}"] += 1

    async def answered(self, kind: str, wanted: str, reader: asyncio.StreamReader) -> None:
        """Wait for the answer to a command, which must be this one's."""
        try:
            self.judge(kind, wanted, await read_reply(reader))
        except TimeoutError:
            raise Wrong(f"no answer to {wanted}") from None

    async def run(self, kind: str, serve: Callable[..., Awaitable[None]]) -> None:
        port = self.raw_port if kind == "raw" else self.port
        reader, writer = await asyncio.open_connection(self.host, port, limit=1 << 23)
        try:
            await serve(self, kind, reader, writer)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, Wrong) as error:
            self.lost[kind].append(repr(error))
        finally:
            writer.close()


async def read_reply(reader: asyncio.StreamReader) -> dict[str, Any]:
    async with asyncio.timeout(WITHIN_S):
        line = await reader.readline()
        if not line.startswith(b"$"):
            raise Wrong(f"no bulk string but {line!r}")
        data = await reader.readexactly(int(line[1:]) + 2)
    answer: dict[str, Any] = json.loads(data)
    return answer


async def resp(load: Load, kind: str, reader: Any, writer: Any) -> None:
    delay_ms = 300 if kind == "slow" else 0
    load.ready += 1
    while not load.stop.is_set():
        body, wanted = load.ask(kind, delay_ms)
        writer.write(frame(body))
        await load.answered(kind, wanted, reader)
        await asyncio.sleep(PAUSE_S)


async def piped(load: Load, kind: str, reader: Any, writer: Any) -> None:
    load.ready += 1
    while not load.stop.is_set():
        asked = [load.ask(kind) for _ in range(5)]
        writer.write(b"".join(frame(body) for body, _ in asked))
        for _, wanted in asked:
            await load.answered(kind, wanted, reader)
        await asyncio.sleep(PAUSE_S)


async def halves(load: Load, kind: str, reader: Any, writer: Any) -> None:
    load.ready += 1
    pad = 1 << 20 if kind == "large" else 0
    while not load.stop.is_set():
        body, wanted = load.ask(kind, pad=pad)
        data = frame(body)
        if pad:
            for at in range(0, len(data), 128 * 1024):
                writer.write(data[at : at + 128 * 1024])
                await asyncio.sleep(0.05)
        else:
            cut = random.randrange(1, len(data))
            writer.write(data[:cut])
            await asyncio.sleep(random.uniform(0.05, 0.5))
            writer.write(data[cut:])
        await load.answered(kind, wanted, reader)


async def bulky(load: Load, kind: str, reader: Any, writer: Any) -> None:
    load.ready += 1
    while not load.stop.is_set():
        body, wanted = load.ask(kind, size=2 << 20)
        writer.write(frame(body))
        async with asyncio.timeout(WITHIN_S):
            line = await reader.readline()
            left, data = int(line[1:]) + 2, b""
            while left:
                part = await reader.read(min(left, 200_000))
                if not part:
                    raise Wrong("ended within an answer")
                data, left = data + part, left - len(part)
                await asyncio.sleep(0.03)
        load.judge(kind, wanted, json.loads(data))


async def turbo(load: Load, kind: str, reader: Any, writer: Any) -> None:
    load.ready += 1
    open_: dict[int, str] = {}
    opaque = 0
    while not load.stop.is_set() or open_:
        while len(open_) < 4 and not load.stop.is_set():
            body, wanted = load.ask(kind, random.choice((0, 20, 100)))
            opaque += 1
            open_[opaque] = wanted
            data = body.encode()
            if kind == "turbo9":
                writer.write(struct.pack(">IBI", opaque, 1, len(data)) + data + b"\r\n")
            else:
                writer.write(struct.pack(">IBhqi", opaque, 1, 0, 0, len(data)) + data)
        async with asyncio.timeout(WITHIN_S):
            if kind == "turbo9":
                head = await reader.readexactly(9)
                number, _cmd, size = struct.unpack(">IBI", head)
                data = (await reader.readexactly(size + 2))[:-2]
            else:
                head = await reader.readexactly(19)
                number, _cmd, _version, _extension, size = struct.unpack(">IBhqi", head)
                data = await reader.readexactly(size)
        if number not in open_:
            raise Wrong(f"packet {number} answers nothing")
        load.judge(kind, open_.pop(number), json.loads(data))
        await asyncio.sleep(PAUSE_S)


async def raw(load: Load, kind: str, reader: Any, writer: Any) -> None:
    """Not ahead of the echo by more than it takes, and every byte in its place."""
    load.ready += 1
    while not load.stop.is_set():
        data = random.randbytes(random.choice((10, 1000, 100_000)))
        load.sent[kind] += 1
        writer.write(b"\x00not moa" + data)
        async with asyncio.timeout(WITHIN_S):
            if await reader.readexactly(len(data) + 8) != b"\x00not moa" + data:
                raise Wrong("other bytes came back")
        load.answers[kind]["whole"] += 1
        await asyncio.sleep(PAUSE_S)


async def idle(load: Load, kind: str, reader: Any, writer: Any) -> None:
    body, wanted = load.ask(kind)
    writer.write(frame(body))
    await load.answered(kind, wanted, reader)
    load.ready += 1
    await load.stop.wait()
    body, wanted = load.ask(kind)
    writer.write(frame(body))
    await load.answered(kind, wanted, reader)


KINDS = {
    "resp": resp, "slow": resp, "piped": piped, "halves": halves, "large": halves,
    "bulky": bulky, "turbo": turbo, "turbo9": turbo, "raw": raw, "idle": idle,
}  # fmt: skip


async def main() -> None:
    host, port, raw_port, uri, *counts = sys.argv[1:]
    load = Load(host, int(port), int(raw_port), uri)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, load.stop.set)
    wanted = [(kind, int(count)) for kind, _, count in (c.partition("=") for c in counts)]
    async with asyncio.TaskGroup() as group:
        for kind, count in wanted:
            for _ in range(count):
                group.create_task(load.run(kind, KINDS[kind]))
        while load.ready < sum(count for _, count in wanted):
            await asyncio.sleep(0.01)
        print("started", flush=True)
    report = {"sent": load.sent, "answers": load.answers, "failed": load.failed, "lost": load.lost}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
