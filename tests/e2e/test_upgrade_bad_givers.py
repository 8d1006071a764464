"""An agent that gives, and stops, lies or dies at each step, before a real successor.

The test is the agent that gives: it has real listeners, and the locks of the node.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from interceptor.node import Node as KernelNode
from proxy.wire.handover import FrameType
from proxy.wire.handover import handover_pb2 as pb
from tests.e2e.clients.raw import DEMO, frame, request
from tests.support.agents import start_agent, start_service, static_registry
from tests.support.far_sockets import FarResp, dial
from tests.support.handover_peer import FakeGiver, HandoverPeer
from tests.support.lab import Lab, LabNode, wait_until
from tests.support.upgrades import Generation, start_generation

pytestmark = pytest.mark.e2e

PORT = 5000


@dataclass(slots=True)
class Node:
    """`a` is installed and no agent of it runs; the test listens in its place."""

    a: LabNode
    b: LabNode
    config: Path
    giver: FakeGiver
    listeners: dict[str, socket.socket]
    locks: dict[str, int]
    generations: list[Generation] = field(default_factory=list)

    def start(self) -> tuple[Generation, HandoverPeer]:
        """A successor that has connected; nothing was said yet."""
        argv = ("--take-over", str(self.giver.path))
        taker = start_generation(self.a, self.config, argv)
        self.generations.append(taker)
        return taker, self.giver.accept()

    def ready(self) -> tuple[Generation, HandoverPeer]:
        taker, peer = self.start()
        peer.hello()
        peer.wait(FrameType.READY)
        return taker, peer

    def share(self, peer: HandoverPeer) -> None:
        names = {name: sock.fileno() for name, sock in self.listeners.items()} | self.locks
        shared = pb.Shared(names=list(names), next_number=100)
        peer.send(shared, list(names.values()))
        assert not peer.wait(FrameType.ACCEPTED).why

    def serving(self) -> tuple[Generation, HandoverPeer]:
        """A successor that has everything of the whole agent."""
        taker, peer = self.ready()
        self.share(peer)
        peer.send(pb.Commit(batch=0))
        taker.link.wait("serving")
        return taker, peer

    def connection(self, number: int, sock: socket.socket, unread: bytes = b"") -> pb.Connection:
        return pb.Connection(
            number=number, kind="resp", direction="outbound", original_host=self.b.ip4,
            original_port=PORT, unread=unread, spoke_moa=True, started_s=1.0, resp=2,
        )  # fmt: skip

    def accepted(self) -> tuple[socket.socket, socket.socket]:
        """A client of the node, and what the test has accepted of it."""
        port = self.listeners["outbound4"].getsockname()[1]
        client = dial(self.a, "127.0.0.1", port)[0]
        sock, _ = self.listeners["outbound4"].accept()
        return client, sock


def _listeners(a: LabNode, ports: Sequence[int]) -> dict[str, socket.socket]:
    """In the namespace of the node: the listening sockets that the agent had."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def listen() -> None:
            socks = [socket.create_server(("127.0.0.1", port), backlog=64) for port in ports]
            socket.send_fds(theirs, [b"."], [sock.fileno() for sock in socks])

        a.do(listen)
        _, fds, _, _ = socket.recv_fds(ours, 1, 4, socket.MSG_CMSG_CLOEXEC)
    names = ("outbound4", "inbound4")
    return dict(zip(names, [socket.socket(fileno=fd) for fd in fds], strict=True))


