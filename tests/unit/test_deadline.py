"""Which timeout counts, and what is left of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.deadline import MAX_TIMEOUT_S, Deadline, effective_timeout_s


@pytest.mark.parametrize(
    ("request_ms", "instance_ms", "service_ms", "expected"),
    [
        (100, 200, 300, 0.1),
        (None, 200, 300, 0.2),
        (None, None, 300, 0.3),
        (None, None, None, 5.0),
        (0, -1, 300, 0.3),
        (None, 10**12, None, MAX_TIMEOUT_S),
    ],
)
def test_first_timeout_that_says_something_counts(
    request_ms: int | None, instance_ms: int | None, service_ms: int | None, expected: float
) -> None:
    got = effective_timeout_s(request_ms=request_ms, instance_ms=instance_ms, service_ms=service_ms)
    assert got == expected


def test_default_is_the_caller_s() -> None:
    assert effective_timeout_s(default_s=0.5) == 0.5
    assert effective_timeout_s(default_s=1e9) == MAX_TIMEOUT_S


@given(st.floats(0, 1e6), st.floats(0, 3600), st.floats(0, 1e6))
def test_remaining_is_never_negative_and_zero_means_expired(
    start: float, timeout: float, now: float
) -> None:
    deadline = Deadline.after(start, timeout)
    assert deadline.remaining_s(now) >= 0
    assert (deadline.remaining_s(now) == 0) == deadline.expired(now)


def test_earlier_deadline_is_less() -> None:
    assert min(Deadline(2.0), Deadline.after(0.5, 1.0)) == Deadline(1.5)
