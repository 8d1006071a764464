"""What balancing is for, in virtual time: the qualitative part of docs/PERFORMANCE.md."""

from __future__ import annotations

from functools import cache

import pytest

from tests.bench.crowd import Case
from tests.bench.crowd import simulate as simulate_crowd
from tests.bench.simulation import INSTANCES, Result, simulate

FAIR = 1 / INSTANCES


@cache
def run(policy: str, scenario: str) -> Result:
    return simulate(policy, scenario)


def test_equal_instances_get_equal_shares() -> None:
    result = run("P2C-EWMA", "equal")
    assert [result.share(n) for n in range(INSTANCES)] == pytest.approx([FAIR] * 10, rel=0.2)
    assert result.errors == 0
    assert result.p99_ms < 1.2 * run("random", "equal").p99_ms


@pytest.mark.parametrize("scenario", ["one 10x slower", "black hole", "flapping"])
def test_victim_gets_little_and_traffic_returns(scenario: str) -> None:
    result = run("P2C-EWMA", scenario)
    assert result.share() < FAIR / 5
    assert result.share() < run("least loaded", scenario).share()
    assert result.p99_ms < 1.3 * run("P2C-EWMA", "equal").p99_ms
    assert FAIR / 2 < result.share_after() < 1.5 * FAIR


def test_lost_zone_is_left_and_used_again() -> None:
    result = run("P2C-EWMA", "zone loss")
    assert result.error_share < 0.1
    assert result.share_after() > FAIR


def p99_ms(case: Case, *, is_told: bool) -> float:
    return simulate_crowd(case, 1, is_told=is_told).quantile_ms(0.99)


def test_agents_that_are_told_of_each_others_load_wait_less() -> None:
    case = Case("", 100, 0.8)
    assert p99_ms(case, is_told=True) < 0.97 * p99_ms(case, is_told=False)


def test_one_agent_alone_knows_all_and_is_told_nothing() -> None:
    case = Case("", 1, 0.8)
    assert p99_ms(case, is_told=True) == p99_ms(case, is_told=False)


def test_slow_instance_is_no_better_off_for_the_little_load_that_it_tells() -> None:
    case = Case("", 20, 0.7, slower=10.0)
    assert simulate_crowd(case, 1, is_told=True).share < FAIR / 5
