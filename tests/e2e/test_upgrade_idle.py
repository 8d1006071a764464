"""2000 connections that say nothing: each is still there afterwards, and knows who it is."""

from __future__ import annotations

import socket
import time

import pytest

from tests.e2e.clients.raw import DEMO, request
from tests.e2e.conftest import Measured
from tests.support import crowds
from tests.support.crowds import PORT, Crowd
from tests.support.far_sockets import FarResp, FarTurbo, dial
from tests.support.lab import Lab, wait_until
from tests.support.upgrades import wait_no_leak

pytestmark = pytest.mark.e2e

IDLE = 2000
CROWD = ("resp=8@80", "turbo=2@40")


class Idlers:
    """Clients of each kind: most have never said anything, some have said who they are."""

    def __init__(self, socks: list[socket.socket]) -> None:
        self.silent = [FarResp(sock) for sock in socks[:1500]]
        self.turbo = [FarTurbo(sock) for sock in socks[1500:1600]]
        self.known = [FarResp(sock) for sock in socks[1600:]]
        self.ids: list[bytes] = []
        self.use_turbo()
        for number, client in enumerate(self.known):
            if number % 2:
                assert hello(client, b" 3").startswith(b"%")
            assert client.command(b"CLIENT SETNAME client-%d" % number) == b"+OK\r\n"
            self.ids.append(client.command(b"CLIENT ID"))

    def use_turbo(self) -> None:
        for number, packets in enumerate(self.turbo):
            assert packets.call(DEMO, "echo", number)["result"] == number

    def check(self) -> None:
        """All are there, and are known as before."""
        self.use_turbo()
        for number, client in enumerate(self.known):
            assert client.command(b"CLIENT ID") == self.ids[number]
            name = client.command(b"CLIENT GETNAME")
            assert name.split(b"\r\n")[1] == b"client-%d" % number
            assert hello(client).startswith(b"%" if number % 2 else b"*")
        for number, client in enumerate(self.silent):
            if number % 10 == 0:
                assert client.call(request("echo", number))["result"] == number

    def close(self) -> None:
        for client in (*self.silent, *self.known):
            client.close()
        for packets in self.turbo:
            packets.close()


def hello(client: FarResp, version: bytes = b"") -> bytes:
    """The first line of the answer: its form tells the version that is spoken."""
    first = client.command(b"HELLO" + version)
    while client.read() != b"*0\r\n":
        continue
    return first


def test_two_thousand_idle_connections(lab: Lab, measured: Measured) -> None:
    upgrades = crowds.begin(lab)
    first = upgrades.serving
    idlers = Idlers(dial(upgrades.node, lab.nodes["b"].ip4, PORT, IDLE))
    wait_until(lambda: len(first.conns()) == IDLE, 20, "all are accepted")
    crowd = Crowd.begin(upgrades, *CROWD)
    successor = upgrades.prepare()
    start_s = time.monotonic()
    retired = upgrades.give(successor)
    took_s = time.monotonic() - start_s
    pss = retired.pss_kib(), successor.pss_kib()
    assert retired.conns() == []
    assert retired.link.said[-1] == {"say": "given", "moved": IDLE + 10, "left": 0}
    upgrades.wait_requests(100)
    crowd.end()
    assert len(successor.conns()) == IDLE
    idlers.check()
    wait_no_leak(retired, upgrades.own_sockets + 1)
    retired.retire()
    idlers.close()
    wait_until(lambda: not successor.conns(), 20, "all clients have left")
    wait_no_leak(successor, upgrades.own_sockets)
    measured(
        "an upgrade with 2000 idle connections",
        took_s=took_s, moved=IDLE + 10, pss_old_mib=pss[0] / 1024, pss_new_mib=pss[1] / 1024,
    )  # fmt: skip
