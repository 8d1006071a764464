"""How many watchers must agree, and when this one may act at all; pure, time is an argument.

The electorate are the watchers whose lease has not ended, those that doubt themselves included:
a watcher that cannot tell is no reason for the others to need fewer votes.
"""

from __future__ import annotations


def votes_needed(live: int, minimum: int) -> int:
    """A majority of the live watchers, or `minimum` when that is more; 0 asks for the majority."""
    return max(live // 2 + 1, minimum, 1)


class Settling:
    """Whether a watcher has held its lease long enough to have seen all the others.

    After a start, and after any gap (Redis was away, was emptied, or failed over to a server that
    knows of no lease), the others may not have renewed theirs yet, and a watcher that thinks
    itself alone would be its own majority. One lease later it has seen all that live.
    """

    __slots__ = ("_lease_s", "_since_s")

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._since_s: float | None = None

    def renewed(self, now_s: float, was_held: bool) -> None:
        """The lease was renewed; `was_held`: Redis still knew of the one before."""
        if self._since_s is None or not was_held:
            self._since_s = now_s

    def lost(self) -> None:
        """The lease could not be renewed."""
        self._since_s = None

    def may_act(self, now_s: float) -> bool:
        """Whether one lease has passed without a gap."""
        return self._since_s is not None and now_s - self._since_s >= self._lease_s
