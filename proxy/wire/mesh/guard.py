"""Counts what costs us work and gives the peer nothing, and ends the connection over it.

The lesson of HTTP/2's floods (CVE-2019-9512 PING, CVE-2019-9518 empty frames, CVE-2023-44487
rapid reset): each is a token bucket, with time as an argument.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.wire.mesh.errors import PeerError, Reason


@dataclass(frozen=True, slots=True)
class BudgetState:
    """A bucket at one moment."""

    tokens: float
    at_s: float


class Budget:
    """A token bucket: `burst` at once, `per_s` in the long run."""

    __slots__ = ("_at_s", "_burst", "_per_s", "_tokens", "_what")

    def __init__(self, what: str, burst: int, per_s: float, now_s: float) -> None:
        self._what = what
        self._burst = burst
        self._per_s = per_s
        self._tokens = float(burst)
        self._at_s = now_s

    def take(self, now_s: float) -> None:
        """Pay for one. Raises PeerError when the peer has spent everything."""
        grown = self._tokens + max(0.0, now_s - self._at_s) * self._per_s
        self._at_s = max(now_s, self._at_s)
        self._tokens = min(grown, self._burst) - 1
        if self._tokens < 0:
            raise PeerError(
                Reason.FLOOD,
                f"{self._what}: more than {self._burst} at once and {self._per_s:g} a second",
            )

    def earn(self) -> None:
        """One more, for useful work."""
        self._tokens = min(self._tokens + 1, self._burst)

    def export(self) -> BudgetState:
        """For `restore`."""
        return BudgetState(self._tokens, self._at_s)

    def restore(self, state: BudgetState) -> None:
        """Go on where another one stood."""
        self._tokens, self._at_s = state.tokens, state.at_s


@dataclass(frozen=True, slots=True)
class GuardState:
    """All buckets at one moment."""

    pings: BudgetState
    cancels: BudgetState
    idle: BudgetState


class Guard:
    """The budgets of one peer.

    `pings`: ours come every 10 s. `cancels`: of requests that were not answered; each answer
    earns one back, so only a peer that mostly cancels ever runs out (Envoy judges premature
    resets in the same way). `idle`: frames that carry less than 1 KiB although more of
    their body follows, WINDOW, and frames for requests that are over.
    """

    __slots__ = ("cancels", "idle", "pings")

    def __init__(self, now_s: float) -> None:
        self.pings = Budget("PING", 16, 2, now_s)
        self.cancels = Budget("CANCEL", 1000, 100, now_s)
        self.idle = Budget("frames that carry little or nothing", 2000, 1000, now_s)

    def export(self) -> GuardState:
        """For `restore`."""
        return GuardState(self.pings.export(), self.cancels.export(), self.idle.export())

    def restore(self, state: GuardState) -> None:
        """Go on where another one stood."""
        self.pings.restore(state.pings)
        self.cancels.restore(state.cancels)
        self.idle.restore(state.idle)
