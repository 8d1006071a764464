"""What may be tried again, and how many retries the budget grants."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.retry import RetryBudget, may_retry


@pytest.mark.parametrize(
    ("sent", "idempotent", "attempt", "remaining_s", "expected"),
    [
        (False, False, 1, 1.0, True),
        (True, False, 1, 1.0, False),
        (True, True, 1, 1.0, True),
        (False, True, 2, 1.0, False),
        (False, True, 1, 0.0, False),
    ],
)
def test_retry_rules(
    sent: bool, idempotent: bool, attempt: int, remaining_s: float, expected: bool
) -> None:
    got = may_retry(sent=sent, idempotent=idempotent, attempt=attempt, remaining_s=remaining_s)
    assert got is expected


def take_all(budget: RetryBudget, now_s: float) -> int:
    taken = 0
    while budget.try_take(now_s):
        taken += 1
    return taken


def test_quiet_agent_may_retry_ten_times_a_second() -> None:
    budget = RetryBudget(0.0)
    assert take_all(budget, 0.0) == 10
    assert take_all(budget, 0.5) == 5
    assert take_all(budget, 1.5) == 10


def test_a_fifth_of_the_requests_may_be_retried() -> None:
    budget = RetryBudget(0.0)
    take_all(budget, 0.0)
    for _ in range(101):
        budget.record_request()
    assert take_all(budget, 0.0) == 20


def test_unused_budget_does_not_pile_up() -> None:
    assert take_all(RetryBudget(0.0), 1e6) == 100


def test_clock_that_steps_back_neither_grants_nor_takes() -> None:
    assert RetryBudget(100.0).try_take(50.0)
    budget = RetryBudget(100.0)
    take_all(budget, 100.0)
    assert not budget.try_take(50.0)
    assert take_all(budget, 100.5) == 5


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 200), st.integers(0, 300)), max_size=30))
def test_grants_never_exceed_start_plus_share_plus_rate(
    rounds: list[tuple[float, int, int]],
) -> None:
    budget, now, requests, granted = RetryBudget(0.0), 0.0, 0, 0
    for wait_s, asked_requests, asked_retries in rounds:
        now += wait_s
        for _ in range(asked_requests):
            budget.record_request()
        requests += asked_requests
        granted += sum(budget.try_take(now) for _ in range(asked_retries))
        assert granted <= 10 + 0.2 * requests + 10 * now + 1e-6
