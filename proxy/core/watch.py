"""What a watcher thinks of each address, and when it doubts itself; pure, time is an argument.

An opinion is *down* after `fall` failures in a row, *up* after `rise` successes in a row, and
*unsure* before either: at the start, and whenever the address was taken out, put back or entered
anew, so that each change is judged by what was seen after it. Unsure never changes anything.

More than `doubt_share` of all addresses failing at their last ping means that the watcher itself
is cut off. It then has no opinion of what is down, and when the doubt ends, everything that looked
down has to fail anew: an answer that is missing because of a doubted network proves nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

from proxy.core.model import Address


class Opinion(StrEnum):
    """What a watcher says of an address."""

    UNSURE = "unsure"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """`fall` and `rise` count pings in a row; `doubt_share` is of all addresses that were pinged.

    Below `doubt_floor` addresses no share means anything: with one instance, a dead one is all.
    """

    fall: int = 3
    rise: int = 2
    doubt_share: float = 0.5
    doubt_floor: int = 3


@dataclass(slots=True)
class _Record:
    opinion: Opinion = Opinion.UNSURE
    in_a_row: int = 0
    """Successes when positive, failures when negative; 0 before the first ping."""


class WatchBook:
    """The opinions of one watcher."""

    __slots__ = ("_failing", "_pinged", "_records", "_settings", "in_doubt")

    def __init__(self, settings: WatchSettings) -> None:
        self._settings = settings
        self._records: dict[Address, _Record] = {}
        self._pinged = 0
        self._failing = 0
        self.in_doubt = False

    @property
    def pinged(self) -> int:
        """How many addresses have been pinged."""
        return self._pinged

    @property
    def failing(self) -> int:
        """How many of them did not answer their last ping."""
        return self._failing

    def retain(self, addresses: Collection[Address]) -> None:
        """Follow exactly these; new ones begin unsure."""
        for address in self._records.keys() - set(addresses):
            self.forget(address)
            del self._records[address]
        for address in addresses:
            if address not in self._records:
                self._records[address] = _Record()
        self._weigh()

    def forget(self, address: Address) -> None:
        """Begin anew with this address: unsure, nothing counted."""
        record = self._records.get(address)
        if record is None:
            return
        self._pinged -= record.in_a_row != 0
        self._failing -= record.in_a_row < 0
        record.opinion, record.in_a_row = Opinion.UNSURE, 0

    def note(self, address: Address, is_well: bool) -> None:
        """Count the outcome of one ping; an address that is not followed is passed over."""
        record = self._records.get(address)
        if record is None:
            return
        before = record.in_a_row
        step = 1 if is_well else -1
        record.in_a_row = before + step if before * step > 0 else step
        self._pinged += before == 0
        self._failing += (record.in_a_row < 0) - (before < 0)
        if record.in_a_row >= self._settings.rise:
            record.opinion = Opinion.UP
        elif record.in_a_row <= -self._settings.fall:
            record.opinion = Opinion.DOWN
        self._weigh()

    def opinion(self, address: Address) -> Opinion:
        """What is said of it now; in doubt nothing is said to be down."""
        record = self._records.get(address)
        if record is None or (self.in_doubt and record.opinion is Opinion.DOWN):
            return Opinion.UNSURE
        return record.opinion

    def addresses(self, opinion: Opinion) -> Iterable[Address]:
        """Those of which this is said now."""
        if self.in_doubt and opinion is Opinion.DOWN:
            return ()
        return [address for address, r in self._records.items() if r.opinion is opinion]

    def _weigh(self) -> None:
        enough = self._pinged >= self._settings.doubt_floor
        doubts = enough and self._failing > self._pinged * self._settings.doubt_share
        if self.in_doubt and not doubts:
            for record in self._records.values():
                if record.opinion is Opinion.DOWN:
                    record.opinion = Opinion.UNSURE
                if record.in_a_row < 0:
                    record.in_a_row = 0
                    self._pinged -= 1
            self._failing = 0
        self.in_doubt = doubts
