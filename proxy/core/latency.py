"""Estimates from a stream of latencies: how slow an instance is, and quantiles of a service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp

DECAY_S = 1.0
"""How fast an estimate forgets. Finagle takes 10 s; an instance that is avoided for a few slow
replies would then wait half a minute for its next request (docs/adr/0009)."""

_GROWTH = 1.5
"""How much one reply may raise an estimate: one hiccup must not send all traffic elsewhere,
and six slow replies in a row are enough for one that is ten times slower."""

_FLOOR_S = 0.001
"""Added to every latency: less than that is noise of this node, and no reason to move."""

_STEP = 0.02
QUANTILE_SAMPLES = 50
"""Fewer replies say nothing of a p95."""

_MAX_METHODS = 256


class Slowness:
    """How much slower than usual an instance is: 1 as usual, 10 ten times, 0 unknown.

    A peak EWMA as Finagle's: it goes up with each slower reply, and comes down slowly. Of an
    instance that is not asked any more it fades towards 1, so that it is tried again.
    """

    __slots__ = ("seen_s", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.seen_s = 0.0

    def observe(self, ratio: float, now_s: float) -> None:
        """A request took so many times the usual, or was given up after so long."""
        value = self.value
        if ratio >= value:
            # The first reply may be slow because it is the first.
            self.value = min(ratio, value * _GROWTH if value else 1.0)
        else:
            # Time decides, not the number of replies: what was slow just now may be so still.
            kept = exp((self.seen_s - now_s) / DECAY_S) if now_s > self.seen_s else 1.0
            self.value = ratio + (value - ratio) * kept
        self.seen_s = now_s

    def estimate(self, now_s: float) -> float:
        """What to expect of a request that is sent now, apart from those before it."""
        value = self.value
        if value > 1.0 and now_s > self.seen_s:
            return 1.0 + (value - 1.0) * exp((self.seen_s - now_s) / DECAY_S)
        return value

    def forget(self) -> None:
        """What was seen before no longer counts."""
        self.value = 0.0


class Quantile:
    """A quantile of a stream in constant memory, by steps in proportion to the estimate.

    A value above it moves it up by the share `step * q`, one below down by `step * (1 - q)`:
    at rest, the share q of the values lies below (frugal streaming, with relative steps).
    """

    __slots__ = ("_count", "_q", "latest_s")

    def __init__(self, q: float) -> None:
        self._q = q
        self.latest_s = 0.0
        self._count = 0

    def observe(self, latency_s: float) -> None:
        self._count += 1
        if self._count == 1:
            self.latest_s = latency_s
            return
        # Early steps are larger: the first value may be far off.
        step = _STEP if self._count > QUANTILE_SAMPLES else 1 / self._count
        if latency_s > self.latest_s:
            self.latest_s *= 1 + step * self._q
        else:
            self.latest_s *= 1 - step * (1 - self._q)

    def value_s(self) -> float | None:
        """None until enough was seen."""
        return self.latest_s if self._count >= QUANTILE_SAMPLES else None

    def export(self) -> tuple[float, int]:
        return self.latest_s, self._count

    def restore(self, exported: Sequence[float]) -> None:
        self.latest_s, self._count = float(exported[0]), int(exported[1])


class Usual:
    """The median latency of each method of a service, whichever instance answers.

    Instances are compared by it and not by seconds: one that has just had a slow method is no
    slower than another. Beyond a bound, methods share one median.
    """

    __slots__ = ("_medians",)

    def __init__(self) -> None:
        self._medians: dict[str, Quantile] = {}

    def ratio(self, method: str, latency_s: float) -> float:
        """A latency in terms of what is usual; 1 for a method that never answered."""
        median = self._medians.get(method)
        if median is None:
            return 1.0
        return (latency_s + _FLOOR_S) / (median.latest_s + _FLOOR_S)

    def observe(self, method: str, latency_s: float) -> float:
        """Count a reply; its ratio to what was usual before."""
        median = self._medians.get(method)
        if median is None:
            if len(self._medians) >= _MAX_METHODS:
                method = ""
            median = self._medians.setdefault(method, Quantile(0.5))
        usual_s = median.latest_s or latency_s
        median.observe(latency_s)
        return (latency_s + _FLOOR_S) / (usual_s + _FLOOR_S)

    def export(self) -> dict[str, tuple[float, int]]:
        return {method: median.export() for method, median in self._medians.items()}

    def restore(self, exported: Mapping[str, Sequence[float]]) -> None:
        for method, values in list(exported.items())[:_MAX_METHODS]:
            self._medians.setdefault(method, Quantile(0.5)).restore(values)
