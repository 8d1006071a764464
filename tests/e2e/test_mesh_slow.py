"""Peers of the mesh protocol that read slowly, nothing, or give no credit: what waits for them is
bounded in bytes and in time, and nobody else waits with it, not even on the same connection.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from proxy.net.mesh_link import STALL_S
from proxy.wire.mesh import (
    FrameParser,
    FrameType,
    RequestHeader,
    ResponseReceived,
    Settings,
    encode_frame,
    joined,
)
from proxy.wire.mesh.frames import MORE
from proxy.wire.mesh.headers import decode_response, encode_request, encode_window
from proxy.wire.mesh.settings import encode_hello
from tests.e2e.clients.raw import DEMO, Connection, request
from tests.e2e.conftest import Measured
from tests.support.agents import Agent, start_agent, start_service, static_registry
from tests.support.lab import Lab, LabNode, wait_until
from tests.support.mesh_peer import MeshPeer

pytestmark = pytest.mark.e2e

PORT, OTHER_PORT, PEER_PORT = 5000, 5001, 5002
OTHER, PEER = "/service/other", "/service/peer"
MIB = 1024 * 1024
LARGE = 2 * MIB - 4096
SMALL = 20
ASKED = 120
"""Replies of 1 MiB for a peer that reads none of them: several times what may wait for it."""
MAX_QUEUED = Settings().max_queued
TIMEOUT_MS = 20_000


@dataclass(slots=True)
class Mesh:
    """Callers on `a`; on `b` two services behind their agent, and a peer with room for one large
    body."""

    a: LabNode
    b: LabNode
    agent_a: Agent
    agent_b: Agent

    def echo(self, count: int = 1) -> float:
        """The slowest of some requests of a client on A to the other service, in seconds."""
        host = self.b.ip4

        def ask() -> float:
            slowest_s = 0.0
            with Connection(host, OTHER_PORT, 30.0) as connection:
                for number in range(count):
                    start_s = time.monotonic()
                    reply = connection.call(request("echo", number, uri=OTHER))
                    assert reply["result"] == number
                    slowest_s = max(slowest_s, time.monotonic() - start_s)
            return slowest_s

        return float(self.a.do(ask))

    def peer(self) -> str:
        address = f"{self.b.ip4}:{PEER_PORT}"
        states = [p["state"] for p in self.agent_a.conns()["peers"] if p["address"] == address]
        return states[0] if states else ""


def uss(agent: Agent) -> int:
    return int(psutil.Process(agent.process.popen.pid).memory_full_info().uss)


@pytest.fixture(scope="module")
def mesh(lab: Lab) -> Iterator[Mesh]:
    a, b = lab.add_node("a"), lab.add_node("b")
    params = f"proto=resp&proto=mesh&timeout={TIMEOUT_MS}"
    ports = {DEMO: PORT, OTHER: OTHER_PORT, PEER: PEER_PORT}
    services = {uri: [f"{b.ip4}:{port}?{params}"] for uri, port in ports.items()}
    registry = static_registry(lab.directory / "services.toml", services)
    agent_a = start_agent(a, registry, "[limits]\nmesh_connections = 1\n")
    inbound = f"[inbound]\nregistered = false\nports = [{PORT}, {OTHER_PORT}]\n"
    agent_b = start_agent(b, registry, inbound)
    for agent in (agent_a, agent_b):
        agent.mesh_on()
    start_service(b, PORT)
    start_service(b, OTHER_PORT, OTHER)
    server = ("-m", "tests.support.mesh_peer", b.ip4, str(PEER_PORT), str(2 * MIB))
    b.python("peer", *server).wait_line("ready")
    made = Mesh(a, b, agent_a, agent_b)
    made.echo()
    yield made
    for agent in (agent_a, agent_b):
        assert agent.process.popen.poll() is None
        assert "Traceback" not in agent.process.output


def test_a_peer_that_reads_nothing_is_bounded_and_given_up(mesh: Mesh, measured: Measured) -> None:
    """It goes on to say that it lives. Replies that find no room are short errors."""
    host = mesh.b.ip4
    before = uss(mesh.agent_b)
    deaf = mesh.a.python("deaf", __file__, host, cgroup=mesh.a.agent)
    deaf.wait_line("asked")
    start_s = time.monotonic()
    slowest_s, highest = 0.0, 0
    while deaf.popen.poll() is None:
        slowest_s = max(slowest_s, mesh.echo(20))
        highest = max(highest, uss(mesh.agent_b))
        assert time.monotonic() - start_s < 60, "it was not given up"
    given_up_s = json.loads(deaf.output.splitlines()[-1])
    wait_until(lambda: mesh.agent_b.status()["requests"]["in_flight"] == 0, 10, "all is over")
    grown = (highest - before) / MIB
    measured(
        "mesh peer that reads nothing",
        asked_mib=ASKED,
        grown_mib=grown,
        left_mib=(uss(mesh.agent_b) - before) / MIB,
        given_up_s=given_up_s,
        others_slowest_s=slowest_s,
    )
    assert grown < 2 * MAX_QUEUED / MIB
    assert STALL_S - 1 < given_up_s < 3 * STALL_S
    assert slowest_s < 2


def be_deaf(host: str) -> None:
    """Ask for much, read nothing, and say PING until one is hung up on; prints after how long."""
    sock = socket.create_connection((host, PORT))
    frames = [encode_frame(FrameType.HELLO, 0, encode_hello(Settings()))]
    body = request("big", MIB).encode()
    header = encode_request(RequestHeader(DEMO, "big", deadline_ms=TIMEOUT_MS), len(body))
    numbers = range(1, ASKED + 1)
    frames += [encode_frame(FrameType.REQUEST, number, header, body) for number in numbers]
    sock.sendall(b"".join(frames))
    print("asked", flush=True)
    start_s = time.monotonic()
    try:
        for number in range(10**6):
            sock.sendall(encode_frame(FrameType.PING, number))
            time.sleep(1.0)  # the pace of a peer that is well
    except OSError:
        print(time.monotonic() - start_s, flush=True)


class Stingy:
    """A client that gives no credit unless it is told to: frames as they come."""

    def __init__(self, host: str, window: int) -> None:
        self.sock = socket.create_connection((host, PORT), timeout=20.0)
        self._parser = FrameParser()
        settings = Settings(stream_window=window)
        self.sock.sendall(encode_frame(FrameType.HELLO, 0, encode_hello(settings)))
        self.bodies: dict[int, bytes] = {}
        self.lengths: dict[int, int] = {}
        self.complete: list[int] = []

    def ask(self, number: int, method: str, *args: object) -> None:
        body = request(method, *args).encode()
        header = encode_request(RequestHeader(DEMO, method, deadline_ms=TIMEOUT_MS), len(body))
        self.sock.sendall(encode_frame(FrameType.REQUEST, number, header, body))

    def grant(self, number: int, credit: int) -> None:
        self.sock.sendall(encode_frame(FrameType.WINDOW, number, encode_window(credit)))

    def read_until(self, *numbers: int) -> None:
        """Until the responses of these are complete."""
        while not set(numbers) <= set(self.complete):
            self._read()

    def read_to(self, number: int, size: int) -> None:
        """Until so much of a response is there."""
        while len(self.bodies.get(number, b"")) < size:
            self._read()

    def _read(self) -> None:
        data = self.sock.recv(65536)
        assert data, "hung up on"
        for frame in self._parser.feed(data):
            if frame.kind == FrameType.RESPONSE:
                number = frame.request_id
                if frame.header:
                    self.lengths[number] = decode_response(frame.header)[1]
                self.bodies[number] = self.bodies.get(number, b"") + b"".join(frame.body)
                if not frame.flags & MORE:
                    self.complete.append(number)


def test_a_response_without_credit_holds_up_no_other(mesh: Mesh) -> None:
    """Not on its own connection either; with credit it goes on where it stood."""
    host, window = mesh.b.ip4, 1000

    def ask() -> list[Any]:
        client = Stingy(host, window)
        client.ask(1, "big", LARGE)
        for number in range(2, 2 + SMALL):
            client.ask(number, "echo", number)
        client.read_until(*range(2, 2 + SMALL))
        client.read_to(1, window)
        # What is asked for now is answered behind all that could be sent of the large one.
        client.ask(50, "sleep", 50)
        client.read_until(50)
        stood = [1 in client.complete, len(client.bodies[1])]
        client.grant(1, 500_000)
        client.read_to(1, window + 500_000)
        client.ask(51, "sleep", 50)
        client.read_until(51)
        went = [1 in client.complete, len(client.bodies[1])]
        client.grant(1, client.lengths[1])
        client.read_until(1)
        return [stood, went, json.loads(client.bodies[1])["result"] == "x" * LARGE]

    stood, went, is_it = mesh.a.do(ask, cgroup=mesh.a.agent, timeout_s=30)
    assert stood == [False, window]
    assert went == [False, window + 500_000]
    assert is_it


def test_a_request_without_credit_costs_itself_its_deadline_and_others_nothing(
    mesh: Mesh, measured: Measured
) -> None:
    """The peer keeps its room for a request that it never answers: the next large one waits."""
    host = mesh.b.ip4

    def call(method: str, *args: object, timeout_ms: int = TIMEOUT_MS) -> dict[str, Any]:
        body = request(method, *args, uri=PEER, **{"moa.timeout": str(timeout_ms)})
        return Connection(host, PEER_PORT, 30.0).call(body)

    def is_on_the_mesh() -> bool:
        mesh.a.do(lambda: call("echo", 1))
        return mesh.peer() == "confirmed"

    wait_until(is_on_the_mesh, 10, "a mesh connection to the peer")
    calls = mesh.agent_a.status()["mesh"]["calls"]

    def ask() -> dict[str, Any]:
        holder, waiter = Connection(host, PEER_PORT, 30.0), Connection(host, PEER_PORT, 30.0)
        large = "x" * LARGE
        holder.send(request("hold", large, uri=PEER, **{"moa.timeout": "6000"}))
        waiter.send(request("echo", large, uri=PEER, **{"moa.timeout": "3000"}))
        start_s = time.monotonic()
        small = [call("echo", number)["ec"] for number in range(SMALL)]
        small_s = time.monotonic() - start_s
        late = [connection.reply()["ec"] for connection in (holder, waiter)]
        # Both were given up, which gives their room back.
        again = call("echo", "y" * LARGE)["ec"]
        return {"small": small, "small_s": small_s, "late": late, "again": again}

    seen = mesh.a.do(ask, timeout_s=60)
    status = mesh.agent_a.status()
    measured("mesh peer without credit", small_s=seen["small_s"], late=seen["late"])
    assert seen["small"] == [200] * SMALL
    assert seen["late"] == [304, 304]
    assert seen["again"] == 200
    assert seen["small_s"] < 3, "they waited for a large one"
    assert status["mesh"]["calls"] - calls == SMALL + 3
    assert status["requests"]["in_flight"] == 0


def test_a_peer_that_reads_slowly_gets_all_of_it(mesh: Mesh, measured: Measured) -> None:
    """Some KiB at a time for longer than a stall is suffered: slow is not dead."""
    host = mesh.b.ip4

    def ask() -> list[Any]:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        sock.settimeout(30.0)
        sock.connect((host, PORT))
        client = MeshPeer(sock)
        size = MIB
        client.ask(
            RequestHeader(DEMO, "big", deadline_ms=TIMEOUT_MS), request("big", size).encode()
        )
        seen: list[ResponseReceived] = []
        start_s = time.monotonic()
        while not seen:
            data = sock.recv(size // 60)
            assert data, "hung up on"
            events = client.connection.receive_data(data, time.monotonic())
            client.flush()
            seen += [event for event in events if isinstance(event, ResponseReceived)]
            time.sleep(0.2)  # a slow reader
        took_s = time.monotonic() - start_s
        return [len(json.loads(joined(seen[0].body))["result"]), took_s]

    size, took_s = mesh.a.do(ask, cgroup=mesh.a.agent, timeout_s=60)
    measured("mesh peer that reads slowly", took_s=took_s)
    assert size == MIB
    assert took_s > STALL_S


if __name__ == "__main__":
    be_deaf(sys.argv[1])
