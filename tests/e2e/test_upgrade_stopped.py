"""SIGTERM of an agent that has a predecessor to go back to: that one serves, and is seen to."""

from __future__ import annotations

import signal

import pytest

from tests.e2e.clients.raw import request
from tests.support import crowds
from tests.support.crowds import PORT
from tests.support.far_sockets import FarResp
from tests.support.lab import Lab, wait_until

pytestmark = pytest.mark.e2e


def test_the_predecessor_of_a_stopped_agent_serves(lab: Lab) -> None:
    """Its listeners are those of the kernel, before the other one has drained and after."""
    upgrades = crowds.begin(lab)
    node, b = upgrades.node, lab.nodes["b"]
    first, second = upgrades.serving, upgrades.prepare()
    upgrades.give(second)
    second.process.signal(signal.SIGTERM)
    first.link.wait("refused")
    upgrades.serving = first
    assert second.process.popen.wait(20) == 0, second.process.output
    with FarResp.on(node, b.ip4, PORT) as client:
        assert client.call(request("echo", 7))["result"] == 7
        wait_until(lambda: len(first.conns()) == 1, 5, "it is the first agent's")
    assert upgrades.agent.status()["pid"] == first.pid
    upgrades.upgrade().retire()
