"""Many agents before the same instances: what the load that the mesh protocol tells is good for.

Seeded, in virtual time, with the agent's own decisions, as `simulation`; there one agent sees
all requests, here each sees its own. Ten instances with four workers each, no timeouts to speak
of; without and with the load of the instance in each reply.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from math import exp

from proxy.core.balancer import Node
from proxy.core.policy import DEFAULT_POLICY
from proxy.core.service import Service
from tests.bench.simulation import (
    INSTANCES,
    MEAN_S,
    SERVICE_URI,
    TIMEOUT_S,
    address_of,
    found_of,
    serve,
)

WORKERS = 4
SECONDS = 15.0
WARM_S = 3.0
DRAWN_MEAN_S = MEAN_S * exp(0.125)
"""Of the lognormal that `serve` draws from."""


@dataclass(frozen=True, slots=True)
class Case:
    """`used` is the share of all workers that is busy; `slower` and `foreign` befall instance 0:
    how many times slower it is, and the share of all requests that callers who do not balance
    send there, such as those of one hot key."""

    name: str
    agents: int
    used: float
    slower: float = 1.0
    foreign: float = 0.0


CASES = (
    Case("1 agent, 80 % busy", 1, 0.8),
    Case("20 agents, 50 % busy", 20, 0.5),
    Case("20 agents, 80 % busy", 20, 0.8),
    Case("100 agents, 80 % busy", 100, 0.8),
    Case("100 agents, 90 % busy", 100, 0.9),
    Case("20 agents, a hot key on one", 20, 0.7, foreign=0.06),
    Case("20 agents, one 2x slower", 20, 0.7, slower=2.0),
    Case("20 agents, one 10x slower", 20, 0.7, slower=10.0),
)


@dataclass(slots=True)
class Seen:
    """Latencies of the agents' requests, and who served them."""

    latencies_s: list[float] = field(default_factory=list)
    served: Counter[int] = field(default_factory=Counter)

    def quantile_ms(self, q: float) -> float:
        ordered = sorted(self.latencies_s)
        return 1000 * ordered[int(q * (len(ordered) - 1))]

    @property
    def share(self) -> float:
        """Of instance 0."""
        return self.served[0] / self.served.total()


class _Crowd:
    def __init__(self, case: Case, seed: int, *, is_told: bool) -> None:
        self.case = case
        self.is_told = is_told
        self.rand = random.Random(seed)
        self.found = found_of(zoned=False)
        self.agents = [
            Service(SERVICE_URI, DEFAULT_POLICY, 0.0, random.Random(seed + 1 + n))
            for n in range(case.agents)
        ]
        self.in_flight: Counter[int] = Counter()
        self.free = [[0.0] * WORKERS for _ in range(INSTANCES)]
        self.seen = Seen()

    def begin(self, now_s: float) -> tuple[Service | None, int]:
        """Who sends the next request, and to which instance."""
        if self.rand.random() < self.case.foreign:
            agent, number = None, 0
        else:
            agent = self.agents[self.rand.randrange(len(self.agents))]
            place = agent.choose(self.found, {}, now_s)
            assert place is not None
            agent.begin(place.node, now_s)
            number = place.instance.address.port
        self.in_flight[number] += 1
        return agent, number

    def serve(self, number: int, now_s: float) -> float:
        slower = self.case.slower if number == 0 else 1.0
        return min(serve(self.free[number], now_s, self.rand, slower), TIMEOUT_S)

    def end(self, agent: Service | None, number: int, begun_s: float, now_s: float) -> None:
        self.in_flight[number] -= 1
        if agent is None:
            return
        node: Node = agent.node(address_of(number))
        node.in_flight -= 1
        if now_s - begun_s >= TIMEOUT_S:
            agent.timed_out(node, "m", begun_s, now_s)
            return
        agent.succeeded(node, "m", begun_s, now_s)
        if self.is_told:
            node.told(self.in_flight[number], now_s)


def simulate(case: Case, seed: int, *, is_told: bool) -> Seen:
    """One run of `SECONDS`; what the first ones show does not count."""
    crowd, order = _Crowd(case, seed, is_told=is_told), count()
    rate = case.used * INSTANCES * WORKERS / DRAWN_MEAN_S
    ends: list[tuple[float, int, Service | None, int, float]] = []
    now_s = 0.0
    while now_s < SECONDS:
        now_s += crowd.rand.expovariate(rate)
        while ends and ends[0][0] <= now_s:
            end_s, _, agent, number, begun_s = heapq.heappop(ends)
            crowd.end(agent, number, begun_s, end_s)
        agent, number = crowd.begin(now_s)
        took_s = crowd.serve(number, now_s)
        heapq.heappush(ends, (now_s + took_s, next(order), agent, number, now_s))
        if agent is not None and now_s >= WARM_S:
            crowd.seen.latencies_s.append(took_s)
            crowd.seen.served[number] += 1
    return crowd.seen


def report(seeds: tuple[int, ...] = (1, 2, 3)) -> str:
    """Every case without and with the load of instances, as a Markdown table of means."""
    lines = [
        f"{INSTANCES} instances with {WORKERS} workers each, {DRAWN_MEAN_S * 1000:.1f} ms, "
        f"{len(seeds)} seeds; load in replies:",
        "",
        "| case | p99 ms without | with | p99.9 ms without | with | share of the first | with |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        cells = []
        runs = {told: [simulate(case, s, is_told=told) for s in seeds] for told in (False, True)}
        for q in (0.99, 0.999):
            cells += [_mean(seen.quantile_ms(q) for seen in runs[t]) for t in (False, True)]
        shares = [f"{sum(s.share for s in runs[t]) / len(seeds):.1%}" for t in (False, True)]
        lines.append(f"| {case.name} | {' | '.join([*cells, *shares])} |")
    return "\n".join(lines)


def _mean(values: Iterable[float]) -> str:
    found = list(values)
    return f"{sum(found) / len(found):.1f}"
