"""Ejection, back-off, half-open probes and the caps, with the clock as an argument."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.health import REFUSED, HealthBook, HealthSettings
from proxy.core.model import Address, Instance

STEADY = HealthSettings(jitter=0.0)


def members(count: int) -> tuple[Instance, ...]:
    return tuple(Instance(Address("10.0.0.1", n)) for n in range(count))


def book(settings: HealthSettings = STEADY) -> HealthBook:
    return HealthBook(random.Random(1), settings)


def usable_ports(health: HealthBook, count: int, now_s: float) -> list[int]:
    return [i.address.port for i in health.usable(members(count), now_s)]


A, B, C, D = (i.address for i in members(4))


def test_fifth_failure_in_a_row_ejects() -> None:
    health = book()
    for _ in range(4):
        health.record_failure(A, 0.0)
    assert usable_ports(health, 3, 0.0) == [0, 1, 2]
    assert health.explain(A, 0.0) == "healthy, 4 of 5 failures in a row"
    health.record_failure(A, 0.0)
    assert usable_ports(health, 3, 0.0) == [1, 2]
    assert health.explain(A, 0.25) == "ejected for 0.8 s more (ejection 1 in a row)"


def test_success_between_failures_starts_the_count_anew() -> None:
    health = book()
    for _ in range(20):
        for _ in range(4):
            health.record_failure(A, 0.0)
        health.record_success(A, 0.0)
    assert usable_ports(health, 2, 0.0) == [0, 1]
    assert health.explain(A, 0.0) == "healthy"


def test_refused_connection_ejects_at_once() -> None:
    health = book()
    health.record_failure(A, 0.0, REFUSED)
    assert usable_ports(health, 2, 0.0) == [1]


def test_back_off_doubles_up_to_a_minute_and_success_resets_it() -> None:
    health, now = book(), 0.0
    for expected in (1, 2, 4, 8, 16, 32, 60, 60):
        health.record_failure(A, now, REFUSED)
        assert usable_ports(health, 2, now + expected - 0.01) == [1]
        now += expected
        assert usable_ports(health, 2, now) == [0, 1]
    health.record_success(A, now)
    health.record_failure(A, now, REFUSED)
    assert usable_ports(health, 2, now + 1) == [0, 1]


def test_jitter_only_shortens() -> None:
    health = book(HealthSettings(jitter=0.5))
    ends = []
    for n in range(50):
        health.record_failure(Address("10.0.0.2", n), 0.0, REFUSED)
        ends.append(health._records[Address("10.0.0.2", n)].ejected_until_s)
    assert 0.5 <= min(ends) < 0.6
    assert 0.9 < max(ends) <= 1.0


def test_half_open_lets_one_probe_at_a_time() -> None:
    health = book()
    health.record_failure(A, 0.0, REFUSED)
    assert health.explain(A, 1.0) == "half-open, the next request is the probe"
    assert usable_ports(health, 2, 1.0) == [0, 1]
    health.begin(A, 1.0)
    assert usable_ports(health, 2, 1.0) == [1]
    assert health.explain(A, 1.0) == "half-open, a probe is under way"
    health.record_success(A, 1.1)
    assert usable_ports(health, 2, 1.1) == [0, 1]


def test_failed_probe_ejects_for_longer() -> None:
    health = book()
    health.record_failure(A, 0.0, REFUSED)
    health.begin(A, 1.0)
    health.record_failure(A, 1.0)
    assert usable_ports(health, 2, 2.9) == [1]
    assert usable_ports(health, 2, 3.0) == [0, 1]


def test_probe_without_a_result_is_given_up() -> None:
    health = book()
    health.record_failure(A, 0.0, REFUSED)
    health.begin(A, 1.0)
    assert usable_ports(health, 2, 10.9) == [1]
    assert usable_ports(health, 2, 11.0) == [0, 1]


def test_late_failures_do_not_prolong_an_ejection() -> None:
    health = book()
    health.record_failure(A, 0.0, REFUSED)
    for _ in range(100):
        health.record_failure(A, 0.5, REFUSED)
    assert usable_ports(health, 2, 1.0) == [0, 1]


def test_begin_of_a_healthy_instance_changes_nothing() -> None:
    health = book()
    health.begin(A, 0.0)
    assert usable_ports(health, 1, 0.0) == [0]


def test_last_instance_is_never_left_out() -> None:
    health = book()
    health.record_failure(A, 0.0, REFUSED)
    assert usable_ports(health, 1, 0.0) == [0]


def test_at_most_half_is_left_out_and_the_soonest_back_stay() -> None:
    health = book()
    for now, address in ((0.0, A), (0.1, B), (0.2, C)):
        health.record_failure(address, now, REFUSED)
    assert usable_ports(health, 4, 0.3) == [0, 3]


def test_all_ejected_means_all_used() -> None:
    health = book()
    for address in (A, B, C, D):
        health.record_failure(address, 0.0, REFUSED)
    assert usable_ports(health, 4, 0.0) == [0, 1, 2, 3]


def test_tuple_is_the_same_when_none_is_left_out() -> None:
    health, all_four = book(), members(4)
    assert health.usable(all_four, 0.0) is all_four
    health.record_failure(Address("10.9.9.9", 1), 0.0, REFUSED)
    assert health.usable(all_four, 0.0) is all_four


def test_addresses_that_left_the_table_are_forgotten() -> None:
    health = book()
    health.record_failure(A, 0.0, REFUSED)
    health.record_failure(B, 0.0)
    health.retain(frozenset({B}))
    assert health.explain(A, 0.0) == "healthy"
    assert health.explain(B, 0.0) == "healthy, 1 of 5 failures in a row"


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ok", "fail", "refused", "begin", "wait"]),
        st.integers(0, 5),
        st.floats(0, 70),
    ),
    max_size=80,
)


@given(EVENTS, st.integers(1, 6))
def test_caps_hold_and_every_ejection_ends(
    events: list[tuple[str, int, float]], count: int
) -> None:
    health, now, everyone = book(HealthSettings()), 0.0, members(count)
    for what, port, amount in events:
        address = Address("10.0.0.1", port)
        match what:
            case "ok":
                health.record_success(address, now)
                assert health.explain(address, now) == "healthy"
            case "fail":
                health.record_failure(address, now)
            case "refused":
                health.record_failure(address, now, REFUSED)
            case "begin":
                health.begin(address, now)
            case _:
                now += amount
        usable = health.usable(everyone, now)
        assert set(usable) <= set(everyone)
        assert len(usable) >= max(1, count - count // 2)
    assert health.usable(everyone, now + 60) is everyone


@pytest.mark.parametrize("failures", [2000])
def test_back_off_survives_weeks_of_failed_probes(failures: int) -> None:
    health, now = book(), 0.0
    for _ in range(failures):
        health.record_failure(A, now, REFUSED)
        now += 60
    assert usable_ports(health, 2, now) == [0, 1]


def test_one_stays_even_when_the_cap_allows_all() -> None:
    health = book(HealthSettings(jitter=0.0, max_ejected=1.0))
    for now, address in ((0.0, A), (0.1, B), (0.2, C)):
        health.record_failure(address, now, REFUSED)
    assert usable_ports(health, 4, 0.3) == [3]
    assert usable_ports(health, 3, 0.3) == [0, 1, 2]
