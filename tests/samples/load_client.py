#!/usr/bin/env python3
"""A plain load client to copy from: redis-py only, and it knows nothing of an agent.

    python3 load_client.py --target 127.0.0.1:5000 --rate 500 --seconds 10

It is an *open loop*: requests fall due at a fixed rate whether or not earlier ones have been
answered, and a latency counts from the moment a request fell due. A server that stands still
for a second is therefore seen as a second by every request of that second.

Nothing is retried: each request that fails is recorded with its time and its text.
Exit code: 0 when every request was answered with `ec` 200, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError


@dataclass(frozen=True, slots=True)
class Load:
    """What to send; `args` are the method's arguments, times are in seconds."""

    host: str
    port: int
    service: str = "/service/demo"
    method: str = "whoami"
    args: tuple[Any, ...] = ()
    rate: float = 100.0
    seconds: float = 5.0
    connections: int = 4
    timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Failure:
    """One request that failed; `at_s` counts from the start of the load."""

    at_s: float
    kind: str
    text: str


@dataclass(slots=True)
class Report:
    """What happened; latencies in milliseconds, offsets in seconds from the start."""

    sent: int = 0
    ok: int = 0
    failures: list[Failure] = field(default_factory=list)
    answered_by: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    first_ok_s: float | None = None
    last_ok_s: float | None = None

    def percentile_ms(self, share: float) -> float | None:
        """The latency that `share` of the good answers stayed within."""
        if not self.latencies_ms:
            return None
        ordered = sorted(self.latencies_ms)
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)

    def as_dict(self) -> dict[str, Any]:
        """The report as `--json` prints it."""
        kinds: dict[str, list[float]] = {}
        for failure in self.failures:
            kinds.setdefault(failure.kind, []).append(failure.at_s)
        return {
            "sent": self.sent,
            "ok": self.ok,
            "errors": {
                kind: {"count": len(at), "first_s": min(at), "last_s": max(at)}
                for kind, at in sorted(kinds.items())
            },
            "answered_by": dict(sorted(self.answered_by.items())),
            "p50_ms": self.percentile_ms(0.50),
            "p99_ms": self.percentile_ms(0.99),
            "max_ms": self.percentile_ms(1.0),
            "first_ok_s": self.first_ok_s,
            "last_ok_s": self.last_ok_s,
            "failures": [asdict(failure) for failure in self.failures],
        }


class _Caller:
    """The connections of one load and what they have seen."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._start_s = time.perf_counter()
        self._next = 0
        params = {"m": load.method, "args": list(load.args)}
        self._body = json.dumps({"action": load.service, "params": params})
        self.report = Report()

    async def run_connection(self) -> None:
        """Take the next request that is due, send it, wait for its answer; again."""
        load = self._load
        client = redis.asyncio.Redis(
            host=load.host, port=load.port, single_connection_client=True,
            socket_timeout=load.timeout_s, socket_connect_timeout=load.timeout_s,
            retry=Retry(NoBackoff(), 0),
        )  # fmt: skip
        try:
            while self._next < int(load.rate * load.seconds):
                due_s = self._start_s + self._next / load.rate
                self._next += 1
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                await self._call(client, due_s)
        finally:
            await client.aclose()

    async def _call(self, client: redis.asyncio.Redis, due_s: float) -> None:
        self.report.sent += 1
        try:
            answer = json.loads(await client.get(self._body) or b"")
            code = answer["ec"]
        except (RedisError, OSError, ValueError, TypeError, KeyError) as error:
            self._failed(type(error).__name__, str(error))
            return
        if code != 200:
            self._failed(f"ec {code}", str(answer.get("em", "")))
            return
        now_s = time.perf_counter()
        self.report.ok += 1
        self.report.latencies_ms.append((now_s - due_s) * 1000)
        self.report.last_ok_s = round(now_s - self._start_s, 3)
        if self.report.first_ok_s is None:
            self.report.first_ok_s = self.report.last_ok_s
        result = answer.get("result")
        if isinstance(result, dict) and "address" in result:
            self.report.answered_by[str(result["address"])] += 1

    def _failed(self, kind: str, text: str) -> None:
        at_s = round(time.perf_counter() - self._start_s, 3)
        self.report.failures.append(Failure(at_s, kind, text))


async def run_load(load: Load) -> Report:
    """Send the whole load and report; ends at most `timeout_s` a queued request late."""
    caller = _Caller(load)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(load.connections):
            tasks.create_task(caller.run_connection())
    return caller.report


def parse_arguments() -> tuple[Load, bool]:
    """The load that the command line asks for, and whether to print JSON."""
    parser = argparse.ArgumentParser(description="open-loop load on a MOA service")
    parser.add_argument("--target", required=True, help="host:port")
    parser.add_argument("--service", default="/service/demo")
    parser.add_argument("--method", default="whoami")
    parser.add_argument("--args", default="[]", help="of the method, a JSON list")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--timeout", type=float, default=5.0, help="of one request, seconds")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args()
    host, _, port = options.target.rpartition(":")
    load = Load(
        host=host.strip("[]"), port=int(port), service=options.service, method=options.method,
        args=tuple(json.loads(options.args)), rate=options.rate, seconds=options.seconds,
        connections=options.connections, timeout_s=options.timeout,
    )  # fmt: skip
    return load, options.json


def main() -> None:
    """Run the load of the command line and print what happened."""
    load, as_json = parse_arguments()
    report = asyncio.run(run_load(load)).as_dict()
    if as_json:
        print(json.dumps(report))
    else:
        print(f"sent {report['sent']}  ok {report['ok']}  errors {len(report['failures'])}")
        for kind, seen in report["errors"].items():
            at = f"first at {seen['first_s']} s, last at {seen['last_s']} s"
            print(f"  {kind}: {seen['count']}, {at}")
        for address, count in report["answered_by"].items():
            print(f"  answered by {address}: {count}")
        print(f"p50 {report['p50_ms']} ms  p99 {report['p99_ms']} ms  max {report['max_ms']} ms")
    sys.exit(1 if report["failures"] else 0)


if __name__ == "__main__":
    main()
