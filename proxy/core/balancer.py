"""Power of two choices on slowness and requests in flight, weighted, with slow start.

The first choice is drawn by weight, the second evenly among the others. The second wins when
a request is expected to take clearly less time there: slowness × (1 + load for its weight).
A draw by weight keeps an idle set in proportion; "clearly" keeps noise from moving traffic.

Load is what this agent has in flight there and, where the instance's agent tells of it (the
mesh protocol), a part of what others have (docs/adr/0015-load-hint.md).
"""

from __future__ import annotations

import random
from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

from proxy.core.health import slow_start_share
from proxy.core.latency import Slowness
from proxy.core.model import Address, Instance
from proxy.core.policy import HealthPolicy

_DRAWS = 8
_CLEARLY = 1.25
_TOLERATED = 1.6
"""Slowness up to this is noise: more than one slow reply must have been seen."""
_OTHERS_SHARE = 0.1
"""How much a request of another agent counts beside one of our own. Counted whole, all agents
flee from the same instance and meet at the next one: worse than knowing nothing of each other."""
_OTHERS_FADE_S = 0.2
"""What was said so long ago says nothing of now."""
NOBODY: frozenset[Address] = frozenset()


class Node:
    """What one service's requests have shown of one address."""

    __slots__ = ("address", "in_flight", "latency_s", "others", "others_s", "slowness")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.in_flight = 0
        self.slowness = Slowness()
        self.latency_s = 0.0
        """A moving average, for people to look at; 0 when nothing was seen."""
        self.others = 0
        """Requests of others that were in flight at `others_s`, as the instance's agent said."""
        self.others_s = 0.0

    def told(self, load: int, now_s: float) -> None:
        """The instance's agent has that many requests in flight there, ours among them."""
        self.others = max(0, load - self.in_flight)
        self.others_s = now_s

    def load(self, now_s: float) -> float:
        """What to compare: our requests in flight, and some of the others' if lately told."""
        left = 1.0 - (now_s - self.others_s) / _OTHERS_FADE_S
        return self.in_flight + _OTHERS_SHARE * self.others * min(max(0.0, left), 1.0)


class Place(NamedTuple):
    """An instance as one set lists it, with its node, which all sets of the service share."""

    instance: Instance
    node: Node


class Choices:
    """A set to pick from, prepared; `slow` says since when an address is in slow start."""

    __slots__ = ("mean_weight", "places", "policy", "shares", "slow")

    def __init__(
        self, places: tuple[Place, ...], slow: dict[Address, float], policy: HealthPolicy
    ) -> None:
        self.places = places
        self.shares = list(accumulate(place.instance.weight for place in places))
        self.mean_weight = self.shares[-1] / len(places) if places else 0.0
        self.slow = slow
        self.policy = policy

    def share(self, address: Address, now_s: float) -> float:
        """The share of its weight that an address has now."""
        since_s = self.slow.get(address)
        return 1.0 if since_s is None else slow_start_share(self.policy, since_s, now_s)


def pick(
    choices: Choices,
    now_s: float,
    rand: random.Random,
    exclude: frozenset[Address] = NOBODY,
) -> Place | None:
    """One place that is not excluded, or None when there is none.

    An instance of weight 0 is drained:
    it is picked only when all have weight 0. Constant time, except when most are excluded.
    """
    places = choices.places
    if not places:
        return None
    first = _draw_first(choices, now_s, rand, exclude)
    if first is None or len(places) == 1:
        return first
    # Evenly one of the others: the last stands in for `first` among all but the last.
    second = places[int(rand.random() * (len(places) - 1))]
    if second is first:
        second = places[-1]
    if second.node.address in exclude or (second.instance.weight == 0 and choices.shares[-1] > 0):
        return first
    if choices.slow and rand.random() >= choices.share(second.node.address, now_s):
        return first
    return second if _is_clearly_better(second, first, choices, now_s) else first


def _is_clearly_better(one: Place, other: Place, choices: Choices, now_s: float) -> bool:
    a, b = one.node, other.node
    mean = choices.mean_weight
    a_load = a.load(now_s) if a.others else a.in_flight
    b_load = b.load(now_s) if b.others else b.in_flight
    a_cost = 1 + a_load * mean / (one.instance.weight or 1)
    b_cost = 1 + b_load * mean / (other.instance.weight or 1)
    a_cost *= max(1.0, a.slowness.estimate(now_s) / _TOLERATED)
    b_cost *= max(1.0, b.slowness.estimate(now_s) / _TOLERATED)
    return a_cost * _CLEARLY <= b_cost


def _draw_first(
    choices: Choices, now_s: float, rand: random.Random, exclude: frozenset[Address]
) -> Place | None:
    places, shares = choices.places, choices.shares
    total = shares[-1]
    if len(places) == 1 and not exclude:
        return places[0]
    for _ in range(_DRAWS):
        # bisect_right steps over instances of weight 0: their interval is empty.
        at = bisect_right(shares, rand.random() * total) if total else rand.randrange(len(shares))
        place = places[at]
        if exclude and place.node.address in exclude:
            continue
        if choices.slow and rand.random() >= choices.share(place.node.address, now_s):
            continue
        return place
    left = [p for p in places if p.node.address not in exclude and (p.instance.weight or not total)]
    if not left:
        return None
    weights = [p.instance.weight * choices.share(p.node.address, now_s) for p in left]
    return rand.choices(left, weights=weights if total else None)[0]
