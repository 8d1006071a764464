"""Clients of every protocol go on, request by request, while one agent hands them to another."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tests.e2e.conftest import Measured
from tests.support import crowds
from tests.support.crowds import Crowd
from tests.support.lab import Lab
from tests.support.upgrades import Upgrades, wait_no_leak

pytestmark = pytest.mark.e2e

CROWD = ("resp=24@300", "pipelined=4@240", "turbo=4@200", "turbo9=4@120", "raw=4@140")
"""1000 a second."""
CONNECTIONS = 40


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


def p99(replies: list[tuple[float, float]], from_s: float, to_s: float) -> float:
    """Of the latencies of what was answered between these times, in milliseconds."""
    chosen = [ms for ended_s, ms in replies if from_s <= ended_s <= to_s]
    return statistics.quantiles(chosen, n=100)[98]


def test_a_crowd_of_every_protocol(lab: Lab, measured: Measured) -> None:
    upgrades = crowds.begin(lab)
    first = upgrades.serving
    crowd = Crowd.begin(upgrades, *CROWD)
    successor = upgrades.prepare()
    # Three seconds of load are what p99 is compared with; the successor has started by then.
    upgrades.wait_requests(2500)
    with sampling(upgrades) as samples:
        start_s = time.monotonic()
        retired = upgrades.give(successor)
        end_s = time.monotonic()
        pss = retired.pss_kib(), successor.pss_kib()
        upgrades.wait_requests(1500)
    routed = crowd.end()
    assert samples.errors == []
    assert samples.totals == sorted(samples.totals)
    assert successor.client.status()["requests"]["total"] == crowd.requests + routed
    assert retired.conns() == []
    replies = crowd.replies()
    before = p99(replies, start_s - 3, start_s)
    around = p99(replies, start_s - 0.5, start_s + 1.5)
    measured(
        "an upgrade under 1000 requests a second",
        p99_before_ms=before, p99_around_ms=around, ratio=around / before,
        took_s=end_s - start_s, moved=CONNECTIONS, requests=routed,
        rate=len(replies) / (replies[-1][0] - replies[0][0]),
        pss_old_mib=pss[0] / 1024, pss_new_mib=pss[1] / 1024,
    )  # fmt: skip
    # One socket more than an agent by itself: to each other.
    wait_no_leak(retired, upgrades.own_sockets + 1)
    wait_no_leak(successor, upgrades.own_sockets + 1)
    retired.retire()
    wait_no_leak(successor, upgrades.own_sockets)
    assert first is retired
