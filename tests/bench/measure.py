"""The measurements: every path in turns, in the same run, several times over."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from interceptor.cgroup import Cgroup
from tests.bench.tools import BenchError, Times
from tests.bench.world import ECHO_ONE, OUT_OF_SCOPE_NET, Route, World, outside
from tests.support.lab import Running, wait_until

AGENT_PORT = 15001
CONNECT_RATE = 1000
MANY_CONNECTIONS = 1000
_SAMPLE_EVERY_S = 0.25
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class LoadShape:
    """A load: `rate` requests a second, 0 for as many as it gets."""

    connections: int
    rate: int
    body_bytes: int
    warmup_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Latency:
    """The rounds of one path under one load, in the order in which they were measured."""

    path: str
    shape: LoadShape
    rounds: tuple[Times, ...]


@dataclass(frozen=True, slots=True)
class Throughput:
    """One closed-loop round: requests a second, and a second of the first hop's CPU time."""

    path: str
    per_s: float
    per_cpu_s: float
    p50_us: float
    errors: int


@dataclass(frozen=True, slots=True)
class ConnectCost:
    """The rounds of connect() in one situation."""

    what: str
    rounds: tuple[Times, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a first hop, in KiB: proportional (PSS) and private (USS), at rest and with clients."""

    what: str
    pss_kib: int
    uss_kib: int
    connections: int
    pss_with_connections_kib: int
    uss_with_connections_kib: int


def latencies(world: World, shapes: list[LoadShape], rounds: int) -> Iterator[Latency]:
    """Measure every path under every load; yields when all rounds of one load are done."""
    for shape in shapes:
        found: dict[str, list[Times]] = {route.name: [] for route in world.routes}
        for _ in range(rounds):
            for route in world.routes:
                found[route.name].append(load(world, route, shape, world.cpu_a))
        for name, times in found.items():
            yield Latency(name, shape, tuple(times))


def load(world: World, route: Route, shape: LoadShape, cpu: int) -> Times:
    """One run of the load generator on node A."""
    done = world.a.call(*_load_argv(world, route, shape, cpu), cgroup=route.caller)
    if done.returncode != 0:
        raise BenchError(f"load of {route.name}: exit {done.returncode}: {done.stderr.strip()}")
    return Times.parse(done.stdout)


def _load_argv(world: World, route: Route, shape: LoadShape, cpu: int) -> tuple[str, ...]:
    numbers = (
        shape.connections,
        shape.rate,
        shape.warmup_s,
        shape.seconds,
        shape.body_bytes,
        cpu,
    )
    where = (world.tools.load, route.host, str(route.port), route.service)
    return (*where, *(str(number) for number in numbers))


def throughputs(
    world: World, names: list[str], shape: LoadShape, rounds: int
) -> Iterator[Throughput]:
    """As many requests as the first hop takes; the load runs on node B's CPU, out of its way."""
    routes = [route for name in names if (route := world.route(name)) is not None]
    for _ in range(rounds):
        for route in routes:
            before_s = _cpu_s(route.hops[0])
            times = load(world, route, shape, world.cpu_b)
            used_s = _cpu_s(route.hops[0]) - before_s
            share = shape.seconds / (shape.seconds + shape.warmup_s)
            per_cpu_s = times.count / (used_s * share) if used_s else 0.0
            yield Throughput(route.name, times.per_s, per_cpu_s, times.p50_us, times.errors)


def _cpu_s(process: Running) -> float:
    """User and system time of a process (proc(5): fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def connect_costs(world: World, count: int, rounds: int) -> list[ConnectCost]:
    """connect() with and without us; the agent has the other CPU, so it does not interrupt."""
    a, b = world.a, world.b
    far = f"{OUT_OF_SCOPE_NET}.2"
    cases: list[tuple[str, str, int, Cgroup]] = [
        ("to the server, no hooks", b.ip4, ECHO_ONE, outside(a)),
        ("to the server, hooks, out of scope", far, ECHO_ONE, a.services),
        ("to the agent's listener, no hooks", "127.0.0.1", AGENT_PORT, outside(a)),
        ("intercepted, to the agent", b.ip4, ECHO_ONE, a.services),
    ]
    found: dict[str, list[Times]] = {what: [] for what, *_ in cases}
    for _ in range(rounds):
        for what, host, port, cgroup in cases:
            numbers = (port, count, CONNECT_RATE, world.cpu_b)
            argv = (world.tools.connect, host, *(str(number) for number in numbers))
            done = a.call(*argv, cgroup=cgroup)
            if done.returncode != 0:
                raise BenchError(f"connect {what}: {done.stderr.strip()}")
            found[what].append(Times.parse(done.stdout))
    return [ConnectCost(what, tuple(times)) for what, times in found.items()]


def memory(world: World, names: list[str], connections: int = MANY_CONNECTIONS) -> list[Memory]:
    """Memory of the first hop of each path now, and while `connections` clients ask."""
    routes = [route for name in names if (route := world.route(name)) is not None]
    return [_memory_of(world, route, connections) for route in routes]


def _memory_of(world: World, route: Route, connections: int) -> Memory:
    hop = route.hops[0]
    before = _memory_kib(hop.pid)
    shape = LoadShape(connections, 1000, 1024, 0.0, 4.0)
    argv = _load_argv(world, route, shape, world.cpu_a)
    running = world.a.start("load-memory", *argv, cgroup=route.caller)
    wait_until(
        lambda: _sockets(hop.pid) >= connections or running.popen.poll() is not None,
        20,
        f"{route.name}: {connections} connections",
    )
    samples = [_memory_kib(hop.pid)]
    while not _ends_within(running, _SAMPLE_EVERY_S):
        samples.append(_memory_kib(hop.pid))
    if running.popen.returncode != 0:
        raise BenchError(f"load of {route.name}: {running.output.strip()}")
    return Memory(route.name, *before, connections, *max(samples))


def _ends_within(running: Running, timeout_s: float) -> bool:
    try:
        running.popen.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _sockets(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _memory_kib(pid: int) -> tuple[int, int]:
    """PSS and USS (proc(5): smaps_rollup)."""
    fields: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, _, value = line.partition(":")
        fields[key] = int(value.split()[0])
    return fields["Pss"], fields["Private_Clean"] + fields["Private_Dirty"]
