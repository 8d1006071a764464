"""Connections that are no MOA change hands with every byte, in order, also when nobody reads."""

from __future__ import annotations

import hashlib
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.e2e.clients.raw_server import BANNER, BLAST, BLASTS
from tests.support import crowds
from tests.support.far_sockets import dial
from tests.support.lab import Lab, LabNode, Running, wait_until
from tests.support.upgrades import Upgrades

pytestmark = pytest.mark.e2e

MODES = {"echo": 7100, "digest": 7101, "banner": 7102, "blast": 7103, "stall": 7104, "silent": 7105}
NO_MOA = b"\xfe no MOA at all "
"""What begins so is joined with the dialled address at once."""


@dataclass(slots=True)
class Node:
    a: LabNode
    b: LabNode
    upgrades: Upgrades
    server: Running

    def dial(self, mode: str) -> socket.socket:
        return dial(self.a, self.b.ip4, MODES[mode])[0]

    def raw_connections(self) -> int:
        return int(self.upgrades.agent.status()["connections"]["raw"])

    def upgrade(self) -> None:
        retired = self.upgrades.upgrade()
        assert retired.conns() == []
        retired.retire()


@pytest.fixture(scope="module")
def module_node(lab: Lab) -> Node:
    upgrades = crowds.begin(lab)
    b = lab.nodes["b"]
    modes = [f"{mode}={port}" for mode, port in MODES.items()]
    server = b.python("raw", "-m", "tests.e2e.clients.raw_server", b.ip4, *modes)
    for mode in MODES:
        server.wait_line(f"ready {mode}")
    return Node(upgrades.node, b, upgrades, server)


@pytest.fixture
def node(module_node: Node) -> Iterator[Node]:
    yield module_node
    wait_until(lambda: not module_node.upgrades.serving.conns(), 10, "all clients have left")


def test_both_sides_idle_and_the_server_first(node: Node) -> None:
    with ExitStack() as stack:
        echo, banner = (stack.enter_context(node.dial(mode)) for mode in ("echo", "banner"))
        echo.sendall(NO_MOA)
        assert echo.recv(100) == NO_MOA
        assert banner.recv(100) == BANNER
        wait_until(lambda: node.raw_connections() == 2, 10, "both are joined")
        node.upgrade()
        for sock in (echo, banner):
            sock.sendall(b"more")
            assert sock.recv(100) == b"more"
        node.upgrade()
        for sock in (echo, banner):
            sock.sendall(b"and more")
            assert sock.recv(100) == b"and more"
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100) == b""


def test_a_server_that_does_not_read(node: Node) -> None:
    """The client has sent all that everybody's buffers take; not a byte is lost or twice there."""
    with node.dial("stall") as sock:
        digest, count = hashlib.sha256(), 0
        sock.setblocking(False)
        blocks = iter(range(1 << 30))

        def send_until_stuck() -> None:
            nonlocal count
            block = NO_MOA
            while True:
                while block:
                    if not select.select([], [sock], [], 0.3)[1]:
                        rest.append(block)
                        return
                    sent = sock.send(block)
                    digest.update(block[:sent])
                    count += sent
                    block = block[sent:]
                block = b"%08d" % next(blocks) * 4096

        rest: list[bytes] = []
        send_until_stuck()
        node.upgrade()
        sock.setblocking(True)
        sock.settimeout(20)
        node.server.signal(signal.SIGUSR1)
        for block in (*rest, b"the end"):
            sock.sendall(block)
            digest.update(block)
            count += len(block)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(200).decode().split() == [digest.hexdigest(), str(count)]
    assert count > 1 << 20


def test_a_client_that_does_not_read(node: Node) -> None:
    """64 MiB are on their way to it; it begins to read when the successor serves."""
    with node.dial("blast") as sock:
        sock.sendall(NO_MOA)

        def is_stuck() -> bool:
            """As much as everybody's buffers take."""
            before = node.upgrades.serving.conns()[0]["bytes_out"]
            select.select([], [], [], 0.3)
            return bool(before == node.upgrades.serving.conns()[0]["bytes_out"] > 0)

        wait_until(is_stuck, 20, "nothing moves any more")
        node.upgrade()
        digest, count = hashlib.sha256(), 0
        while chunk := sock.recv(1 << 20):
            digest.update(chunk)
            count += len(chunk)
    assert count == len(BLAST) * BLASTS
    assert digest.hexdigest() == hashlib.sha256(BLAST * BLASTS).hexdigest()


def test_a_client_that_has_half_closed(node: Node) -> None:
    """Its FIN has gone to the server, which answers later."""
    with node.dial("silent") as sock:
        sock.sendall(NO_MOA)
        sock.shutdown(socket.SHUT_WR)
        node.server.wait_line("silent: fin after")
    with node.dial("digest") as sock, node.dial("blast") as blast:
        sock.sendall(NO_MOA)
        blast.sendall(NO_MOA)
        blast.shutdown(socket.SHUT_WR)
        wait_until(lambda: node.raw_connections() == 2, 10, "both are joined")
        node.upgrade()
        count = 0
        while chunk := blast.recv(1 << 20):
            count += len(chunk)
        assert count == len(BLAST) * BLASTS
        sock.shutdown(socket.SHUT_WR)
        wanted = f"{hashlib.sha256(NO_MOA).hexdigest()} {len(NO_MOA)}\n"
        assert sock.recv(200).decode() == wanted
