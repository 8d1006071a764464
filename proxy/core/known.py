"""Addresses that are, or lately were, instances of some service.

Clients keep lists of addresses longer than a registry does, and a call to an instance that
has gone is what the mesh is for: its address is remembered for a while.
"""

from __future__ import annotations

from collections.abc import Mapping

from proxy.core.model import Address

DEPARTED_S = 3600.0
MAX_DEPARTED = 20_000
"""Remembered at most; of more, the ones that left first are forgotten first."""


class KnownInstances:
    """Follows the tables of a registry; times are monotonic seconds."""

    __slots__ = ("_departed_s", "_listed")

    def __init__(self) -> None:
        self._listed: frozenset[Address] = frozenset()
        self._departed_s: dict[Address, float] = {}

    def __contains__(self, address: object) -> bool:
        return address in self._listed or address in self._departed_s

    @property
    def listed(self) -> frozenset[Address]:
        """What the newest table holds."""
        return self._listed

    @property
    def all(self) -> frozenset[Address]:
        """What is listed and what is remembered."""
        return self._listed | frozenset(self._departed_s)

    def update(self, listed: frozenset[Address], now_s: float) -> None:
        """A new table came; `listed` are all of its addresses."""
        for address in self._listed - listed:
            self._departed_s[address] = now_s
        for address in self._departed_s.keys() & listed:
            del self._departed_s[address]
        self._listed = listed
        while len(self._departed_s) > MAX_DEPARTED:
            del self._departed_s[next(iter(self._departed_s))]

    def export(self) -> dict[str, float]:
        """Who has left, and when, as JSON has it."""
        return {str(address): left_s for address, left_s in self._departed_s.items()}

    def restore(self, exported: Mapping[str, float]) -> None:
        """Remember whom another agent remembered. Raises ValueError."""
        for text, left_s in exported.items():
            address = Address.parse(text)
            if address not in self._listed and len(self._departed_s) < MAX_DEPARTED:
                self._departed_s.setdefault(address, float(left_s))

    def expire(self, now_s: float) -> bool:
        """Forget what left long ago; whether there was any."""
        expired = [a for a, left_s in self._departed_s.items() if now_s - left_s > DEPARTED_S]
        for address in expired:
            del self._departed_s[address]
        return bool(expired)
