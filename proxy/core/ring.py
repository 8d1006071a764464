"""Consistent hashing with bounded load.

Every instance has points on a ring of 64 bits, as many as its weight asks for; a key belongs
to the next point. An instance that carries more than `bound` times its share of the requests
in flight is stepped over (Mirrokni, Thorup, Zadimoghaddam: "Consistent Hashing with Bounded
Loads"). The points depend on addresses alone, so that all agents agree.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from hashlib import blake2b

from proxy.core.balancer import NOBODY, Place
from proxy.core.model import DEFAULT_WEIGHT, Address

_POINTS = 64
"""Of an instance with the usual weight: shares are within about a quarter of each other."""
_MAX_POINTS = 1024


def hash_of(text: str) -> int:
    """64 bits that are the same on every node and in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


@lru_cache(maxsize=4096)
def _points(address: Address, count: int) -> tuple[int, ...]:
    return tuple(hash_of(f"{address} {number}") for number in range(count))


class Ring:
    """The ring of one set; instances of weight 0 are on it only when all have weight 0."""

    __slots__ = ("_at", "_owners", "_places", "_weight")

    def __init__(self, places: tuple[Place, ...]) -> None:
        self._places = tuple(p for p in places if p.instance.weight) or places
        self._weight = sum(p.instance.weight or 1 for p in self._places)
        marks = sorted(
            (point, number)
            for number, place in enumerate(self._places)
            for point in _points(place.instance.address, _count(place.instance.weight))
        )
        self._at = [point for point, _ in marks]
        self._owners = [number for _, number in marks]

    def pick(self, key: str, bound: float, exclude: frozenset[Address] = NOBODY) -> Place | None:
        """The place of a key, or the next that has room; None when all are excluded.

        Linear in the instances, as the load of all of them counts.
        """
        if not self._places:
            return None
        in_flight = sum([place.node.in_flight for place in self._places]) + 1
        start = bisect_right(self._at, hash_of(key))
        seen: set[int] = set()
        spare: Place | None = None
        for step in range(len(self._owners)):
            number = self._owners[(start + step) % len(self._owners)]
            if number in seen:
                continue
            seen.add(number)
            place = self._places[number]
            if place.node.address in exclude:
                continue
            spare = spare or place
            share = (place.instance.weight or 1) / self._weight
            if place.node.in_flight < bound * share * in_flight:
                return place
            if len(seen) == len(self._places):
                break
        return spare


def _count(weight: int) -> int:
    return min(max(1, weight * _POINTS // DEFAULT_WEIGHT), _MAX_POINTS)
