"""The registry's view of a large site, with a real Redis: memory, delay and CPU of a follower.

`make bench BENCH_ARGS=--registry`. The follower is a process of its own that does nothing else;
this one changes the registry. Prints a table for people and judges nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

import psutil
import uvloop

from installer import logs
from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.registry import keys
from proxy.registry.base import RegistryState
from proxy.registry.endpoint import RedisEndpoint
from proxy.registry.member import format_member
from proxy.registry.redis import RedisRegistry
from tests.support.redis import RedisServer

SERVICES, EACH = 2000, 10
RATE = 50
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class RegistryFigures:
    """What was measured; memory is PSS, delays are from before the change is sent until it is
    in the follower's table."""

    instances: int
    memory_mib: float
    memory_of_view_mib: float
    load_s: float
    delays_ms: dict[str, float]
    cpu_idle_percent: float
    cpu_busy_percent: float
    changes: int


def key_of(number: int) -> ServiceKey:
    return ServiceKey(f"/service/s{number % SERVICES}")


def instance_of(service: int, number: int, version: str = "") -> Instance:
    host = f"10.{service // 256}.{service % 256}.{number + 1}"
    return Instance(Address(host, 5000), weight=50, zone=f"z{number}", version=version)


def fill(server: RedisServer) -> None:
    """Enter all instances, as if they had registered."""
    with server.client() as client:
        pipe = client.pipeline(transaction=False)
        for number in range(SERVICES):
            key = key_of(number)
            members = [format_member(instance_of(number, i)) for i in range(EACH)]
            pipe.sadd(keys.SERVICES, str(key))
            pipe.sadd(keys.service_key(key), *members)
            pipe.set(keys.version_key(key), "1700000000000000-10")
        pipe.execute()


def measure(seconds: float = 10.0) -> RegistryFigures:
    """Start Redis and a follower, change the registry at `RATE`, and end both."""
    with (
        tempfile.TemporaryDirectory(prefix="moa-bench-registry-") as directory,
        RedisServer(Path(directory)) as server,
    ):
        fill(server)
        follower = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.registry", server.url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            return _measure(follower, server, seconds)
        finally:
            follower.kill()
            follower.wait()


def _measure(
    follower: subprocess.Popen[str], server: RedisServer, seconds: float
) -> RegistryFigures:
    assert follower.stdin is not None
    assert follower.stdout is not None
    process = psutil.Process(follower.pid)
    follower.stdout.readline()
    empty_mib = _pss_mib(process)
    follower.stdin.write("go\n")
    follower.stdin.flush()
    loaded = json.loads(follower.stdout.readline())
    full_mib = _pss_mib(process)
    idle = _cpu_percent(process, seconds / 2, lambda: time.sleep(seconds / 2))
    due: list[float] = []
    busy = _cpu_percent(
        process, seconds, lambda: due.extend(asyncio.run(_change(server.url, int(RATE * seconds))))
    )
    seen: dict[int, float] = {}
    while len(seen) < len(due):
        number, at_s = json.loads(follower.stdout.readline())
        seen[number] = at_s
    delays = sorted((seen[n] - at_s) * 1000 for n, at_s in enumerate(due))
    cuts = quantiles(delays, n=100)
    return RegistryFigures(
        instances=SERVICES * EACH,
        memory_mib=full_mib,
        memory_of_view_mib=full_mib - empty_mib,
        load_s=loaded["at_s"],
        delays_ms={"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": delays[-1]},
        cpu_idle_percent=idle,
        cpu_busy_percent=busy,
        changes=len(due),
    )


def _pss_mib(process: psutil.Process) -> float:
    return float(process.memory_full_info().pss / MIB)


def _cpu_percent(process: psutil.Process, seconds: float, work: Any) -> float:
    start_s, before = time.monotonic(), process.cpu_times()
    work()
    after, took_s = process.cpu_times(), time.monotonic() - start_s
    used_s = after.user + after.system - before.user - before.system
    return 100 * used_s / max(took_s, seconds)


async def _change(url: str, count: int) -> list[float]:
    """Change one instance of a service after the other; when each was sent, by the clock."""
    registry = RedisRegistry(RedisEndpoint.parse(url))
    sent = []
    start_s = time.monotonic()
    for number in range(count):
        await asyncio.sleep(max(0.0, start_s + number / RATE - time.monotonic()))
        sent.append(time.monotonic())
        await registry.register(key_of(number), instance_of(number % SERVICES, 0, f"v{number}"))
    await registry.aclose()
    return sent


async def _follow(url: str) -> None:
    """The follower: says when it is ready, when it has loaded, and when it sees each change."""
    logs.configure("warning")
    registry = RedisRegistry(RedisEndpoint.parse(url))
    expected = 0
    lines: list[str] = []

    def on_table(table: ServiceTable) -> None:
        nonlocal expected
        while any(i.version == f"v{expected}" for i in table.instances(key_of(expected))):
            lines.append(f"[{expected}, {time.monotonic()}]\n")
            expected += 1
        sys.stdout.writelines(lines)
        sys.stdout.flush()
        lines.clear()

    _say({"at_s": time.monotonic()})
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    started_s = time.monotonic()
    registry.subscribe(on_table)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(registry.run())
        while registry.status().state is not RegistryState.SYNCED:
            await asyncio.sleep(0.005)
        _say({"at_s": time.monotonic() - started_s})
        await asyncio.Event().wait()


def _say(what: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def table(figures: RegistryFigures) -> str:
    """The figures for people, beside the aims of performance.md."""
    delays = "  ".join(f"{name} {value:.1f}" for name, value in figures.delays_ms.items())
    rows = (
        ("registry view", f"{SERVICES} services x {EACH} = {figures.instances} instances"),
        ("memory of the process, PSS", f"{figures.memory_mib:.1f} MiB (aim < 64)"),
        ("  of which the view", f"{figures.memory_of_view_mib:.1f} MiB"),
        ("first load", f"{figures.load_s:.2f} s"),
        ("change seen after, ms", f"{delays} (aim < 50)"),
        ("CPU without changes", f"{figures.cpu_idle_percent:.2f} %"),
        (f"CPU at {RATE} changes a second", f"{figures.cpu_busy_percent:.2f} % (aim < 2)"),
        ("load average", f"{os.getloadavg()[0]:.1f}"),
    )
    return "\n".join(f"{name:32}{value}" for name, value in rows)


if __name__ == "__main__":
    uvloop.run(_follow(sys.argv[1]))  # as the agent does
