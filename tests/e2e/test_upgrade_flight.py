"""What is half sent, half closed, or under way for longer than the whole upgrade."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from proxy.wire.mesh import RequestHeader, joined
from tests.e2e.clients.raw import DEMO, frame, request
from tests.e2e.conftest import Measured
from tests.support.agents import start_service, static_registry
from tests.support.far_sockets import FarResp, FarTurbo, dial
from tests.support.lab import Lab, LabNode, wait_until
from tests.support.mesh_peer import MeshPeer
from tests.support.upgrades import Generation, Upgrades

pytestmark = pytest.mark.e2e

PORT = 5000
SLOW_MS = 3000


@dataclass(slots=True)
class Node:
    """Clients and agents on `a`, an instance on `b`."""

    a: LabNode
    b: LabNode
    upgrades: Upgrades

    def dial(self) -> socket.socket:
        return dial(self.a, self.b.ip4, PORT)[0]

    @property
    def serving(self) -> Generation:
        return self.upgrades.serving

    def wait_bytes(self, sock: socket.socket, count: int) -> None:
        """Until the agent has read so many bytes of a client."""
        name = "{}:{}".format(*sock.getsockname())

        def has_read() -> bool:
            return any(c["client"] == name and c["bytes_in"] == count for c in self.serving.conns())

        wait_until(has_read, 10, f"{count} bytes of {name}")

    def wait_in_flight(self, count: int) -> None:
        def is_there() -> bool:
            return bool(self.serving.client.status()["requests"]["in_flight"] == count)

        wait_until(is_there, 10, f"{count} requests under way")


@pytest.fixture(scope="module")
def module_node(lab: Lab) -> Node:
    a, b = lab.add_node("a"), lab.add_node("b")
    start_service(b, PORT)
    registry = static_registry(a.directory / "services.toml", {DEMO: [f"{b.ip4}:{PORT}"]})
    upgrades = Upgrades.begin(a, registry)
    upgrades.agent.mesh_on()
    return Node(a, b, upgrades)


@pytest.fixture
def node(module_node: Node) -> Iterator[Node]:
    """Before each test nobody is connected, afterwards only one agent is left."""
    yield module_node
    for generation in module_node.upgrades.generations:
        if generation is not module_node.serving and generation.is_alive:
            generation.retire()
    wait_until(lambda: not module_node.serving.conns(), 10, "all clients have left")


def header(method: str) -> RequestHeader:
    return RequestHeader(DEMO, method=method)


def test_half_a_request_of_each_protocol(node: Node) -> None:
    """Wherever it is cut; the rest comes when the successor serves."""
    first, second = frame(request("echo", 1)), frame(request("echo", 2))
    halves: list[tuple[FarResp | FarTurbo | MeshPeer, bytes, list[Any]]] = []
    for cut in (1, 9, len(first) - 1, len(first) + 5):
        resp = FarResp(node.dial())
        resp.sock.sendall((first + second)[:cut])
        replies = [resp.reply()["result"]] if cut > len(first) else []
        node.wait_bytes(resp.sock, cut)
        halves.append((resp, (first + second)[cut:], replies))
    for form, cut in (("19", 3), ("19", 12), ("19", 40), ("9", 3), ("9", 8), ("9", 40)):
        turbo = FarTurbo(node.dial(), form)
        packet = turbo.packet(1, 77, request("echo", "é" * 9).encode())
        turbo.sock.sendall(packet[:cut])
        node.wait_bytes(turbo.sock, cut)
        halves.append((turbo, packet[cut:], []))
    for cut in (1, 30, 2500):
        mesh, data = _half_of_mesh(node)
        read = _bytes_read(node, mesh.sock)
        mesh.sock.sendall(data[:cut])
        node.wait_bytes(mesh.sock, read + cut)
        halves.append((mesh, data[cut:], []))
    retired = node.upgrades.upgrade()
    assert retired.conns() == []
    assert len(node.serving.conns()) == len(halves)
    for client, rest, replies in halves:
        client.sock.sendall(rest)
        if isinstance(client, FarResp):
            while len(replies) < 2:
                replies.append(client.reply()["result"])
            assert replies == [1, 2]
        elif isinstance(client, FarTurbo):
            number, body = client.reply()
            assert (number, client.decode(body)["result"]) == (77, "é" * 9)
        else:
            assert _result(client.response().body) == "x" * 3000
    for client, _, _ in halves:
        client.sock.close() if isinstance(client, MeshPeer) else client.close()


def _half_of_mesh(node: Node) -> tuple[MeshPeer, bytes]:
    """A connection that is well known, and the frames of a request that is not yet sent."""
    mesh = MeshPeer(node.dial())
    mesh.ask(header("echo"), request("echo", "before").encode())
    assert _result(mesh.response().body) == "before"
    mesh.connection.send_request(header("echo"), request("echo", "x" * 3000).encode())
    return mesh, b"".join(mesh.connection.data_to_send())


def _bytes_read(node: Node, sock: socket.socket) -> int:
    name = "{}:{}".format(*sock.getsockname())
    return int(next(c["bytes_in"] for c in node.serving.conns() if c["client"] == name))


def test_the_client_has_half_closed(node: Node) -> None:
    """What it asked is answered by the successor, and then the connection ends."""
    with FarResp(node.dial()) as client:
        client.send(request("sleep", 1500), request("echo", "last"))
        client.sock.shutdown(socket.SHUT_WR)
        node.wait_in_flight(1)
        retired = node.upgrades.upgrade()
        assert client.reply()["result"] == 1500
        assert client.reply()["result"] == "last"
        assert client.sock.recv(1) == b""
        retired.retire()


def test_requests_that_take_longer_than_the_upgrade(node: Node, measured: Measured) -> None:
    """Their clients wait for them, on the same connection, and nobody else waits for them."""
    successor = node.upgrades.prepare()
    resp, turbo, mesh = FarResp(node.dial()), FarTurbo(node.dial()), MeshPeer(node.dial())
    idle = [FarResp(sock) for sock in dial(node.a, node.b.ip4, PORT, 20)]
    crowd = node.a.python(
        "crowd", "-m", "tests.e2e.clients.crowd", node.b.ip4, str(PORT), "0", "resp=8@100"
    )
    crowd.wait_line("started")
    try:
        body = request("sleep", SLOW_MS)
        started_s = time.monotonic()
        resp.send(body, request("echo", "behind"))
        packet = turbo.send(body.encode())
        asked = mesh.ask(header("sleep"), body.encode())
        wait_until(lambda: node.serving.client.status()["requests"]["in_flight"] >= 3, 10, "3")
        retired = node.serving
        retired.link.do("give")
        # All that is idle, and the crowd, has moved long before.
        wait_until(lambda: len(successor.conns()) >= 20 + 8 + 1, 10, "all but two have moved")
        quick_s = time.monotonic() - started_s
        assert quick_s < SLOW_MS / 1000
        for client in idle:
            assert client.call(request("echo", 5))["result"] == 5
        assert resp.reply()["result"] == SLOW_MS
        assert resp.reply()["result"] == "behind"
        assert turbo.reply()[0] == packet
        response = mesh.response()
        assert (response.request_id, _result(response.body)) == (asked, SLOW_MS)
        given = retired.link.wait("given")
        assert given["left"] == 0
        successor.link.wait("taken")
        node.upgrades.serving = successor
        assert resp.call(request("echo", "after"))["result"] == "after"
        assert turbo.call(DEMO, "echo", "after")["result"] == "after"
        mesh.ask(header("echo"), request("echo", "after").encode())
        assert _result(mesh.response().body) == "after"
    finally:
        crowd.popen.terminate()
        crowd.popen.wait(30)
        for client in (resp, *idle):
            client.close()
        turbo.close()
        mesh.sock.close()
    seen = json.loads(crowd.output.splitlines()[-1])["resp"]
    assert seen["failed"] == 0, seen["failures"]
    slowest_ms = max(ms for _, ms in seen["replies"])
    assert slowest_ms < SLOW_MS / 2
    measured("requests of 3 s under way", others_moved_s=quick_s, slowest_other_ms=slowest_ms)
    retired.retire()


def _result(body: Any) -> Any:
    return json.loads(joined(body))["result"]
