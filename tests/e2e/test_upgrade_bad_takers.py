"""Successors that stop, lie or die at each step: the agent that serves goes on serving."""

from __future__ import annotations

import ctypes
import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy.wire.handover import FrameType, encode
from proxy.wire.handover import handover_pb2 as pb
from tests.e2e.clients.raw import DEMO, request
from tests.support.agents import start_service, static_registry
from tests.support.far_sockets import FarResp, dial
from tests.support.handover_peer import HandoverPeer
from tests.support.lab import Lab, LabNode, Running, wait_until
from tests.support.upgrades import Upgrades, wait_no_leak

pytestmark = pytest.mark.e2e

PORT, ECHO = 5000, 7000
CROWD = ("resp=8@100", "pipelined=2@60", "turbo=2@60", "raw=2@60")
IDLE = 10
CLIENTS = IDLE + 14
NOBODY = 65534


@dataclass(slots=True)
class Node:
    """Clients and one agent on `a`, which serves all along; a crowd calls all along."""

    a: LabNode
    b: LabNode
    upgrades: Upgrades
    idle: list[FarResp]
    crowd: Running

    def dial(self) -> HandoverPeer:
        return HandoverPeer.dial_when_free(self.upgrades.serving.entrance)

    def greet(self, **changed: Any) -> HandoverPeer:
        """A taker whose HELLO is taken."""
        peer = self.dial()
        peer.hello(**changed)
        peer.wait(FrameType.HELLO)
        return peer

    def offer(self, descriptors: int = 100_000) -> HandoverPeer:
        """A taker that is ready, and told to take."""
        peer = self.greet()
        peer.send(pb.Ready(descriptors=descriptors))
        self.upgrades.serving.link.do("give")
        return peer

    def accept_shared(self) -> HandoverPeer:
        """A taker that has everything of the whole agent, and has been given the gate."""
        peer = self.offer()
        peer.wait(FrameType.SHARED)
        peer.send(pb.Accepted(batch=0))
        assert peer.wait(FrameType.COMMIT).batch == 0
        return peer


@pytest.fixture(scope="module")
def module_node(lab: Lab) -> Node:
    a, b = lab.add_node("a"), lab.add_node("b")
    start_service(b, PORT)
    echo = b.python("echo", "-m", "tests.e2e.clients.raw_server", b.ip4, f"echo={ECHO}")
    echo.wait_line("ready echo")
    registry = static_registry(a.directory / "services.toml", {DEMO: [f"{b.ip4}:{PORT}"]})
    upgrades = Upgrades.begin(a, registry, timeout_s=6)
    upgrades.agent.mesh_on()
    idle = [FarResp(sock) for sock in dial(a, b.ip4, PORT, IDLE)]
    crowd = a.python("crowd", "-m", "tests.e2e.clients.crowd", b.ip4, str(PORT), str(ECHO), *CROWD)
    crowd.wait_line("started")
    return Node(a, b, upgrades, idle, crowd)


@pytest.fixture
def node(module_node: Node) -> Iterator[Node]:
    """Afterwards the agent serves as before: everybody, with all that it had."""
    serving = module_node.upgrades.serving
    yield module_node
    serving.link.drain()
    wait_until(
        lambda: serving.client.status()["connections"]["outbound"] == CLIENTS, 20, "all are back"
    )
    assert module_node.upgrades.agent.status()["pid"] == serving.pid
    before = serving.client.status()["requests"]["total"]
    for number, client in enumerate(module_node.idle):
        assert client.call(request("echo", number))["result"] == number
    wait_until(
        lambda: serving.client.status()["requests"]["total"] > before + IDLE + 50, 20, "a load"
    )
    with FarResp.on(module_node.a, module_node.b.ip4, PORT) as fresh:
        assert fresh.call(request("echo", 1))["result"] == 1


def _silent(node: Node) -> None:
    """Says nothing at all, and leaves."""
    node.dial().close()


def _other_magic(node: Node) -> None:
    peer = node.dial()
    peer.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    peer.wait_gone()


def _newer_only(node: Node) -> None:
    peer = node.dial()
    peer.hello(min_version=2, max_version=9)
    assert "versions 2 to 9" in peer.wait(FrameType.REFUSE).why
    peer.wait_gone()


def _older_only(node: Node) -> None:
    peer = node.dial()
    peer.hello(min_version=0, max_version=0)
    assert "versions 0 to 0" in peer.wait(FrameType.REFUSE).why


def _other_abi(node: Node) -> None:
    peer = node.dial()
    peer.hello(abi=999)
    assert "layout 999" in peer.wait(FrameType.REFUSE).why


def _refuses(node: Node) -> None:
    peer = node.greet()
    peer.send(pb.Refuse(why="no wish to"))
    peer.wait_gone()


def _dies_after_hello(node: Node) -> None:
    node.greet().close()


def _dies_after_ready(node: Node) -> None:
    peer = node.greet()
    peer.send(pb.Ready(descriptors=100_000))
    peer.close()


def _dies_after_shared(node: Node) -> None:
    peer = node.offer()
    peer.wait(FrameType.SHARED)
    peer.close()


def _cannot_take_listeners(node: Node) -> None:
    peer = node.offer()
    peer.wait(FrameType.SHARED)
    peer.send(pb.Accepted(batch=0, why="no room"))
    assert "no room" in peer.wait(FrameType.REFUSE).why
    peer.close()


