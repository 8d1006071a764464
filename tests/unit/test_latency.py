"""Estimates of latency: the peak of one instance, the quantile of a service."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.latency import QUANTILE_SAMPLES, Quantile, Slowness, Usual


def test_estimate_rises_with_each_slow_reply_and_comes_down_slowly() -> None:
    slowness = Slowness()
    slowness.observe(5.0, 0.0)
    assert slowness.value == 1.0, "the first may be slow because it is the first"
    slowness.observe(10.0, 0.1)
    assert slowness.value == 1.5, "one hiccup is no proof"
    for _ in range(5):
        slowness.observe(10.0, 0.1)
    assert slowness.value == 10.0
    slowness.observe(1.0, 0.2)
    assert 9.0 < slowness.value < 10.0
    for tick in range(100):
        slowness.observe(1.0, 0.2 + tick * 0.1)
    assert slowness.value == pytest.approx(1.0, rel=0.01)


def test_estimate_of_who_is_not_asked_fades_towards_the_usual() -> None:
    slowness = Slowness()
    for _ in range(20):
        slowness.observe(100.0, 0.0)
    assert slowness.estimate(0.0) == 100.0
    assert 30 < slowness.estimate(1.0) < 40
    assert slowness.estimate(60.0) == pytest.approx(1.0)
    slowness.observe(0.5, 60.0)
    assert slowness.estimate(65.0) == slowness.value, "a fast one stays fast"


@given(st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 100)), max_size=30))
def test_estimates_stay_between_what_was_seen_whatever_the_clock(
    seen: list[tuple[float, float]],
) -> None:
    slowness = Slowness()
    for ratio, now_s in seen:
        slowness.observe(ratio, now_s)
        most = max(value for value, _ in seen)
        assert 0 <= slowness.value <= most
        assert 0 <= slowness.estimate(now_s) <= max(slowness.value, 1.0)


def test_methods_are_compared_with_themselves() -> None:
    usual = Usual()
    for _ in range(100):
        usual.observe("quick", 0.001)
        usual.observe("slow", 1.0)
    assert usual.ratio("quick", 0.001) == pytest.approx(1.0, rel=0.05)
    assert usual.ratio("slow", 1.0) == pytest.approx(1.0, rel=0.05)
    assert usual.ratio("slow", 10.0) > 9
    assert usual.ratio("never", 10.0) == 1.0
    assert usual.ratio("quick", 0.0003) > 0.6, "less than a millisecond is noise"


def test_methods_that_are_remembered_are_bounded() -> None:
    usual = Usual()
    for number in range(1000):
        usual.observe(f"m{number}", 0.001)
    assert len(usual._medians) == 257


@pytest.mark.parametrize("scale", [0.0001, 1.0, 100.0])
def test_quantile_follows_the_distribution(scale: float) -> None:
    rand, p95 = random.Random(1), Quantile(0.95)
    for _ in range(QUANTILE_SAMPLES - 1):
        p95.observe(rand.expovariate(1 / scale))
    assert p95.value_s() is None
    for _ in range(5000):
        p95.observe(rand.expovariate(1 / scale))
    assert p95.value_s() == pytest.approx(3.0 * scale, rel=0.3)
