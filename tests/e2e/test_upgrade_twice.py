"""Two upgrades at once, back again, and successors that cannot serve."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.clients.raw import request
from tests.support import crowds
from tests.support.crowds import PORT, Crowd
from tests.support.far_sockets import FarResp, dial
from tests.support.lab import Lab, LabNode, wait_until
from tests.support.upgrades import Generation, Upgrades, wait_no_leak

pytestmark = pytest.mark.e2e

CROWD = ("resp=12@200", "pipelined=2@80", "turbo=2@80", "turbo9=2@80", "raw=2@60")
CLIENTS = 20


@dataclass(slots=True)
class Node:
    """Clients and agents on `a`, an instance on `b`; a crowd calls during each test."""

    a: LabNode
    b: LabNode
    upgrades: Upgrades
    crowd: Crowd

    @property
    def serving(self) -> Generation:
        return self.upgrades.serving

    def wait_requests(self, count: int) -> None:
        """Until so many more have been served."""
        self.upgrades.wait_requests(count)


@pytest.fixture(scope="module")
def upgrades(lab: Lab) -> Upgrades:
    return crowds.begin(lab)


@pytest.fixture
def node(upgrades: Upgrades) -> Iterator[Node]:
    """Afterwards only the agent that serves is left."""
    crowd = Crowd.begin(upgrades, *CROWD)
    yield Node(upgrades.node, upgrades.node.lab.nodes["b"], upgrades, crowd)
    crowd.process.kill()
    for generation in upgrades.generations:
        if generation is not upgrades.serving and generation.is_alive:
            generation.retire()


def test_two_successors_at_once(node: Node) -> None:
    """The second is told why, and ends; the first one goes on and takes over."""
    first = node.upgrades.prepare()
    assert "another upgrade is under way" in node.upgrades.refused()
    node.wait_requests(50)
    retired = node.upgrades.give(first)
    node.wait_requests(50)
    # The first one may still go back.
    assert "another upgrade is under way" in node.upgrades.refused()
    retired.retire()
    node.upgrades.upgrade().retire()
    node.crowd.end()


def test_there_and_back(node: Node) -> None:
    """The retired one takes everything back, and is succeeded again."""
    with FarResp.on(node.a, node.b.ip4, PORT) as client:
        number = client.command(b"CLIENT ID")
        first, counted = node.serving, 0
        second = node.upgrades.prepare()
        for giver, taker in ((first, second), (second, first)) * 2:
            node.wait_requests(40)
            giver.link.do("give")
            giver.link.wait("given")
            taker.link.wait("taken")
            assert node.upgrades.agent.status()["pid"] == taker.pid
            assert giver.conns() == []
            assert client.call(request("echo", 3))["result"] == 3
            assert client.command(b"CLIENT ID") == number
            total = node.upgrades.agent.status()["requests"]["total"]
            assert total > counted
            counted = total
        second.retire()
        node.wait_requests(40)
    total = node.crowd.requests + node.crowd.end() + 4
    assert first.client.status()["requests"]["total"] == total
    wait_no_leak(first, node.upgrades.own_sockets)
    node.upgrades.upgrade().retire()


def test_the_successor_may_open_too_few_descriptors(node: Node) -> None:
    """It says so, or the one that serves says so for it; everybody goes on."""
    idle = dial(node.a, node.b.ip4, PORT, 150)
    wait_until(lambda: len(node.serving.conns()) == CLIENTS + 150, 10, "150 more clients")
    few = node.upgrades.prepare(prefix=("prlimit", "--nofile=256:256"))
    node.serving.link.do("give")
    why = node.serving.link.wait("refused")["why"]
    assert "raise its limit (LimitNOFILE)" in why
    assert few.process.popen.wait(10) == 1
    assert why in few.process.output.splitlines()[-1]
    node.wait_requests(50)
    assert len(node.serving.conns()) == CLIENTS + 150
    for sock in idle:
        sock.close()
    retired = node.upgrades.upgrade()
    node.wait_requests(50)
    retired.retire()
    node.crowd.end()


def test_a_configuration_that_the_successor_cannot_read(node: Node) -> None:
    bad = node.a.directory / "bad.toml"
    bad.write_text(node.upgrades.config.read_text() + "\n[nonsense]\nx = 1\n")
    argv = ["--supervised", "--take-over", str(node.serving.entrance)]
    process = node.a.python("bad", "-m", "installer.agent_start", str(bad), *argv)
    assert process.popen.wait(20) == 1
    assert "nonsense" in process.output
    node.wait_requests(50)
    node.upgrades.upgrade().retire()
    node.crowd.end()


def test_stopped_at_odd_moments(node: Node) -> None:
    """SIGTERM of a successor that is ready, and of one that has retired."""
    ready = node.upgrades.prepare()
    ready.process.signal(signal.SIGTERM)
    assert ready.process.popen.wait(10) == 0
    node.wait_requests(50)
    retired = node.upgrades.upgrade()
    node.wait_requests(50)
    retired.process.signal(signal.SIGTERM)
    assert retired.process.popen.wait(10) == 0
    node.wait_requests(50)
    node.crowd.end()


def test_the_successor_is_killed_while_it_only_waits(node: Node) -> None:
    ready = node.upgrades.prepare()
    ready.process.kill()
    node.wait_requests(50)
    node.upgrades.upgrade().retire()
    node.crowd.end()


def test_the_retired_one_serves_again_when_its_successor_is_killed(node: Node) -> None:
    """What the successor had waits in its keeper; new clients are served at once."""
    first = node.serving
    second = node.upgrades.prepare()
    node.upgrades.give(second)
    second.process.kill()
    first.link.wait("refused")
    node.upgrades.serving = first
    assert node.upgrades.agent.status()["pid"] == first.pid
    with FarResp.on(node.a, node.b.ip4, PORT) as client:
        assert client.call(request("echo", 7))["result"] == 7
        assert len(first.conns()) >= 1
    first.link.do("adopt", path=str(node.a.directory / "run" / f"keeper-{second.pid}.sock"))
    assert first.link.wait("taken")["moved"] == CLIENTS
    node.wait_requests(100)
    for name, what in node.crowd.stop().items():
        assert not [f for f in what["failures"] if "connection lost" in f], name
        assert what["ok"] + what["failed"] == what["sent"]
