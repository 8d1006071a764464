"""2000 connections that say nothing: each is still there afterwards, and knows who it is."""

from __future__ import annotations

import time

import pytest

from tests.e2e.clients.raw import request
from tests.e2e.conftest import Measured
from tests.support import crowds
from tests.support.crowds import PORT, Crowd
from tests.support.far_sockets import FarResp, FarTurbo, dial
from tests.support.lab import Lab, wait_until
from tests.support.upgrades import wait_no_leak

pytestmark = pytest.mark.e2e

IDLE = 2000
CROWD = ("resp=8@80", "turbo=2@40")


def test_two_thousand_idle_connections(lab: Lab, measured: Measured) -> None:
    upgrades = crowds.begin(lab)
    first = upgrades.serving
    socks = dial(upgrades.node, lab.nodes["b"].ip4, PORT, IDLE)
    silent, turbo = [FarResp(s) for s in socks[:1500]], [FarTurbo(s) for s in socks[1500:1600]]
    known = [FarResp(s) for s in socks[1600:]]
    for number, packets in enumerate(turbo):
        assert packets.call("/service/demo", "echo", number)["result"] == number
    ids = []
    for number, client in enumerate(known):
        if number % 2:
            client.sock.sendall(b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n")
            assert client.read().startswith(b"%")
            while client.read() != b"*0\r\n":
                continue
        assert client.command(b"CLIENT SETNAME client-%d" % number) == b"+OK\r\n"
        ids.append(client.command(b"CLIENT ID"))
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
    for number, client in enumerate(known):
        assert client.command(b"CLIENT ID") == ids[number]
        name = client.command(b"CLIENT GETNAME")
        assert name.split(b"\r\n")[1] == b"client-%d" % number
        # In the version that it has chosen.
        assert client.command(b"HELLO").startswith(b"%" if number % 2 else b"*")
        while client.read() != b"*0\r\n":
            continue
    for number, packets in enumerate(turbo):
        assert packets.call("/service/demo", "echo", number)["result"] == number
    for number, client in enumerate(silent):
        if number % 10 == 0:
            assert client.call(request("echo", number))["result"] == number
    wait_no_leak(retired, upgrades.own_sockets + 1)
    retired.retire()
    for client in (*silent, *turbo, *known):
        client.close()
    wait_until(lambda: not successor.conns(), 20, "all clients have left")
    wait_no_leak(successor, upgrades.own_sockets)
    measured(
        "an upgrade with 2000 idle connections",
        took_s=took_s, moved=IDLE + 10, pss_old_mib=pss[0] / 1024, pss_new_mib=pss[1] / 1024,
    )  # fmt: skip
