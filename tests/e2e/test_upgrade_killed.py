"""One of two agents is killed, or told to stop, while connections are between them.

Slow requests keep the upgrade half done for as long as a test needs it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from interceptor.abi import Reason
from interceptor.node import Node as KernelNode
from tests.e2e.clients.raw import request
from tests.support import crowds
from tests.support.crowds import PORT, Crowd
from tests.support.far_sockets import FarResp, dial
from tests.support.lab import Lab, LabNode, wait_until
from tests.support.upgrades import Generation, Upgrades

pytestmark = pytest.mark.e2e

SLOW, QUICK, SLOW_MS = 5, 12, 4000
CROWD = ("resp=6@80", "turbo=2@40", "raw=2@40")
CROWDED = 10


@dataclass(slots=True)
class Half:
    """An upgrade of which the connections with slow requests are still with the old one."""

    a: LabNode
    upgrades: Upgrades
    old: Generation
    new: Generation
    slow: list[FarResp]
    quick: list[FarResp]
    crowd: Crowd

    def fresh(self) -> Any:
        with FarResp.on(self.a, self.a.lab.nodes["b"].ip4, PORT) as client:
            return client.call(request("echo", "fresh"))["result"]

    def keeper_of(self, generation: Generation) -> str:
        return str(self.a.directory / "run" / f"keeper-{generation.pid}.sock")

    def check_quick(self) -> None:
        for number, client in enumerate(self.quick):
            assert client.call(request("echo", number))["result"] == number

    def end_crowd(self) -> None:
        """Nobody was disconnected, and who failed was told so once."""
        for name, what in self.crowd.stop().items():
            assert not [f for f in what["failures"] if "connection lost" in f], what["failures"]
            assert what["ok"] + what["failed"] == what["sent"], name
            assert what["failed"] <= 40, what["failures"]


@pytest.fixture(scope="module")
def upgrades(lab: Lab) -> Upgrades:
    return crowds.begin(lab)


@pytest.fixture
def half(upgrades: Upgrades) -> Iterator[Half]:
    a = upgrades.node
    socks = dial(a, a.lab.nodes["b"].ip4, PORT, SLOW + QUICK)
    clients = [FarResp(sock) for sock in socks]
    slow, quick = clients[:SLOW], clients[SLOW:]
    new, old = upgrades.prepare(), upgrades.serving
    crowd = Crowd.begin(upgrades, *CROWD)
    made = Half(a, upgrades, old, new, slow, quick, crowd)
    made.check_quick()
    for client in slow:
        client.send(request("sleep", SLOW_MS), request("echo", "behind"))

    def are_under_way() -> bool:
        return bool(old.client.status()["requests"]["in_flight"] >= SLOW)

    wait_until(are_under_way, 10, "slow requests are under way")
    old.link.do("give")
    new.link.wait("serving")
    moved = QUICK + CROWDED
    wait_until(lambda: len(old.conns()) == SLOW, 10, "all but the slow ones have moved")
    assert len(new.conns()) == moved
    upgrades.serving = new
    made.check_quick()
    upgrades.wait_requests(40)
    yield made
    crowd.process.kill()
    for client in clients:
        client.close()
    for generation in upgrades.generations:
        if generation is not upgrades.serving and generation.is_alive:
            generation.retire()


def test_the_new_one_is_killed_halfway(half: Half) -> None:
    """The old one serves again, adopts what had moved, and answers what it had begun."""
    half.new.process.kill()
    half.old.link.wait("refused")
    half.upgrades.serving = half.old
    assert half.fresh() == "fresh"
    half.old.link.do("adopt", path=half.keeper_of(half.new))
    assert half.old.link.wait("taken")["moved"] == QUICK + CROWDED
    half.check_quick()
    for client in half.slow:
        assert client.reply()["result"] == SLOW_MS
        assert client.reply()["result"] == "behind"
    half.end_crowd()


def test_the_old_one_is_killed_halfway(half: Half) -> None:
    """The new one adopts the rest; what was under way there gets one error, in its turn."""
    half.old.process.kill()
    half.new.link.do("adopt", path=half.keeper_of(half.old))
    assert half.new.link.wait("taken")["moved"] == SLOW
    half.check_quick()
    for client in half.slow:
        reply = client.reply()
        assert reply["ec"] == 303
        assert "may have been executed" in reply["em"]
        assert client.reply()["result"] == "behind"
        assert client.call(request("echo", "after"))["result"] == "after"
    assert half.fresh() == "fresh"
    half.end_crowd()


def test_the_old_one_is_told_to_stop_halfway(half: Half) -> None:
    """It gives what it still has before it ends: nobody notices."""
    half.old.process.signal(signal.SIGTERM)
    for client in half.slow:
        assert client.reply()["result"] == SLOW_MS
        assert client.reply()["result"] == "behind"
    assert half.old.process.popen.wait(20) == 0
    assert len(half.new.conns()) == SLOW + QUICK + CROWDED
    half.check_quick()
    half.crowd.end()


def test_the_new_one_is_told_to_stop_while_the_old_one_could_go_back(half: Half) -> None:
    """It drains as any agent does; new connections go to the old one, and none to nobody."""
    for client in half.slow:
        assert client.reply()["result"] == SLOW_MS
    half.new.link.wait("taken")
    with KernelNode(half.a.root).maps() as maps:
        half.new.process.signal(signal.SIGTERM)
        half.old.link.wait("refused")
        before = maps.counters()
        half.upgrades.serving = half.old
        assert half.new.process.popen.wait(20) == 0
        for _ in range(20):
            assert half.fresh() == "fresh"
        after = maps.counters()
    for reason in (Reason.CONNECT_NO_LISTENER, Reason.CONNECT_HEARTBEAT_STALE):
        assert after[reason] == before[reason]
    assert Path(half.old.entrance).exists()
    assert KernelNode(half.a.root).tree.agent.is_dir()
    half.upgrades.upgrade()
