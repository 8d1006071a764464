"""`python -m tests.bench`: measures the agent beside its peers, and judges nothing.

Needs root, the built BPF object and a C compiler. Fails only when it could not run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench import crowd, hotpath, registry, simulation
from tests.bench.codecs import codec_costs
from tests.bench.measure import (
    LoadShape,
    connect_costs,
    latencies,
    memory,
    throughputs,
)
from tests.bench.report import Results, revision, save, table
from tests.bench.tools import BenchError, build
from tests.bench.world import World, world
from tests.support.lab import REPO, LabError

PARTS = ("codecs", "memory", "connect", "latency", "throughput")
"""In this order: memory at rest is measured before anything has grown."""

FIRST_HOPS = [
    "HAProxy tcp, 1 hop",
    "Envoy tcp_proxy, 1 hop",
    "Envoy redis_proxy, 1 hop",
    "moa-agent, 1 hop",
]
_NICE = -10
"""Others on this machine disturb the figures less; the same for every path."""
_REALTIME_PRIORITY = 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--full", action="store_true", help="bodies of 64 B and 16 KB as well")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.6, help="of each measurement")
    parser.add_argument("--rate", type=int, default=1000, help="requests a second, all together")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--codecs", action="store_true", help="the same as --only codecs")
    parser.add_argument(
        "--paths", nargs="+", default=[], help="only paths that contain one of these"
    )
    parser.add_argument(
        "--simulate", action="store_true", help="only the simulation of balancing: needs no root"
    )
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="SCHED_RR for everything measured: for a busy machine, which suffers meanwhile",
    )
    parser.add_argument(
        "--registry", action="store_true", help="only the view of a large registry; needs no root"
    )
    parser.add_argument(
        "--hotpath",
        action="store_true",
        help="only what one request costs the agent's process: needs no root, and no peer",
    )
    parser.add_argument(
        "--instructions",
        action="store_true",
        help="with --hotpath: count instructions too, by valgrind, which takes minutes",
    )
    return parser.parse_args()


def measure(world: World, options: argparse.Namespace, results: Results) -> None:
    """Fill in the results, part by part."""
    say("measuring on", f"CPU {world.cpu_a} (node A) and CPU {world.cpu_b} (node B)")
    steps: dict[str, Callable[[], None]] = {
        "memory": lambda: results.memory.extend(memory(world, FIRST_HOPS)),
        "connect": lambda: results.connect.extend(connect_costs(world, 1000, options.rounds)),
        "latency": lambda: _measure_latency(world, options, results),
        "throughput": lambda: results.throughput.extend(
            throughputs(
                world, FIRST_HOPS, LoadShape(64, 0, 1024, 0.5, options.seconds), options.rounds
            )
        ),
    }
    for part in PARTS[1:]:
        if part in options.only:
            say("measuring", part)
            steps[part]()


def _measure_codecs(options: argparse.Namespace, results: Results) -> None:
    """Needs no world: no root, no kernel, no peer."""
    if "codecs" in options.only:
        say("measuring", "codecs")
        results.codecs.extend(codec_costs(_bodies(options), options.rounds))


def _bodies(options: argparse.Namespace) -> list[int]:
    return [64, 1024, 16 * 1024] if options.full else [1024]


def _measure_latency(world: World, options: argparse.Namespace, results: Results) -> None:
    shapes = [
        LoadShape(connections, options.rate, body, 0.3, options.seconds)
        for body in _bodies(options)
        for connections in options.connections
    ]
    results.latency.extend(latencies(world, shapes, options.rounds))


def _claim_cpus(*, realtime: bool) -> None:
    """For this process and all that it starts."""
    if realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_REALTIME_PRIORITY))
    else:
        os.nice(_NICE)


def say(*words: str) -> None:
    print("bench:", *words, file=sys.stderr, flush=True)


def main() -> int:
    options = arguments()
    if options.simulate:
        print(simulation.report(), crowd.report(), sep="\n\n")
        return 0
    if options.registry:
        print(registry.table(registry.measure()))
        return 0
    if options.hotpath:
        print(hotpath.table(hotpath.measure(options.rounds, instructions=options.instructions)))
        return 0
    if options.codecs:
        options.only = ["codecs"]
    needs_world = any(part in options.only for part in PARTS[1:])
    if needs_world and os.geteuid() != 0:
        say("needs root: it makes network namespaces and loads BPF programs")
        return 1
    settings = {key: value for key, value in vars(options).items() if key != "paths"}
    results = Results({**settings, "revision": revision(REPO)})
    _measure_codecs(options, results)
    try:
        if needs_world:
            _measure_world(options, results)
    except (BenchError, LabError) as e:
        say(str(e))
        return 1
    print(table(results))
    say("results:", str(save(results)))
    return 0


def _measure_world(options: argparse.Namespace, results: Results) -> None:
    with tempfile.TemporaryDirectory(prefix="moa-bench-") as directory:
        tools = build(Path(directory))
        _claim_cpus(realtime=options.realtime)
        with world(tools, options.paths) as built:
            results.missing = built.missing
            measure(built, options, results)


if __name__ == "__main__":
    sys.exit(main())