def _few_descriptors(node: Node) -> None:
    peer = node.offer(descriptors=10)
    assert "raise its limit" in peer.wait(FrameType.REFUSE).why
    peer.close()


def _dies_after_commit(node: Node) -> None:
    """It has the gate, and no connection yet."""
    node.accept_shared().close()


def _dies_with_a_batch(node: Node) -> None:
    peer = node.accept_shared()
    peer.wait(FrameType.PREPARE)
    peer.close()


def _takes_nothing(node: Node) -> None:
    """Each connection is refused by itself: all of them stay."""
    peer = node.accept_shared()
    while not isinstance(message := peer.next().message, pb.Done):
        if isinstance(message, pb.Prepare):
            peer.send(pb.Accepted(batch=message.batch, why="no wish to"))
    assert message.moved == 0
    assert message.left >= IDLE
    peer.close()


def _closes_within_a_frame(node: Node) -> None:
    peer = node.offer()
    peer.wait(FrameType.SHARED)
    peer.sock.sendall(encode(pb.Accepted(batch=0, why="x" * 50))[:30])
    peer.close()


def _unknown_frame(node: Node) -> None:
    peer = node.greet()
    peer.sock.sendall(struct.pack(">4sHHII", b"MOAH", 1, 99, 0, 0))
    peer.wait_gone()


def _huge_length(node: Node) -> None:
    peer = node.greet()
    peer.sock.sendall(struct.pack(">4sHHII", b"MOAH", 1, 3, 0, 0xFFFFFFFF))
    peer.wait_gone()


def _no_protobuf(node: Node) -> None:
    peer = node.greet()
    peer.sock.sendall(struct.pack(">4sHHII", b"MOAH", 1, 3, 0, 4) + b"\xff\xff\xff\xff")
    peer.wait_gone()


def _accepts_what_was_not_asked(node: Node) -> None:
    peer = node.accept_shared()
    peer.send(pb.Accepted(batch=0))
    peer.send(pb.Accepted(batch=4711, taken=[1, 2, 3]))
    peer.send(pb.Acknowledge(sequence=99))
    peer.send(pb.Cancel(connection=1, request=7))
    peer.wait(FrameType.PREPARE)
    peer.close()


def _says_nothing(node: Node) -> None:
    """Hung up on after the time for a HELLO."""
    assert len(node.dial().wait_gone()) == 1


def _is_never_ready(node: Node) -> None:
    node.greet().wait_gone()


def _keeps_the_listeners(node: Node) -> None:
    """It never says whether it could take them."""
    peer = node.offer()
    peer.wait(FrameType.SHARED)
    peer.wait_gone()


def _keeps_a_batch(node: Node) -> None:
    """It is alive and does not answer: who waits for it goes on after a short time."""
    peer = node.accept_shared()
    assert peer.wait(FrameType.PREPARE)
    peer.wait_gone()


def _takes_some(node: Node) -> None:
    """What is taken and not committed comes back; nothing was read of it."""
    peer = node.accept_shared()
    prepare = peer.wait(FrameType.PREPARE)
    while not prepare.connections:
        peer.send(pb.Accepted(batch=prepare.batch))
        prepare = peer.wait(FrameType.PREPARE)
    peer.send(pb.Accepted(batch=prepare.batch, taken=[], why="not these"))
    assert peer.wait(FrameType.COMMIT)
    peer.close()


def _is_another_user(node: Node) -> None:
    """As root would be let in by the mode of the socket, but is not who it says."""
    path = str(node.upgrades.serving.entrance)

    def ask() -> str:
        os.seteuid(NOBODY)
        ctypes.CDLL(None).setfsuid(0)
        peer = HandoverPeer.dial(Path(path))
        return str(peer.wait(FrameType.REFUSE).why)

    assert f"user {NOBODY} is neither root nor ours" in node.a.do(ask)


@pytest.mark.parametrize(
    "behave",
    [
        _silent, _other_magic, _newer_only, _older_only, _other_abi, _refuses, _dies_after_hello,
        _dies_after_ready, _dies_after_shared, _cannot_take_listeners, _few_descriptors,
        _dies_after_commit, _dies_with_a_batch, _takes_nothing, _closes_within_a_frame,
        _unknown_frame, _huge_length, _no_protobuf, _accepts_what_was_not_asked,
        _says_nothing, _is_never_ready, _keeps_the_listeners, _keeps_a_batch, _takes_some,
        _is_another_user,
    ],
)  # fmt: skip
def test_a_bad_successor(node: Node, behave: Callable[[Node], None]) -> None:
    behave(node)


def test_nobody_noticed_any_of_it(module_node: Node) -> None:
    """The last test of the module: what the crowd has seen of all those before it."""
    serving, crowd = module_node.upgrades.serving, module_node.crowd
    crowd.popen.terminate()
    crowd.popen.wait(30)
    seen = json.loads(crowd.output.splitlines()[-1])
    for name, what in seen.items():
        assert what["failed"] == 0, f"{name}: {what['failures']}"
        assert what["ok"] == what["sent"] > 0
    for client in module_node.idle:
        client.close()
    wait_until(lambda: not serving.conns(), 10, "all clients have left")
    # What the takers were given and never took is not open here either.
    wait_no_leak(serving, module_node.upgrades.own_sockets)
