"""How traffic spreads and what it costs when instances differ or fail: seeded, in virtual time.

Ten instances with sixteen workers each, a Poisson stream of requests, no retries; the agent's
own decisions (`core/service`) with a clock that is moved by hand, and beside them the least
loaded and a random instance. The same figures on every machine.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.core.policy import DEFAULT_POLICY
from proxy.core.routing import Candidates, candidates
from proxy.core.service import Service
from proxy.wire.moa import Route

INSTANCES = 10
WORKERS = 16
RATE = 1000.0
SECONDS = 40.0
FAULT_S = (5.0, 15.0)
AFTER_S = 35.0
"""Back-offs have ended by then; slow starts nearly have."""
MEAN_S = 0.010
TIMEOUT_S = 0.5
ZONE = "z1"

SERVICE_URI = "/service/simulated"


class Policy(Protocol):
    """Chooses an instance by its number, and is told how it went."""

    def pick(self, now_s: float) -> int: ...

    def end(self, number: int, begun_s: float, now_s: float, *, is_ok: bool) -> None: ...


class Agent:
    """What the agent does, with the defaults."""

    def __init__(self, found: Candidates, rand: random.Random) -> None:
        self._service = Service(SERVICE_URI, DEFAULT_POLICY, 0.0, rand)
        self._found = found

    def pick(self, now_s: float) -> int:
        place = self._service.choose(self._found, {}, now_s)
        assert place is not None
        self._service.begin(place.node, now_s)
        return place.instance.address.port

    def end(self, number: int, begun_s: float, now_s: float, *, is_ok: bool) -> None:
        node = self._service.node(address_of(number))
        node.in_flight -= 1
        if is_ok:
            self._service.succeeded(node, "m", begun_s, now_s)
        else:
            self._service.timed_out(node, "m", begun_s, now_s)


class LeastLoaded:
    """The one with the fewest requests in flight; the zone first."""

    def __init__(self, found: Candidates, rand: random.Random) -> None:
        self._numbers = _first_choice(found)
        self._rand = rand
        self._in_flight: Counter[int] = Counter()

    def pick(self, now_s: float) -> int:
        number = min(self._numbers, key=lambda n: (self._in_flight[n], self._rand.random()))
        self._in_flight[number] += 1
        return number

    def end(self, number: int, begun_s: float, now_s: float, *, is_ok: bool) -> None:
        self._in_flight[number] -= 1


class Random:
    """Any one; the zone first."""

    def __init__(self, found: Candidates, rand: random.Random) -> None:
        self._numbers = _first_choice(found)
        self._rand = rand

    def pick(self, now_s: float) -> int:
        return self._rand.choice(self._numbers)

    def end(self, number: int, begun_s: float, now_s: float, *, is_ok: bool) -> None:
        """Forgets everything."""


POLICIES: dict[str, Callable[[Candidates, random.Random], Policy]] = {
    "P2C-EWMA": Agent,
    "least loaded": LeastLoaded,
    "random": Random,
}

Slowness = Callable[[int, float], float | None]
"""By how much an instance is slower than usual at a time; None: it never replies."""


def _flapping(number: int, now_s: float) -> float | None:
    return None if number == 0 and int(now_s * 2) % 2 == 0 else 1.0


SCENARIOS: dict[str, Slowness] = {
    "equal": lambda _number, _now_s: 1.0,
    "one 10x slower": lambda number, _now_s: 10.0 if number == 0 else 1.0,
    "black hole": lambda number, _now_s: None if number == 0 else 1.0,
    "flapping": _flapping,
    "zone loss": lambda number, _now_s: None if number < INSTANCES // 2 else 1.0,
}
"""What is wrong while the fault lasts; instance 0 is always among the victims."""


@dataclass(slots=True)
class Result:
    """`during` and `after` count requests by instance, while the fault lasts and well after."""

    policy: str
    scenario: str
    during: Counter[int] = field(default_factory=Counter)
    after: Counter[int] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    errors: int = 0

    def share(self, number: int = 0) -> float:
        """Of the requests while the fault lasted."""
        return self.during[number] / self.during.total()

    def share_after(self, number: int = 0) -> float:
        return self.after[number] / self.after.total()

    @property
    def p99_ms(self) -> float:
        """While the fault lasts; a timeout counts as its time."""
        ordered = sorted(self.latencies_s)
        return 1000 * ordered[int(0.99 * (len(ordered) - 1))]

    @property
    def error_share(self) -> float:
        return self.errors / len(self.latencies_s)


def simulate(policy: str, scenario: str, seed: int = 1) -> Result:
    """One run of `SECONDS`."""
    rand = random.Random(seed)
    slowness, zoned = SCENARIOS[scenario], scenario == "zone loss"
    chooser = POLICIES[policy](found_of(zoned=zoned), random.Random(seed + 1))
    result, order = Result(policy, scenario), count()
    workers = [[0.0] * WORKERS for _ in range(INSTANCES)]
    ends: list[tuple[float, int, int, float, bool]] = []
    now_s = 0.0
    while now_s < SECONDS:
        now_s += rand.expovariate(RATE)
        while ends and ends[0][0] <= now_s:
            end_s, _, number, begun_s, is_ok = heapq.heappop(ends)
            chooser.end(number, begun_s, end_s, is_ok=is_ok)
        number, in_fault = chooser.pick(now_s), FAULT_S[0] <= now_s < FAULT_S[1]
        took_s = serve(workers[number], now_s, rand, slowness(number, now_s) if in_fault else 1.0)
        is_ok = took_s < TIMEOUT_S
        heapq.heappush(ends, (now_s + min(took_s, TIMEOUT_S), next(order), number, now_s, is_ok))
        if in_fault:
            result.during[number] += 1
            result.latencies_s.append(min(took_s, TIMEOUT_S))
            result.errors += not is_ok
        elif now_s >= AFTER_S:
            result.after[number] += 1
    return result


def serve(free_s: list[float], now_s: float, rand: random.Random, slower: float | None) -> float:
    """Seconds until the reply of an instance whose workers are free at these times."""
    drawn_s = rand.lognormvariate(0.0, 0.5) * MEAN_S
    if slower is None:
        return float("inf")
    begin_s = max(now_s, heapq.heappop(free_s))
    heapq.heappush(free_s, begin_s + drawn_s * slower)
    return begin_s + drawn_s * slower - now_s


def found_of(*, zoned: bool) -> Candidates:
    near = INSTANCES // 2 if zoned else 0
    instances = [Instance(address_of(n), zone=ZONE if n < near else "z2") for n in range(INSTANCES)]
    table = ServiceTable.build({ServiceKey(SERVICE_URI): instances})
    return candidates(table, Route(SERVICE_URI, "", "m", {}), zone=ZONE if zoned else "")


def _first_choice(found: Candidates) -> list[int]:
    part = found.preferred[0] if found.preferred else found.instances
    return [instance.address.port for instance in part]


def address_of(number: int) -> Address:
    return Address("10.0.0.1", number)


def report() -> str:
    """Every policy in every scenario, as a Markdown table."""
    lines = [
        f"{INSTANCES} instances, {RATE:g} requests/s, {MEAN_S * 1000:g} ms; while the fault lasts "
        f"({FAULT_S[1] - FAULT_S[0]:g} s), and {AFTER_S - FAULT_S[1]:g} s after its end:",
        "",
        "| scenario | policy | share of victim | p99 ms | errors | share after |",
        "|---|---|---|---|---|---|",
    ]
    for scenario in SCENARIOS:
        for policy in POLICIES:
            r = simulate(policy, scenario)
            lines.append(
                f"| {scenario} | {policy} | {r.share():.1%} | {r.p99_ms:.0f} "
                f"| {r.error_share:.2%} | {r.share_after():.1%} |"
            )
    return "\n".join(lines)
