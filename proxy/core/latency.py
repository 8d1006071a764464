"""Estimates from a stream of latencies: the recent peak of one instance, a service's p95."""

from __future__ import annotations

from math import exp

DECAY_S = 1.0
"""How fast an estimate forgets. Finagle takes 10 s; an instance that is avoided for one slow
reply would then wait half a minute for its next request (docs/adr/0009)."""

_TYPICAL_STEP = 0.05

_QUANTILE_STEP = 0.02
QUANTILE_SAMPLES = 50
"""Fewer replies say nothing of a p95."""


class PeakEwma:
    """Latency of one instance: jumps to what is slower, and comes down slowly.

    Of an instance that is not asked any more the estimate fades towards `typical_s`, so that
    it is tried again. 0 means unknown.
    """

    __slots__ = ("seen_s", "value_s")

    def __init__(self) -> None:
        self.value_s = 0.0
        self.seen_s = 0.0

    def observe(self, latency_s: float, now_s: float) -> None:
        """A request took so long, or was given up after so long."""
        value_s = self.value_s
        if latency_s >= value_s:
            self.value_s = latency_s
        else:
            kept = exp((self.seen_s - now_s) / DECAY_S) if now_s > self.seen_s else 1.0
            self.value_s = latency_s + (value_s - latency_s) * kept
        self.seen_s = now_s

    def estimate_s(self, typical_s: float, now_s: float) -> float:
        """What a request sent now would take, apart from those before it."""
        value_s = self.value_s
        if value_s > typical_s and now_s > self.seen_s:
            return typical_s + (value_s - typical_s) * exp((self.seen_s - now_s) / DECAY_S)
        return value_s

    def forget(self) -> None:
        """What was seen before no longer counts."""
        self.value_s = 0.0


class Typical:
    """A moving average over all instances of a service; 0 when nothing was seen."""

    __slots__ = ("value_s",)

    def __init__(self) -> None:
        self.value_s = 0.0

    def observe(self, latency_s: float) -> None:
        if self.value_s:
            self.value_s += (latency_s - self.value_s) * _TYPICAL_STEP
        else:
            self.value_s = latency_s


class Quantile:
    """A quantile of a stream in constant memory, by steps in proportion to the estimate.

    A value above it moves it up by the share `step * q`, one below down by `step * (1 - q)`:
    at rest, the share q of the values lies below (frugal streaming, with relative steps).
    """

    __slots__ = ("_count", "_q", "_value_s")

    def __init__(self, q: float = 0.95) -> None:
        self._q = q
        self._value_s = 0.0
        self._count = 0

    def observe(self, latency_s: float) -> None:
        self._count += 1
        if self._count == 1:
            self._value_s = latency_s
        elif latency_s > self._value_s:
            # Early steps are larger: the first value may be far off.
            self._value_s *= 1 + max(_QUANTILE_STEP, 1 / self._count) * self._q
        else:
            self._value_s *= 1 - max(_QUANTILE_STEP, 1 / self._count) * (1 - self._q)

    def value_s(self) -> float | None:
        """None until enough was seen."""
        return self._value_s if self._count >= QUANTILE_SAMPLES else None
