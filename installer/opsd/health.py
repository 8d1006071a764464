"""Is the new agent as well as the old one was? The gate of an upgrade.

Pure: an agent's beats go in, with the time; a sentence comes out when it is not well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEPT = 60
"""Beats: one a second, so a minute."""

_LAG_BEATS = 5


@dataclass(frozen=True, slots=True)
class GateLimits:
    """See the keys `gate_*` of `[ops]`."""

    min_requests: int
    error_share: float
    latency_factor: float
    latency_ms: float
    lag_ms: float
    silent_s: float


@dataclass(frozen=True, slots=True)
class Beat:
    """What an agent said once; the numbers count up for as long as the node's agents do."""

    at_s: float
    requests: int
    errors: int
    latency_ms: float | None
    loop_lag_ms: float
    connections: int = 0
    in_flight: int = 0

    @classmethod
    def of(cls, word: Mapping[str, Any], at_s: float) -> Beat:
        """Raises ValueError when a number is none."""
        try:
            latency = word.get("latency_ms")
            return cls(
                at_s=at_s,
                requests=int(word["requests"]),
                errors=int(word["failed"]) + int(word["transport_errors"]),
                latency_ms=None if latency is None else float(latency),
                loop_lag_ms=float(word["loop_lag_ms"]),
                connections=int(word["connections"]),
                in_flight=int(word["in_flight"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"beat: {error!r}") from None


@dataclass(frozen=True, slots=True)
class Health:
    """A stretch of an agent's life."""

    requests: int
    errors: int
    latency_ms: float | None
    """Mean of the seconds with requests, each weighing as much as it had."""
    loop_lag_ms: float
    """Mean of the last five beats."""

    @property
    def error_share(self) -> float:
        return self.errors / self.requests if self.requests else 0.0


@dataclass(slots=True)
class Pulse:
    """The last minute of one agent's beats."""

    beats: deque[Beat] = field(default_factory=lambda: deque(maxlen=KEPT))

    def add(self, beat: Beat) -> None:
        self.beats.append(beat)

    @property
    def last(self) -> Beat | None:
        return self.beats[-1] if self.beats else None

    def health(self) -> Health | None:
        """None before the first beat."""
        if not self.beats:
            return None
        first, last = self.beats[0], self.beats[-1]
        weights = total = 0.0
        before = first.requests
        for beat in list(self.beats)[1:]:
            weight, before = beat.requests - before, beat.requests
            if beat.latency_ms is not None and weight > 0:
                weights, total = weights + weight, total + weight * beat.latency_ms
        lags = [beat.loop_lag_ms for beat in list(self.beats)[-_LAG_BEATS:]]
        return Health(
            requests=last.requests - first.requests,
            errors=last.errors - first.errors,
            latency_ms=total / weights if weights else None,
            loop_lag_ms=sum(lags) / len(lags),
        )


def unwell(
    before: Health | None, new: Pulse, since_s: float, now_s: float, limits: GateLimits
) -> str | None:
    """Why the new agent, which serves since `since_s`, does not pass; None while it does.

    `before` is the old one's health before the upgrade; without it only what is bad by itself
    counts against the new one.
    """
    heard_s = max(since_s, new.last.at_s) if new.last else since_s
    if now_s - heard_s > limits.silent_s:
        return f"it has said nothing for {now_s - heard_s:.1f} s"
    health = new.health()
    if health is None:
        return None
    before = before or Health(0, 0, None, 0.0)
    if len(new.beats) >= _LAG_BEATS and health.loop_lag_ms > before.loop_lag_ms + limits.lag_ms:
        return f"its loop is {health.loop_lag_ms:.0f} ms late, before {before.loop_lag_ms:.0f} ms"
    if health.requests < limits.min_requests:
        return None
    is_known = before.requests >= limits.min_requests
    usual = before.error_share if is_known else 0.0
    if health.error_share > usual + limits.error_share:
        return (
            f"{health.errors} of {health.requests} requests failed "
            f"({health.error_share:.1%}, before {usual:.1%})"
        )
    # The first seconds pay for the hand-over itself, and say little of the new version.
    is_settled = len(new.beats) >= _LAG_BEATS
    return _too_slow(before, health, limits) if is_known and is_settled else None


def _too_slow(before: Health, new: Health, limits: GateLimits) -> str | None:
    if new.latency_ms is None or before.latency_ms is None:
        return None
    limit_ms = max(before.latency_ms * limits.latency_factor, before.latency_ms + limits.latency_ms)
    if new.latency_ms <= limit_ms:
        return None
    return f"requests take {new.latency_ms:.1f} ms, before {before.latency_ms:.1f} ms"