@pytest.fixture(scope="module")
def module_node(lab: Lab) -> Iterator[Node]:
    a, b = lab.add_node("a"), lab.add_node("b")
    start_service(b, PORT)
    registry = static_registry(a.directory / "services.toml", {DEMO: [f"{b.ip4}:{PORT}"]})
    agent = start_agent(a, registry)
    agent.mesh_on()
    ports = agent.status()["listeners"]
    assert agent.process.stop() == 0
    numbers = [int(ports[side][0].rpartition(":")[2]) for side in ("outbound", "inbound")]
    lock = os.open(a.directory / "run/agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    locks = {"agent.lock": lock, "pins": KernelNode(a.root).lock_agent()}
    giver = FakeGiver(a.directory / "run/handover-1.sock")
    yield Node(a, b, agent.config, giver, _listeners(a, numbers), locks)
    giver.close()


@pytest.fixture
def node(module_node: Node) -> Iterator[Node]:
    """Afterwards no agent is left, and the test holds the locks as before."""
    yield module_node
    for generation in module_node.generations:
        generation.link.close()
        if generation.is_alive:
            generation.process.stop()
    module_node.generations.clear()
    pins = KernelNode(module_node.a.root)
    if not pins.tree.agent.is_dir():
        # One that had served has taken the lock with it.
        os.close(module_node.locks["pins"])
        module_node.locks["pins"] = pins.lock_agent()


def _hangs_up_at_once(node: Node) -> tuple[Generation, str]:
    taker, peer = node.start()
    peer.wait(FrameType.HELLO)
    peer.close()
    return taker, "closed the connection"


def _refuses(node: Node) -> tuple[Generation, str]:
    taker, peer = node.start()
    peer.send(pb.Refuse(why="not today"))
    peer.close()
    return taker, "refuses: not today"


def _other_magic(node: Node) -> tuple[Generation, str]:
    taker, peer = node.start()
    peer.sock.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
    return taker, "broke the protocol: magic"


def _newer_only(node: Node) -> tuple[Generation, str]:
    taker, peer = node.start()
    peer.hello(min_version=2, max_version=3, agent_version="9.9")
    return taker, "agent 9.9 speaks hand-over versions 2 to 3, and this one 1 to 1"


def _other_abi(node: Node) -> tuple[Generation, str]:
    taker, peer = node.start()
    peer.hello(abi=77)
    return taker, "has pins of layout 77"


def _says_nothing(node: Node) -> tuple[Generation, str]:
    taker, peer = node.start()
    peer.wait_gone()
    return taker, "no HELLO within 5 s"


def _dies_after_ready(node: Node) -> tuple[Generation, str]:
    taker, peer = node.ready()
    peer.close()
    return taker, "closed the connection"


def _refuses_after_ready(node: Node) -> tuple[Generation, str]:
    taker, peer = node.ready()
    peer.send(pb.Refuse(why="you may open too few"))
    return taker, "you may open too few"


def _dies_after_shared(node: Node) -> tuple[Generation, str]:
    taker, peer = node.ready()
    node.share(peer)
    peer.close()
    return taker, "closed the connection"


def _shares_too_little(node: Node) -> tuple[Generation, str]:
    taker, peer = node.ready()
    sock = node.listeners["outbound4"]
    peer.send(pb.Shared(names=["outbound4"], next_number=1), [sock.fileno()])
    why = peer.wait(FrameType.ACCEPTED).why
    assert "no listener inbound4" in why
    peer.send(pb.Refuse(why=why))
    return taker, why


def _shares_other_than_it_says(node: Node) -> tuple[Generation, str]:
    taker, peer = node.ready()
    sock = node.listeners["outbound4"]
    peer.send(pb.Shared(names=["outbound4", "inbound4"], next_number=1), [sock.fileno()])
    assert peer.wait(FrameType.ACCEPTED).why
    peer.close()
    return taker, "closed the connection"


def _huge_frame(node: Node) -> tuple[Generation, str]:
    taker, peer = node.ready()
    peer.sock.sendall(b"MOAH\0\1\0\4\0\0\0\0\xff\xff\xff\xff")
    return taker, "broke the protocol: a frame of 4294967295 bytes"


@pytest.mark.parametrize(
    "behave",
    [
        _hangs_up_at_once, _refuses, _other_magic, _newer_only, _other_abi, _says_nothing,
        _dies_after_ready, _refuses_after_ready, _dies_after_shared, _shares_too_little,
        _shares_other_than_it_says, _huge_frame,
    ],
)  # fmt: skip
def test_a_bad_giver(node: Node, behave: Callable[[Node], tuple[Generation, str]]) -> None:
    """The successor ends, and its last line says why; it never beat, nor let the lock go."""
    taker, why = behave(node)
    assert taker.process.popen.wait(20) == 1
    last = taker.process.output.splitlines()[-1]
    assert last.startswith(f"moa-agent: take over from {node.giver.path}: ")
    assert why in last
    with pytest.raises(BlockingIOError):
        _lock_again(node)
    assert KernelNode(node.a.root).tree.agent.is_dir()


def _lock_again(node: Node) -> None:
    other = os.open(node.a.directory / "run/agent.lock", os.O_RDWR)
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(other)


def test_it_dies_when_all_but_connections_is_given(node: Node) -> None:
    """The successor serves: who connects is served, and what is there is in its hands."""
    taker, peer = node.serving()
    peer.close()
    with FarResp.on(node.a, node.b.ip4, PORT) as client:
        assert client.call(request("echo", 1))["result"] == 1
    assert taker.is_alive
    assert taker.client.status()["connections"]["outbound"] == 0


def test_what_was_prepared_and_not_committed_stays_the_givers(node: Node) -> None:
    taker, peer = node.serving()
    with ExitStack() as stack:
        client, sock = node.accepted()
        stack.callback(client.close)
        peer.send(pb.Prepare(batch=1, connections=[node.connection(7, sock)]), [sock.fileno()])
        assert list(peer.wait(FrameType.ACCEPTED).taken) == [7]
        client.sendall(frame(request("echo", 1)))
        peer.close()
        wait_until(lambda: not taker.conns(), 10, "the successor has forgotten it")
        # Not a byte was read, and nobody was hung up on.
        assert sock.recv(4096) == frame(request("echo", 1))
        sock.sendall(b"+mine\r\n")
        assert client.recv(100) == b"+mine\r\n"
        sock.close()


def test_what_was_committed_goes_on_when_the_giver_dies(node: Node) -> None:
    taker, peer = node.serving()
    client, sock = node.accepted()
    data = frame(request("echo", "first")) + frame(request("echo", "second"))
    cut = 50
    client.sendall(data[:cut])
    moved = node.connection(7, sock, unread=sock.recv(cut, socket.MSG_WAITALL))
    peer.send(pb.Prepare(batch=1, connections=[moved]), [sock.fileno()])
    assert list(peer.wait(FrameType.ACCEPTED).taken) == [7]
    peer.send(pb.Commit(batch=1))
    sock.close()
    peer.close()
    client.sendall(data[cut:])
    with FarResp(client) as far:
        assert [far.reply()["result"] for _ in range(2)] == ["first", "second"]
        assert far.command(b"CLIENT ID") == b":7\r\n"
    assert taker.is_alive


def test_connections_that_are_none(node: Node) -> None:
    """Each is refused by itself, with its reason; the others are taken."""
    taker, peer = node.serving()
    client, sock = node.accepted()
    good, dead = node.connection(7, sock), node.connection(8, sock)
    strange = node.connection(9, sock)
    strange.kind = "carrier pigeon"
    mesh = node.connection(10, sock)
    mesh.kind, mesh.mesh = "mesh", b"no state"
    pair = socket.socketpair()
    pair[1].close()
    fds = [sock.fileno(), pair[0].fileno(), sock.fileno(), sock.fileno()]
    peer.send(pb.Prepare(batch=1, connections=[good, dead, strange, mesh]), fds)
    accepted = peer.wait(FrameType.ACCEPTED)
    assert list(accepted.taken) == [7]
    assert accepted.why
    peer.send(pb.Commit(batch=1))
    peer.send(pb.Done(moved=1, left=3))
    taker.link.wait("taken")
    sock.close()
    with FarResp(client) as far:
        assert far.call(request("echo", 4))["result"] == 4
    assert taker.is_alive


def test_stopped_before_it_was_given_anything(node: Node) -> None:
    taker, peer = node.ready()
    taker.process.signal(signal.SIGTERM)
    assert taker.process.popen.wait(10) == 0
    assert peer.wait_gone() == []
