"""Clients of every protocol go on, request by request, while one agent hands them to another."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.e2e.clients.raw import DEMO
from tests.e2e.conftest import Measured
from tests.support.agents import start_service, static_registry
from tests.support.lab import Lab, LabNode, Running, wait_until
from tests.support.upgrades import Upgrades, wait_no_leak

pytestmark = pytest.mark.e2e

PORT, ECHO = 5000, 7000
CROWD = ("resp=24@300", "pipelined=4@240", "turbo=4@200", "turbo9=4@120", "raw=4@140")
"""1000 a second."""
CONNECTIONS = 40
ROUTED = ("resp", "pipelined", "turbo", "turbo9")


@dataclass(slots=True)
class Node:
    """Callers and agents on `a`; on `b` two instances and an echo that is no MOA."""

    a: LabNode
    b: LabNode
    upgrades: Upgrades

    def crowd(self, *kinds: str) -> Running:
        crowd = self.a.python(
            "crowd", "-m", "tests.e2e.clients.crowd", self.b.ip4, str(PORT), str(ECHO), *kinds
        )
        crowd.wait_line("started")
        return crowd


@pytest.fixture(scope="module")
def node(lab: Lab) -> Node:
    a, b = lab.add_node("a"), lab.add_node("b")
    for port in (PORT, PORT + 1):
        start_service(b, port)
    echo = b.python("echo", "-m", "tests.e2e.clients.raw_server", b.ip4, f"echo={ECHO}")
    echo.wait_line("ready echo")
    instances = [f"{b.ip4}:{PORT}", f"{b.ip4}:{PORT + 1}"]
    registry = static_registry(a.directory / "services.toml", {DEMO: instances})
    upgrades = Upgrades.begin(a, registry)
    upgrades.agent.mesh_on()
    return Node(a, b, upgrades)


@dataclass(slots=True)
class Samples:
    """What `moactl agent status` would have said meanwhile."""

    totals: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def sampling(upgrades: Upgrades) -> Iterator[Samples]:
    """Ask whoever serves, again and again."""
    samples, stop, agent = Samples(), threading.Event(), upgrades.agent

    def sample() -> None:
        while not stop.is_set():
            try:
                samples.totals.append(agent.status()["requests"]["total"])
            except Exception as error:
                samples.errors.append(repr(error))
            stop.wait(0.01)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def end(crowd: Running) -> dict[str, Any]:
    """Stop the clients; what they have seen."""
    crowd.popen.terminate()
    crowd.popen.wait(60)
    seen: dict[str, Any] = json.loads(crowd.output.splitlines()[-1])
    return seen


def p99(replies: list[tuple[float, float]], from_s: float, to_s: float) -> float:
    """Of the latencies of what was answered between these times, in milliseconds."""
    chosen = [ms for ended_s, ms in replies if from_s <= ended_s <= to_s]
    return statistics.quantiles(chosen, n=100)[98]


def test_a_crowd_of_every_protocol(node: Node, measured: Measured) -> None:
    upgrades, first = node.upgrades, node.upgrades.serving
    counted = first.client.status()["requests"]["total"]
    crowd = node.crowd(*CROWD)
    begun_s = time.monotonic()
    successor = upgrades.prepare()
    # A second of quiet load is what p99 is compared with.
    wait_until(lambda: time.monotonic() > begun_s + 5.0, 10, "a load")
    with sampling(upgrades) as samples:
        start_s = time.monotonic()
        retired = upgrades.give(successor)
        end_s = time.monotonic()
        pss = retired.pss_kib(), successor.pss_kib()
        wait_until(lambda: time.monotonic() > end_s + 2.0, 10, "a load after it")
    seen = end(crowd)
    for name, what in seen.items():
        assert what["failed"] == 0, f"{name}: {what['failures']}"
        assert what["ok"] == what["sent"] > 0, name
    assert samples.errors == []
    assert samples.totals == sorted(samples.totals)
    routed = sum(seen[name]["sent"] for name in ROUTED)
    assert successor.client.status()["requests"]["total"] == counted + routed
    assert retired.conns() == []
    replies = [tuple(pair) for what in seen.values() for pair in what["replies"]]
    before = p99(replies, start_s - 3, start_s)
    around = p99(replies, start_s - 0.5, start_s + 1.5)
    measured(
        "an upgrade under 1000 requests a second",
        p99_before_ms=before, p99_around_ms=around, ratio=around / before,
        took_s=end_s - start_s, moved=CONNECTIONS, requests=routed,
        rate=len(replies) / (replies[-1][0] - begun_s),
        pss_old_mib=pss[0] / 1024, pss_new_mib=pss[1] / 1024,
    )  # fmt: skip
    # One socket more than an agent by itself: to each other.
    wait_no_leak(retired, upgrades.own_sockets + 1)
    wait_no_leak(successor, upgrades.own_sockets + 1)
    retired.retire()
    wait_no_leak(successor, upgrades.own_sockets)
