"""The benchmark of a request's own path: every case carries requests, and ends its process."""

from __future__ import annotations

import pytest

from tests.bench.hotpath import PathCost, cpu_us, table
from tests.bench.hotpath_agent import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_is_carried_and_timed(case: Case) -> None:
    us = cpu_us(case, warm_up=1, count=5)
    assert us > 0
    assert f"| {case} | {us:.1f} |" in table([PathCost(case, us, us, None)])
