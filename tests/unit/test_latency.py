"""Estimates of latency: the peak of one instance, the quantile of a service."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.latency import QUANTILE_SAMPLES, PeakEwma, Quantile


def test_peak_jumps_up_and_comes_down_slowly() -> None:
    latency = PeakEwma()
    latency.observe(0.010, 0.0)
    latency.observe(0.100, 0.1)
    assert latency.value_s == 0.100
    latency.observe(0.010, 0.2)
    assert 0.09 < latency.value_s < 0.1
    for tick in range(100):
        latency.observe(0.010, 0.2 + tick * 0.1)
    assert latency.value_s == pytest.approx(0.010, rel=0.01)


def test_estimate_of_who_is_not_asked_fades_towards_what_is_typical() -> None:
    latency = PeakEwma()
    latency.observe(1.0, 0.0)
    assert latency.estimate_s(0.01, 0.0) == 1.0
    assert 0.3 < latency.estimate_s(0.01, 1.0) < 0.4
    assert latency.estimate_s(0.01, 60.0) == pytest.approx(0.01)
    latency.observe(0.001, 60.0)
    assert latency.estimate_s(0.01, 61.0) == latency.value_s, "the fast one stays"


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 100)), max_size=30))
def test_estimates_stay_between_what_was_seen_whatever_the_clock(
    seen: list[tuple[float, float]],
) -> None:
    latency = PeakEwma()
    for latency_s, now_s in seen:
        latency.observe(latency_s, now_s)
        most_s = max(value for value, _ in seen)
        assert 0 <= latency.estimate_s(0.0, now_s) <= latency.value_s <= most_s


@pytest.mark.parametrize("scale", [0.0001, 1.0, 100.0])
def test_quantile_follows_the_distribution(scale: float) -> None:
    rand, p95 = random.Random(1), Quantile()
    for _ in range(QUANTILE_SAMPLES - 1):
        p95.observe(rand.expovariate(1 / scale))
    assert p95.value_s() is None
    for _ in range(5000):
        p95.observe(rand.expovariate(1 / scale))
    assert p95.value_s() == pytest.approx(3.0 * scale, rel=0.3)
