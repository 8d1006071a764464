"""SIGTERM of an agent that has a predecessor to go back to: that one serves, and is seen to."""

from __future__ import annotations

import signal
import time

import pytest

from interceptor.bpffs import locked
from interceptor.node import LOCK_TIMEOUT_S
from interceptor.node import Node as KernelNode
from tests.e2e.clients.raw import request
from tests.support import crowds
from tests.support.crowds import PORT
from tests.support.far_sockets import FarResp
from tests.support.lab import Lab, wait_until
from tests.support.upgrades import Upgrades

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def upgrades(lab: Lab) -> Upgrades:
    return crowds.begin(lab, timeout_s=1)


def test_the_predecessor_of_a_stopped_agent_serves(upgrades: Upgrades, lab: Lab) -> None:
    """Its listeners are those of the kernel, before the other one has drained and after."""
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


def test_who_could_not_move_is_answered_by_a_stopped_retired_agent(
    upgrades: Upgrades, lab: Lab
) -> None:
    """A connection that stayed, as its request takes longer than an upgrade, ends in its time."""
    with FarResp.on(upgrades.node, lab.nodes["b"].ip4, PORT) as client:
        successor = upgrades.prepare()
        client.send(request("sleep", 2500))
        wait_until(lambda: upgrades.serving.client.status()["requests"]["in_flight"], 5, "it")
        first = upgrades.serving
        first.link.do("give")
        assert first.link.wait("given")["left"] == 1
        successor.link.wait("taken")
        upgrades.serving = successor
        first.link.do("stop")
        assert client.reply()["result"] == 2500
        assert first.process.popen.wait(10) == 0, first.process.output


def test_the_retired_one_serves_while_a_command_has_the_lock_of_the_pins(
    upgrades: Upgrades, lab: Lab
) -> None:
    """It waits for nobody, and brings its programs back as soon as it can."""
    node = upgrades.node
    first, second = upgrades.serving, upgrades.prepare()
    upgrades.give(second)
    with locked(KernelNode(node.root).tree):
        begin_s = time.monotonic()
        second.process.kill()
        first.link.wait("refused")
        upgrades.serving = first
        with FarResp.on(node, lab.nodes["b"].ip4, PORT) as client:
            assert client.call(request("echo", 7))["result"] == 7
            wait_until(lambda: len(first.conns()) == 1, 5, "it is the first agent's")
        assert time.monotonic() - begin_s < LOCK_TIMEOUT_S
        assert "programs not brought back" in first.process.output
    count = first.process.output.count('"programs"')
    wait_until(lambda: first.process.output.count('"programs"') > count, 10, "they are back")
    upgrades.upgrade().retire()
