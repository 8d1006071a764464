"""Ejection, back-off, probes, slow start and the caps, with the clock as an argument."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.core.health import HealthBook, slow_start_share
from proxy.core.model import Address, Instance
from proxy.core.policy import HealthPolicy

STEADY = HealthPolicy(jitter=0.0)
HALF = replace(STEADY, panic=0.0)
"""Without panic the cap shows."""


def members(count: int) -> tuple[Instance, ...]:
    return tuple(Instance(Address("10.0.0.1", n)) for n in range(count))


def book(policy: HealthPolicy = STEADY) -> HealthBook:
    return HealthBook(random.Random(1), policy)


def usable_ports(health: HealthBook, count: int, now_s: float) -> list[int]:
    return [i.address.port for i in health.split(members(count), now_s).usable]


def fail(health: HealthBook, address: Address, now_s: float, times: int = 1) -> None:
    for _ in range(times):
        health.record_failure(address, now_s, now_s, "reset")


def refuse(health: HealthBook, address: Address, now_s: float) -> None:
    health.record_failure(address, now_s, now_s, "refused", is_refused=True)


def succeed(health: HealthBook, address: Address, now_s: float) -> None:
    health.record_success(address, now_s, now_s)


def ping(health: HealthBook, address: Address, now_s: float, *answers: bool) -> None:
    for is_answered in answers:
        health.record_ping(address, now_s, is_answered=is_answered)


def state(health: HealthBook, address: Address, now_s: float) -> str:
    return str(health.describe(address, now_s)["state"])


A, B, C, D = (i.address for i in members(4))


def test_fifth_failure_in_a_row_ejects_and_says_why() -> None:
    health = book()
    fail(health, A, 0.0, 4)
    assert usable_ports(health, 3, 0.0) == [0, 1, 2]
    assert health.describe(A, 0.0)["failures"] == 4
    fail(health, A, 0.0)
    assert usable_ports(health, 3, 0.0) == [1, 2]
    assert health.describe(A, 0.25) == {
        "state": "ejected", "until_s": 0.75, "failures": 0, "why": "reset",
    }  # fmt: skip


def test_success_between_failures_starts_the_count_anew() -> None:
    health = book()
    for _ in range(20):
        fail(health, A, 0.0, 4)
        succeed(health, A, 0.0)
    assert usable_ports(health, 2, 0.0) == [0, 1]
    assert not health.is_troubled


def test_refused_connection_ejects_at_once_unless_told_otherwise() -> None:
    health, patient = book(), book(replace(STEADY, refused_ejects=False))
    refuse(health, A, 0.0)
    refuse(patient, A, 0.0)
    assert usable_ports(health, 2, 0.0) == [1]
    assert usable_ports(patient, 2, 0.0) == [0, 1]


def test_back_off_doubles_up_to_a_minute() -> None:
    health, now = book(), 0.0
    for expected in (1, 2, 4, 8, 16, 32, 60, 60):
        refuse(health, A, now)
        assert usable_ports(health, 2, now + expected - 0.01) == [1]
        now += expected
        assert usable_ports(health, 2, now) == [0, 1]


@pytest.mark.parametrize(("well_s", "backoff_s"), [(1.9, 2.0), (2.1, 1.0)])
def test_back_off_is_forgiven_after_being_well_for_twice_as_long(
    well_s: float, backoff_s: float
) -> None:
    """Who flaps waits longer and longer."""
    health = book()
    refuse(health, A, 0.0)
    succeed(health, A, 1.0)
    refuse(health, A, 1.0 + well_s)
    assert health.describe(A, 1.0 + well_s)["until_s"] == backoff_s


def test_jitter_only_shortens() -> None:
    health = book(HealthPolicy(jitter=0.5))
    ends = []
    for n in range(50):
        address = Address("10.0.0.2", n)
        refuse(health, address, 0.0)
        ends.append(health.describe(address, 0.0)["until_s"])
    assert 0.5 <= min(ends) < 0.6
    assert 0.9 < max(ends) <= 1.0


def test_half_open_lets_one_probe_at_a_time() -> None:
    health = book()
    refuse(health, A, 0.0)
    assert state(health, A, 1.0) == "half-open"
    assert usable_ports(health, 2, 1.0) == [0, 1]
    health.begin(A, 1.0)
    assert usable_ports(health, 2, 1.0) == [1]
    succeed(health, A, 1.1)
    assert usable_ports(health, 2, 1.1) == [0, 1]
    assert (health.ejections, health.probes, health.readmissions) == (1, 1, 1)


def test_failed_probe_ejects_for_longer() -> None:
    health = book()
    refuse(health, A, 0.0)
    health.begin(A, 1.0)
    fail(health, A, 1.0)
    assert usable_ports(health, 2, 2.9) == [1]
    assert usable_ports(health, 2, 3.0) == [0, 1]


def test_probe_without_a_result_is_given_up() -> None:
    health = book()
    refuse(health, A, 0.0)
    health.begin(A, 1.0)
    assert usable_ports(health, 2, 10.9) == [1]
    assert usable_ports(health, 2, 11.0) == [0, 1]


def test_what_was_sent_before_an_ejection_decides_nothing_after_it() -> None:
    health = book()
    refuse(health, A, 5.0)
    health.record_success(A, 6.5, begun_s=4.0)
    assert state(health, A, 6.5) == "half-open"
    health.record_failure(A, 6.5, begun_s=4.0, why="timeout")
    assert state(health, A, 6.5) == "half-open"
    succeed(health, A, 7.0)
    health.record_failure(A, 7.1, begun_s=6.0, why="timeout")
    assert health.describe(A, 7.1)["failures"] == 0


def test_late_failures_do_not_prolong_an_ejection() -> None:
    health = book()
    refuse(health, A, 0.0)
    for _ in range(100):
        refuse(health, A, 0.5)
    assert usable_ports(health, 2, 1.0) == [0, 1]


def test_readmitted_instance_starts_slowly() -> None:
    health = book()
    refuse(health, A, 0.0)
    assert health.slow_since_s(A, 0.5) is None
    succeed(health, A, 1.0)
    assert health.describe(A, 11.0) | {"why": None} == {
        "state": "slow-start", "until_s": 20.0, "failures": 0, "why": None,
    }  # fmt: skip
    assert health.slow_since_s(A, 30.9) == 1.0
    assert health.slow_since_s(A, 31.0) is None
    succeed(health, A, 31.0)
    assert not health.is_troubled


def test_begin_of_a_healthy_instance_changes_nothing() -> None:
    health = book()
    health.begin(A, 0.0)
    assert usable_ports(health, 1, 0.0) == [0]


# Caps


def test_last_instance_is_never_left_out() -> None:
    health = book()
    refuse(health, A, 0.0)
    assert usable_ports(health, 1, 0.0) == [0]
    assert health.split(members(1), 0.0).is_panic


def test_half_may_be_left_out() -> None:
    health = book()
    refuse(health, A, 0.0)
    refuse(health, B, 0.0)
    found = health.split(members(4), 0.0)
    assert [i.address.port for i in found.usable] == [2, 3]
    assert not found.is_panic


def test_below_the_panic_threshold_everybody_is_used_and_the_well_are_known() -> None:
    health = book()
    for address in (A, B, C):
        refuse(health, address, 0.0)
    found = health.split(members(4), 0.0)
    assert found.is_panic
    assert found.usable == members(4)
    assert [i.address.port for i in found.well] == [3]


def test_over_the_cap_the_soonest_back_stay() -> None:
    health = book(HALF)
    for now, address in ((0.0, A), (0.1, B), (0.2, C)):
        refuse(health, address, now)
    assert usable_ports(health, 4, 0.3) == [0, 3]


def test_one_stays_even_when_the_cap_allows_all() -> None:
    health = book(replace(HALF, max_ejected=1.0))
    for now, address in ((0.0, A), (0.1, B), (0.2, C)):
        refuse(health, address, now)
    assert usable_ports(health, 4, 0.3) == [3]
    assert usable_ports(health, 3, 0.3) == [0, 1, 2]


def test_tuple_is_the_same_when_none_is_left_out() -> None:
    health, all_four = book(), members(4)
    assert health.split(all_four, 0.0).usable is all_four
    refuse(health, Address("10.9.9.9", 1), 0.0)
    assert health.split(all_four, 0.0).usable is all_four


def test_addresses_that_left_the_table_are_forgotten() -> None:
    health = book()
    refuse(health, A, 0.0)
    fail(health, B, 0.0)
    health.retain(frozenset({B}))
    assert state(health, A, 0.0) == "healthy"
    assert health.describe(B, 0.0)["failures"] == 1


# Active checks


def test_third_unanswered_ping_ejects_and_two_answers_bring_back() -> None:
    health = book()
    ping(health, A, 0.0, False, False)
    assert usable_ports(health, 2, 0.0) == [0, 1]
    ping(health, A, 0.0, False)
    assert usable_ports(health, 2, 0.0) == [1]
    ping(health, A, 0.5, True)
    assert usable_ports(health, 2, 0.5) == [1]
    ping(health, A, 0.6, True)
    assert usable_ports(health, 2, 0.6) == [0, 1]
    assert state(health, A, 0.6) == "slow-start"


def test_answered_ping_between_starts_the_count_anew() -> None:
    health = book()
    for _ in range(10):
        ping(health, A, 0.0, False, False, True)
    assert usable_ports(health, 2, 0.0) == [0, 1]
    assert not health.is_troubled


def test_who_answers_ping_and_fails_requests_waits_for_its_back_off() -> None:
    health = book()
    refuse(health, A, 0.0)
    ping(health, A, 0.5, True, True, True)
    assert state(health, A, 0.5) == "ejected"
    ping(health, A, 1.0, True)
    assert state(health, A, 1.0) == "slow-start"


def test_who_does_not_know_ping_lives_by_its_requests() -> None:
    health = book()
    for now in range(20):
        ping(health, A, float(now), False, False)
        succeed(health, A, float(now))
    assert usable_ports(health, 2, 20.0) == [0, 1]


# Whatever happens in whatever order


class Interleavings(RuleBasedStateMachine):
    """Seconds pass, run backwards, and every event comes at any time."""

    policy = HealthPolicy()

    @initialize(count=st.integers(1, 6), seed=st.integers(0, 99))
    def begin_with(self, count: int, seed: int) -> None:
        self.everyone = members(count)
        self.health = HealthBook(random.Random(seed), self.policy)
        self.now_s = self.latest_s = 1000.0

    def address(self, number: int) -> Address:
        return self.everyone[number % len(self.everyone)].address

    @rule(number=st.integers(0, 5), ago_s=st.floats(0, 20))
    def success(self, number: int, ago_s: float) -> None:
        self.health.record_success(self.address(number), self.now_s, self.now_s - ago_s)

    @rule(number=st.integers(0, 5), ago_s=st.floats(0, 20), is_refused=st.booleans())
    def failure(self, number: int, ago_s: float, is_refused: bool) -> None:
        self.health.record_failure(
            self.address(number), self.now_s, self.now_s - ago_s, "x", is_refused=is_refused
        )

    @rule(number=st.integers(0, 5), answers=st.lists(st.booleans(), max_size=4))
    def pings(self, number: int, answers: list[bool]) -> None:
        ping(self.health, self.address(number), self.now_s, *answers)

    @rule(number=st.integers(0, 5))
    def request(self, number: int) -> None:
        self.health.begin(self.address(number), self.now_s)

    @rule(by_s=st.floats(-70, 70))
    def time(self, by_s: float) -> None:
        self.now_s += by_s
        self.latest_s = max(self.latest_s, self.now_s)

    @invariant()
    def caps_hold(self) -> None:
        found = self.health.split(self.everyone, self.now_s)
        count = len(self.everyone)
        assert set(found.usable) <= set(self.everyone)
        assert len(found.usable) >= max(1, count - int(count * self.policy.max_ejected))
        if len(found.well) < self.policy.panic * count:
            assert found.usable == self.everyone

    @invariant()
    def success_now_readmits(self) -> None:
        for instance in self.everyone:
            if self.health.is_ejected(instance.address):
                copy = self.copy()
                copy.record_success(instance.address, self.latest_s, self.latest_s)
                assert not copy.is_ejected(instance.address)

    def copy(self) -> HealthBook:
        twin = HealthBook(random.Random(0), self.policy)
        twin._records = {a: replace(r) for a, r in self.health._records.items()}
        twin._now_s = self.health._now_s
        return twin

    @invariant()
    def nobody_is_out_for_ever(self) -> None:
        end_s = self.latest_s + self.policy.backoff_max_s + self.policy.probe_timeout_s
        assert self.copy().split(self.everyone, end_s).usable == self.everyone

    @invariant()
    def nothing_changes_before_until(self) -> None:
        """What `split` says holds until an event or the time that it names."""
        found = self.health.split(self.everyone, self.now_s)
        if self.latest_s < found.until_s < float("inf"):
            middle_s = (max(self.now_s, self.latest_s) + found.until_s) / 2
            assert self.copy().split(self.everyone, middle_s).usable == found.usable


class WithoutPanic(Interleavings):
    policy = HealthPolicy(panic=0.0, slow_start_s=5.0)


TestInterleavings = Interleavings.TestCase
TestInterleavingsWithoutPanic = WithoutPanic.TestCase
TestInterleavings.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestInterleavingsWithoutPanic.settings = TestInterleavings.settings


@given(st.floats(-10, 100), st.floats(-10, 100), st.floats(0.1, 60))
def test_slow_start_share_grows(one_s: float, other_s: float, length_s: float) -> None:
    policy = HealthPolicy(slow_start_s=length_s)
    early, late = sorted((one_s, other_s))
    shares = [slow_start_share(policy, 0.0, now_s) for now_s in (early, late)]
    assert policy.slow_start_share <= shares[0] <= shares[1] <= 1.0


def test_back_off_survives_weeks_of_failed_probes() -> None:
    health, now = book(), 0.0
    for _ in range(2000):
        refuse(health, A, now)
        now += 60
    assert usable_ports(health, 2, now) == [0, 1]
