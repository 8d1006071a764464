"""Weighted power of two choices: shares, load, exclusion; with a seeded Random."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.balancer import pick
from proxy.core.model import Address, Instance

PICKS = 20_000


def members(*weights: int) -> tuple[Instance, ...]:
    return tuple(Instance(Address("10.0.0.1", n), weight=w) for n, w in enumerate(weights))


def idle(_address: Address) -> float:
    return 0


def shares(
    instances: tuple[Instance, ...], exclude: frozenset[Address] = frozenset()
) -> list[float]:
    rand = random.Random(1)
    counts = Counter(pick(instances, idle, rand, exclude) for _ in range(PICKS))
    return [counts[i] / PICKS for i in instances]


@pytest.mark.parametrize("weights", [(100, 100), (1, 1, 1, 1, 1), (100, 50), (99, 1), (3, 2, 0, 5)])
def test_idle_set_is_used_in_proportion_to_its_weights(weights: tuple[int, ...]) -> None:
    expected = [w / sum(weights) for w in weights]
    assert shares(members(*weights)) == pytest.approx(expected, abs=0.015)


def test_drained_instances_serve_only_when_all_are_drained() -> None:
    assert shares(members(0, 7)) == [0, 1]
    assert shares(members(0, 0)) == pytest.approx([0.5, 0.5], abs=0.015)
    assert pick(members(0, 7), idle, random.Random(1), frozenset({Address("10.0.0.1", 1)})) is None


def test_excluded_are_not_picked() -> None:
    instances = members(1_000_000, 1, 1)
    assert shares(instances, frozenset({instances[0].address})) == pytest.approx(
        [0, 0.5, 0.5], abs=0.015
    )
    assert pick(instances, idle, random.Random(1), frozenset(i.address for i in instances)) is None


def test_empty_set_gives_none() -> None:
    assert pick((), idle, random.Random(1)) is None


def simulate(instances: tuple[Instance, ...], service_ticks: dict[int, int]) -> Counter[int]:
    """Two requests start in each tick; an instance takes `service_ticks` of its port for one."""
    rand = random.Random(2)
    in_flight: Counter[Address] = Counter()
    ends: dict[int, list[Address]] = {}
    counts: Counter[int] = Counter()
    for tick in range(5000):
        for address in ends.pop(tick, []):
            in_flight[address] -= 1
        for _ in range(2):
            chosen = pick(instances, lambda a: in_flight[a], rand)
            assert chosen is not None
            counts[chosen.address.port] += 1
            in_flight[chosen.address] += 1
            done = tick + service_ticks[chosen.address.port]
            ends.setdefault(done, []).append(chosen.address)
    return counts


def test_slow_instance_gets_less() -> None:
    counts = simulate(members(1, 1, 1), {0: 100, 1: 5, 2: 5})
    assert counts[0] < 0.12 * sum(counts.values())


def test_stuck_instance_of_two_gets_almost_nothing() -> None:
    counts = simulate(members(1, 1), {0: 100_000, 1: 2})
    assert counts[0] < 20


def test_weights_hold_under_load() -> None:
    counts = simulate(members(300, 100), {0: 10, 1: 10})
    assert counts[0] / counts[1] == pytest.approx(3, rel=0.25)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=8),
    st.sets(st.integers(0, 7)),
    st.dictionaries(st.integers(0, 7), st.integers(0, 9)),
    st.integers(0, 999),
)
def test_pick_is_allowed_and_found_when_one_is(
    weights: list[int], excluded: set[int], loads: dict[int, int], seed: int
) -> None:
    instances = members(*weights)
    exclude = frozenset(Address("10.0.0.1", n) for n in excluded)
    allowed = [i for i in instances if i.address not in exclude and (i.weight or not any(weights))]
    chosen = pick(instances, lambda a: loads.get(a.port, 0), random.Random(seed), exclude)
    assert chosen in allowed if allowed else chosen is None


def test_pick_does_not_look_at_every_instance() -> None:
    instances = members(*[1] * 10_000)
    asked: list[Address] = []

    def load(address: Address) -> float:
        asked.append(address)
        return 0

    pick(instances, load, random.Random(3))
    assert len(asked) <= 2


def test_drained_instance_takes_no_load_off_a_busy_one() -> None:
    busy = members(1, 0)
    rand = random.Random(4)
    chosen = {pick(busy, lambda a: 9 - 9 * a.port, rand) for _ in range(100)}
    assert chosen == {busy[0]}


def test_one_request_in_flight_decides_between_two_equals() -> None:
    two = members(1, 1)
    rand = random.Random(5)
    assert {pick(two, lambda a: 1 - a.port, rand) for _ in range(100)} == {two[1]}
