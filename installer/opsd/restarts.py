"""When a crashed agent is started again, and when no longer: back-off and circuit.

Pure: time is an argument, and so is chance.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from installer.opsd.settings import OpsSettings

_MAX_OPEN_TIMES = 10
"""How many times longer an open circuit waits at most than at first."""


class Circuit(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    """No agent; traffic goes direct."""
    HALF_OPEN = "half-open"
    """One agent is tried."""


@dataclass(frozen=True, slots=True)
class RestartTimes:
    """In seconds, but `crashes`."""

    first_s: float
    max_s: float
    crashes: int
    window_s: float
    open_s: float

    @classmethod
    def of(cls, ops: OpsSettings) -> RestartTimes:
        """As configured."""
        return cls(
            first_s=ops.restart_ms / 1000,
            max_s=ops.restart_max_ms / 1000,
            crashes=ops.crashes,
            window_s=ops.crash_window_s,
            open_s=ops.open_s,
        )


@dataclass(slots=True)
class Restarts:
    """Told of every crash and of every agent that serves; says what comes next."""

    times: RestartTimes
    rand: random.Random = field(default_factory=random.Random)
    circuit: Circuit = Circuit.CLOSED
    _crashed: deque[float] = field(default_factory=deque)
    _in_a_row: int = 0
    _opened: int = 0
    _serves_since_s: float | None = None

    def crashed(self, now_s: float) -> float:
        """An agent died, or could not start; seconds until the next try.

        When `circuit` is open afterwards, there shall be no agent until then.
        """
        self.tick(now_s)
        self._serves_since_s = None
        self._in_a_row += 1
        self._crashed.append(now_s)
        while self._crashed[0] < now_s - self.times.window_s:
            self._crashed.popleft()
        if self.circuit is Circuit.HALF_OPEN or len(self._crashed) >= self.times.crashes:
            self.circuit = Circuit.OPEN
            self._opened += 1
            self._crashed.clear()
            return self.times.open_s * min(2.0 ** min(self._opened - 1, 30), _MAX_OPEN_TIMES)
        longest = min(self.times.first_s * 2.0 ** min(self._in_a_row - 1, 30), self.times.max_s)
        return longest * self.rand.uniform(0.5, 1.0)

    def trying(self) -> None:
        """An agent is started now."""
        if self.circuit is Circuit.OPEN:
            self.circuit = Circuit.HALF_OPEN

    def serves(self, now_s: float) -> None:
        """An agent serves since now."""
        if self._serves_since_s is None:
            self._serves_since_s = now_s

    def tick(self, now_s: float) -> None:
        """Forget the past of an agent that has served for a whole window."""
        since_s = self._serves_since_s
        if since_s is not None and now_s - since_s >= self.times.window_s:
            self.circuit = Circuit.CLOSED
            self._in_a_row = self._opened = 0
            self._crashed.clear()

    @property
    def crashes(self) -> int:
        """In a row, since one was last well."""
        return self._in_a_row
