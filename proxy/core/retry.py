"""Whether a failed request may be tried again, and the budget that keeps retries few."""

from __future__ import annotations

from collections.abc import Sequence

MAX_RETRIES = 1
MAX_UNSENT_RETRIES = 3
"""Instances that may turn out to be dead before a request gives up; none of them saw it."""

BUDGET_SHARE = 0.2
BUDGET_PER_S = 10.0
BUDGET_CAPACITY = 100.0
"""Ten seconds of the constant part, the window of Finagle's retry budget."""


def may_retry(
    *,
    sent: bool,
    idempotent: bool,
    attempt: int,
    remaining_s: float,
    max_retries: int = MAX_RETRIES,
) -> bool:
    """Whether a request whose attempt number `attempt` (from 1) failed may be tried again.

    `sent` says whether any byte of it was handed to the kernel: then the instance may have
    done the work, and only an idempotent method may do it twice. Ask the budget afterwards:
    it counts what it grants.
    """
    return (not sent or idempotent) and attempt <= max_retries and remaining_s > 0


def may_go_elsewhere(attempt: int, remaining_s: float) -> bool:
    """Whether a request that no instance has seen may be tried on another; it costs no budget."""
    return may_retry(
        sent=False,
        idempotent=False,
        attempt=attempt,
        remaining_s=remaining_s,
        max_retries=MAX_UNSENT_RETRIES,
    )


class RetryBudget:
    """Grants retries up to 20 % of the requests and 10 a second: a token bucket.

    One bucket for all of an agent's traffic to a service; times are monotonic seconds, and a
    time before the last one counts as the last one.
    """

    __slots__ = ("_capacity", "_last_s", "_per_s", "_share", "_tokens")

    def __init__(
        self,
        now_s: float,
        *,
        share: float = BUDGET_SHARE,
        per_s: float = BUDGET_PER_S,
        capacity: float = BUDGET_CAPACITY,
    ) -> None:
        self._share = share
        self._per_s = per_s
        self._capacity = capacity
        self._tokens = min(per_s, capacity)
        self._last_s = now_s

    def export(self) -> tuple[float, float]:
        return self._tokens, self._last_s

    def restore(self, exported: Sequence[float]) -> None:
        self._tokens = min(self._capacity, float(exported[0]))
        self._last_s = float(exported[1])

    def record_request(self) -> None:
        """A first attempt was made."""
        self._tokens = min(self._capacity, self._tokens + self._share)

    def try_take(self, now_s: float) -> bool:
        """Take one retry out of the budget; False when there is none."""
        elapsed_s = max(0.0, now_s - self._last_s)
        self._last_s += elapsed_s
        self._tokens = min(self._capacity, self._tokens + elapsed_s * self._per_s)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
