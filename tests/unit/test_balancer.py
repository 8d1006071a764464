"""Weighted power of two choices: shares, load, exclusion; with a seeded Random."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import balancer
from proxy.core.balancer import Choices, Node, Place
from proxy.core.model import Address, Instance
from proxy.core.policy import HealthPolicy
from proxy.core.ring import Ring

PICKS = 20_000


def members(*weights: int) -> tuple[Instance, ...]:
    return tuple(Instance(Address("10.0.0.1", n), weight=w) for n, w in enumerate(weights))


def places_of(instances: tuple[Instance, ...]) -> tuple[Place, ...]:
    return tuple(Place(i, Node(i.address)) for i in instances)


def choices_of(
    instances: tuple[Instance, ...], slow: dict[Address, float] | None = None
) -> Choices:
    return Choices(places_of(instances), slow or {}, HealthPolicy())


def pick(
    choices: Choices,
    rand: random.Random,
    exclude: frozenset[Address] = frozenset(),
    now_s: float = 0.0,
) -> Instance | None:
    place = balancer.pick(choices, now_s, rand, exclude)
    return None if place is None else place.instance


def shares(
    instances: tuple[Instance, ...], exclude: frozenset[Address] = frozenset()
) -> list[float]:
    rand, choices = random.Random(1), choices_of(instances)
    counts = Counter(pick(choices, rand, exclude) for _ in range(PICKS))
    return [counts[i] / PICKS for i in instances]


@pytest.mark.parametrize("weights", [(100, 100), (1, 1, 1, 1, 1), (100, 50), (99, 1), (3, 2, 0, 5)])
def test_idle_set_is_used_in_proportion_to_its_weights(weights: tuple[int, ...]) -> None:
    expected = [w / sum(weights) for w in weights]
    assert shares(members(*weights)) == pytest.approx(expected, abs=0.015)


def test_what_others_have_in_flight_counts_a_little_and_not_for_long() -> None:
    node = Node(Address("10.0.0.1", 1))
    node.in_flight = 2
    assert node.load(5.0) == 2
    node.told(12, 5.0)
    assert node.load(5.0) == 2 + 10 * balancer._OTHERS_SHARE
    assert 2 < node.load(5.1) < node.load(5.0)
    assert node.load(5.01 + balancer._OTHERS_FADE_S) == 2
    assert node.load(4.0) == node.load(5.0), "a clock that goes back"
    node.told(1, 6.0)
    assert node.load(6.0) == 2, "it was counted before our last request arrived"


def test_traffic_leaves_whom_others_use_more() -> None:
    choices, rand = choices_of(members(1, 1)), random.Random(1)
    for place, load in zip(choices.places, (100, 0), strict=True):
        place.node.told(load, 1.0)
    counts = Counter(pick(choices, rand, now_s=1.0) for _ in range(100))
    assert counts[choices.places[1].instance] == 100
    later = Counter(pick(choices, rand, now_s=9.0) for _ in range(PICKS))
    assert later[choices.places[0].instance] / PICKS == pytest.approx(0.5, abs=0.02)


def test_drained_instances_serve_only_when_all_are_drained() -> None:
    assert shares(members(0, 7)) == [0, 1]
    assert shares(members(0, 0)) == pytest.approx([0.5, 0.5], abs=0.015)
    assert (
        pick(choices_of(members(0, 7)), random.Random(1), frozenset({Address("10.0.0.1", 1)}))
        is None
    )


def test_excluded_are_not_picked() -> None:
    instances = members(1_000_000, 1, 1)
    assert shares(instances, frozenset({instances[0].address})) == pytest.approx(
        [0, 0.5, 0.5], abs=0.015
    )
    assert (
        pick(choices_of(instances), random.Random(1), frozenset(i.address for i in instances))
        is None
    )


def test_empty_set_gives_none() -> None:
    assert pick(choices_of(()), random.Random(1)) is None


def simulate(instances: tuple[Instance, ...], service_ticks: dict[int, int]) -> Counter[int]:
    """Two requests start in each tick; an instance takes `service_ticks` of its port for one."""
    rand, choices = random.Random(2), choices_of(instances)
    ends: dict[int, list[Node]] = {}
    counts: Counter[int] = Counter()
    for tick in range(5000):
        for node in ends.pop(tick, []):
            node.in_flight -= 1
        for _ in range(2):
            chosen = balancer.pick(choices, 0.0, rand)
            assert chosen is not None
            counts[chosen.node.address.port] += 1
            chosen.node.in_flight += 1
            done = tick + service_ticks[chosen.node.address.port]
            ends.setdefault(done, []).append(chosen.node)
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
    choices = choices_of(instances)
    for place in choices.places:
        place.node.in_flight = loads.get(place.node.address.port, 0)
    chosen = pick(choices, random.Random(seed), exclude)
    assert chosen in allowed if allowed else chosen is None


def busy(choices: Choices, *in_flight: int) -> Choices:
    for place, count in zip(choices.places, in_flight, strict=True):
        place.node.in_flight = count
    return choices


def test_drained_instance_takes_no_load_off_a_busy_one() -> None:
    instances = members(1, 0)
    choices, rand = busy(choices_of(instances), 9, 0), random.Random(4)
    assert {pick(choices, rand) for _ in range(100)} == {instances[0]}


def test_one_request_in_flight_decides_between_two_equals() -> None:
    two = members(1, 1)
    choices, rand = busy(choices_of(two), 1, 0), random.Random(5)
    assert {pick(choices, rand) for _ in range(100)} == {two[1]}


def test_slow_instance_is_avoided_and_tried_again() -> None:
    """Its estimate fades towards what is usual once nobody asks it."""
    two = members(1, 1)
    choices, rand = choices_of(two), random.Random(6)
    for place, slowness in zip(choices.places, (10.0, 1.0), strict=True):
        place.node.slowness.value, place.node.slowness.seen_s = slowness, 10.0
    assert {pick(choices, rand, now_s=10.0) for _ in range(100)} == {two[1]}
    later = {pick(choices, rand, now_s=20.0) for _ in range(100)}
    assert later == set(two)


@pytest.mark.parametrize(("at_s", "share"), [(0.0, 0.05), (15.0, 0.275), (30.0, 0.5)])
def test_slow_start_grows_to_the_whole_weight(at_s: float, share: float) -> None:
    two = members(1, 1)
    choices, rand = choices_of(two, {two[0].address: 0.0}), random.Random(9)
    counts = Counter(pick(choices, rand, now_s=at_s) for _ in range(PICKS))
    # Redrawn when it is not taken, so a little more than its share of the weight.
    assert share - 0.02 < counts[two[0]] / PICKS < share + 0.1


@given(st.floats(0, 100), st.floats(0, 100))
def test_slow_start_is_monotone(one_s: float, other_s: float) -> None:
    two = members(1, 1)
    choices = choices_of(two, {two[0].address: 0.0})
    early, late = sorted((one_s, other_s))
    a, b = (choices.share(two[0].address, now_s) for now_s in (early, late))
    assert 0.1 <= a <= b <= 1.0
    assert choices.share(two[1].address, early) == 1.0


# Consistent hash with bounded load


KEYS = [f"user-{n}" for n in range(5000)]


def owners(instances: tuple[Instance, ...]) -> dict[str, int]:
    ring = Ring(places_of(instances))
    found = {}
    for key in KEYS:
        place = ring.pick(key, bound=1e9)
        assert place is not None
        found[key] = place.instance.address.port
    return found


def test_keys_stay_when_an_instance_goes() -> None:
    before, after = owners(members(*[100] * 10)), owners(members(*[100] * 9))
    moved = [key for key in KEYS if before[key] != after[key]]
    assert all(before[key] == 9 for key in moved)
    assert 0.05 < len(moved) / len(KEYS) < 0.16


def test_keys_follow_weights() -> None:
    counts = Counter(owners(members(300, 100)).values())
    assert counts[0] / counts[1] == pytest.approx(3, rel=0.35)
    assert set(owners(members(100, 0)).values()) == {0}
    assert set(owners(members(0, 0)).values()) == {0, 1}


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 99))
def test_no_key_goes_to_who_is_over_the_bound(loads: list[int], key: int) -> None:
    places = places_of(members(*[100] * len(loads)))
    for place, load in zip(places, loads, strict=True):
        place.node.in_flight = load
    chosen = Ring(places).pick(str(key), bound=1.25)
    assert chosen is not None
    assert chosen.node.in_flight < 1.25 * (sum(loads) + 1) / len(loads)


def test_hash_skips_who_was_tried() -> None:
    places = places_of(members(1, 1))
    assert Ring(places).pick("k", 1.25, frozenset(p.node.address for p in places)) is None
