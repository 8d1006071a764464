"""The results as a table for people, and as a JSON file for comparing runs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.codecs import CodecCost
from tests.bench.measure import ConnectCost, Latency, Memory, Throughput
from tests.bench.tools import Times

RESULTS = Path(__file__).parent / "results" / "local"
FORMAT = 1

DIRECT = "direct"
_COLUMNS = ("mean_us", "p50_us", "p90_us", "p99_us", "p999_us")


@dataclass(slots=True)
class Results:
    """Everything that one run measured."""

    settings: dict[str, Any]
    missing: tuple[str, ...] = ()
    latency: list[Latency] = field(default_factory=list)
    throughput: list[Throughput] = field(default_factory=list)
    connect: list[ConnectCost] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    codecs: list[CodecCost] = field(default_factory=list)


def save(results: Results, directory: Path = RESULTS) -> Path:
    """Write the results as JSON; the file is named after the time."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    machine = {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "python": f"{platform.python_version()} {Path(sys.executable).resolve()}",
        "load_average": os.getloadavg(),
    }
    text = json.dumps({"format": FORMAT, "machine": machine, **asdict(results)}, indent=1)
    path.write_text(text + "\n")
    return path


def revision(repository: Path) -> str:
    """The commit that was measured, with `-dirty` when it was not all of it."""
    argv = ["git", "-C", str(repository), "describe", "--always", "--dirty"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def table(results: Results) -> str:
    """The whole report as text."""
    parts = [_codec_table(results.codecs)] if results.codecs else []
    parts += [_latency_table(group) for group in _by_shape(results.latency)]
    parts += [_throughput_table(results.throughput)] if results.throughput else []
    parts += [_connect_table(results.connect)] if results.connect else []
    parts += [_memory_table(results.memory)] if results.memory else []
    parts += [f"not measured, because it is not installed: {name}" for name in results.missing]
    return "\n\n".join(parts)


def _by_shape(measured: Sequence[Latency]) -> list[list[Latency]]:
    groups: dict[Any, list[Latency]] = {}
    for latency in measured:
        groups.setdefault(latency.shape, []).append(latency)
    return list(groups.values())


def _latency_table(group: list[Latency]) -> str:
    shape = group[0].shape
    direct = next(latency for latency in group if latency.path == DIRECT)
    rows: list[tuple[str, ...]] = [
        ("path", "mean", "p50", "(spread)", "p90", "p99", "p99.9", "errors")
    ]
    rows.append(_row(direct, lambda times, _round, column: float(getattr(times, column))))
    added = _added_to(direct)
    rows += [_row(latency, added) for latency in group if latency is not direct]
    title = (
        f"Latency, {shape.rate} requests/s, {shape.body_bytes} B, {shape.connections} "
        f"connection{'s' if shape.connections > 1 else ''}: us; below direct what is added to it\n"
        f"(median of {len(direct.rounds)} rounds, spread = least and most of p50)"
    )
    return f"{title}\n{_aligned(rows)}"


Value = Callable[[Times, int, str], float]


def _added_to(direct: Latency) -> Value:
    """A round's figure as the difference to direct in the same round."""
    return lambda times, at, column: float(
        getattr(times, column) - getattr(direct.rounds[at], column)
    )


def _row(latency: Latency, value: Value) -> tuple[str, ...]:
    sign = "" if latency.path == DIRECT else "+"
    values = {
        column: [value(times, at, column) for at, times in enumerate(latency.rounds)]
        for column in _COLUMNS
    }
    texts = [f"{median(values[column]):{sign}.0f}" for column in _COLUMNS]
    spread = f"{min(values['p50_us']):{sign}.0f}..{max(values['p50_us']):{sign}.0f}"
    errors = sum(times.errors for times in latency.rounds)
    return (latency.path, *texts[:2], spread, *texts[2:], str(errors))


def _throughput_table(measured: Sequence[Throughput]) -> str:
    rows = [("path", "requests/s", "per CPU second", "p50 us", "errors")]
    for path in dict.fromkeys(one.path for one in measured):
        rounds = [one for one in measured if one.path == path]
        rows.append(
            (
                path,
                f"{median(one.per_s for one in rounds):.0f}",
                f"{median(one.per_cpu_s for one in rounds):.0f}",
                f"{median(one.p50_us for one in rounds):.0f}",
                str(sum(one.errors for one in rounds)),
            )
        )
    title = "Most requests/s, closed loop, first hop on a CPU of its own (median of the rounds)"
    return f"{title}\n{_aligned(rows)}"


def _connect_table(measured: Sequence[ConnectCost]) -> str:
    rows = [("connect()", "p50 us", "(spread)", "p99 us")]
    for cost in measured:
        p50s = [times.p50_us for times in cost.rounds]
        p99 = median(times.p99_us for times in cost.rounds)
        spread = f"{min(p50s):.1f}..{max(p50s):.1f}"
        rows.append((cost.what, f"{median(p50s):.1f}", spread, f"{p99:.1f}"))
    return f"connect() itself (median of the rounds)\n{_aligned(rows)}"


def _codec_table(measured: Sequence[CodecCost]) -> str:
    rows = [("codec", "body B", "us", "requests/s", "copied")]
    for cost in measured:
        figures = (f"{cost.us:.2f}", f"{cost.per_s:.0f}", f"{cost.copied:.1f}")
        rows.append((cost.what, str(cost.body_bytes), *figures))
    title = (
        "Codecs, one core: CPU time of a request (best round), and the most memory that it makes\n"
        "anew, in bodies of 16 KB"
    )
    return f"{title}\n{_aligned(rows)}"


def _memory_table(measured: Sequence[Memory]) -> str:
    rows = [("first hop of", "PSS MiB", "USS MiB", "connections", "PSS MiB", "USS MiB")]
    for one in measured:
        mib = [
            f"{kib / 1024:.1f}"
            for kib in (
                one.pss_kib,
                one.uss_kib,
                one.pss_with_connections_kib,
                one.uss_with_connections_kib,
            )
        ]
        rows.append((one.what, mib[0], mib[1], str(one.connections), mib[2], mib[3]))
    return f"Memory at rest, and with clients\n{_aligned(rows)}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    return "\n".join(lines)
