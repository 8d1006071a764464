"""Weighted power of two choices.

The first choice is drawn by weight, the second evenly among the others; the second wins when
it would, with this request added, still be no more loaded for its weight than the first is
now: (load₂ + 1) / weight₂ ≤ load₁ / weight₁. With equal weights this is the usual rule (the
one with fewer requests in flight); with unequal ones an idle set is used in proportion to its
weights, where comparing (load + 1) / weight would never pick the lighter of two idle ones.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate

from proxy.core.model import Address, Instance

_DRAWS = 8
_REMEMBERED_SETS = 256

_Shares = tuple[tuple[Instance, ...], list[int]]
_shares_by_id: dict[int, _Shares] = {}


def pick(
    instances: tuple[Instance, ...],
    load: Callable[[Address], float],
    rand: random.Random,
    exclude: frozenset[Address] = frozenset(),
) -> Instance | None:
    """One instance that is not excluded, or None when there is none.

    `load` gives the requests in flight of an address. An instance of weight 0 is drained: it
    is picked only when all of `instances` have weight 0. Constant time for a tuple that was
    seen before, except when most of it is excluded.
    """
    if not instances:
        return None
    shares = _shares(instances)
    first = _draw_first(instances, shares, rand, exclude)
    if first is None or len(instances) == 1:
        return first
    second = _draw_second(instances, first, rand)
    if second.address in exclude or (second.weight == 0 and shares[-1] > 0):
        return first
    # Weights are compared crosswise, so that two drained instances do not divide by zero.
    first_weight, second_weight = max(first.weight, 1), max(second.weight, 1)
    if (load(second.address) + 1) * first_weight <= load(first.address) * second_weight:
        return second
    return first


def _shares(instances: tuple[Instance, ...]) -> list[int]:
    """Running sums of the weights, remembered by the tuple's identity.

    Tables hand out the same tuple until they change; hashing it would cost more than the sum.
    The entry holds the tuple, so its id is not given to another.
    """
    known = _shares_by_id.get(id(instances))
    if known is not None:
        return known[1]
    if len(_shares_by_id) >= _REMEMBERED_SETS:
        _shares_by_id.clear()
    shares = list(accumulate(instance.weight for instance in instances))
    _shares_by_id[id(instances)] = (instances, shares)
    return shares


def _draw_first(
    instances: tuple[Instance, ...],
    shares: list[int],
    rand: random.Random,
    exclude: frozenset[Address],
) -> Instance | None:
    total = shares[-1]
    for _ in range(_DRAWS):
        # bisect_right steps over instances of weight 0: their interval is empty.
        at = bisect_right(shares, rand.random() * total) if total else rand.randrange(len(shares))
        if instances[at].address not in exclude:
            return instances[at]
    left = [i for i in instances if i.address not in exclude and (i.weight or not total)]
    if not left:
        return None
    return rand.choices(left, weights=[i.weight for i in left] if total else None)[0]


def _draw_second(instances: tuple[Instance, ...], first: Instance, rand: random.Random) -> Instance:
    """Evenly one of the others: the last stands in for `first` among all but the last."""
    second = instances[rand.randrange(len(instances) - 1)]
    return instances[-1] if second is first else second
