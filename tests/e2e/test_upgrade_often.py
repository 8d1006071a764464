"""Many upgrades in a row under load."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Measured
from tests.support import crowds
from tests.support.crowds import Crowd
from tests.support.lab import Lab
from tests.support.upgrades import wait_no_leak

pytestmark = pytest.mark.e2e

CROWD = ("resp=12@120", "pipelined=2@60", "turbo=2@60", "turbo9=2@60", "raw=2@60")
IN_A_ROW = 10


def test_ten_in_a_row(lab: Lab, measured: Measured) -> None:
    """Each with the one before it told to leave; nothing is lost and nothing is left behind."""
    upgrades = crowds.begin(lab)
    crowd, counts = Crowd.begin(upgrades, *CROWD), []
    for _ in range(IN_A_ROW):
        successor = upgrades.prepare()
        retired = upgrades.give(successor)
        assert retired.link.said[-1]["left"] == 0
        counts.append(upgrades.agent.status()["requests"]["total"])
        upgrades.wait_requests(20)
        retired.retire()
    assert counts == sorted(counts)
    memory_mib = upgrades.serving.pss_kib() / 1024
    routed = crowd.end()
    assert upgrades.agent.status()["requests"]["total"] == crowd.requests + routed
    wait_no_leak(upgrades.serving, upgrades.own_sockets)
    measured("ten upgrades in a row", requests=routed, pss_mib=memory_mib)
