"""Clients that break the rules: a clear answer or a clean pass, and nobody else suffers."""

from __future__ import annotations

import json
import os
import random
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.clients import raw_server
from tests.e2e.clients.raw import Connection, call, frame, request
from tests.e2e.conftest import Measured
from tests.support.agents import Agent, start_agent, start_service, static_registry
from tests.support.lab import Lab, LabNode, wait_until

pytestmark = pytest.mark.e2e

PORT, ECHO_PORT = 5000, 7000
READ_TIMEOUT_MS = 1000
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Mesh:
    """Callers on `a`; on `b` an instance, and an echo that the registry does not know."""

    a: LabNode
    b: LabNode
    agent: Agent

    def run(self, action: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        return self.a.do(action, timeout_s=timeout_s)

    def rss(self) -> int:
        return int(psutil.Process(self.agent.process.pid).memory_info().rss)


@pytest.fixture(scope="module")
def mesh(lab: Lab) -> Iterator[Mesh]:
    a, b = lab.add_node("a"), lab.add_node("b")
    start_service(b, PORT)
    b.python("echo", str(Path(raw_server.__file__)), b.ip4, f"echo={ECHO_PORT}").wait_line("ready")
    registry = static_registry(
        lab.directory / "services.toml", {"/service/demo": [f"{b.ip4}:{PORT}"]}
    )
    agent = start_agent(a, registry, f"[limits]\nrequest_read_timeout_ms = {READ_TIMEOUT_MS}")
    agent.mesh_on()
    yield Mesh(a, b, agent)
    # Whatever was sent, the agent is the one that was started.
    assert agent.process.popen.poll() is None
    assert "Traceback" not in agent.process.output


def exchange(host: str, port: int, data: bytes) -> str:
    """Send, say that this is all, and read to the end."""
    with socket.create_connection((host, port), timeout=10) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        got = b""
        while chunk := sock.recv(65536):
            got += chunk
    return got.decode("latin-1")


MALFORMED = {
    "no length": b"*2\r\n$3\r\nGET\r\n$x\r\n",
    "negative length": b"*1\r\n$-5\r\n",
    "no bulk": b"*1\r\n:5\r\n",
    "body too long": b"*1\r\n$4\r\nPINGPONG\r\n",
    "too many arguments": b"*2000000000\r\n",
    "open quote": b'GET "never closed\r\n',
    "three gigabytes": b"*2\r\n$3\r\nGET\r\n$3000000000\r\n",
    "a number of many digits": b"*" + b"9" * 1000 + b"\r\n",
    "a line without an end": b"GET " + b"a" * 100_000,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_resp_to_an_instance_is_refused_after_the_replies_before_it(
    mesh: Mesh, name: str
) -> None:
    host, bad = mesh.b.ip4, MALFORMED[name]
    good = frame(request("echo", "before"))
    answer = mesh.run(lambda: exchange(host, PORT, good + b"PING\r\n" + bad))
    reply, _, rest = answer.partition("\r\n+PONG\r\n")
    assert '"result": "before"' in reply
    assert rest.startswith("-ERR Protocol error: "), rest
    assert rest.endswith("\r\n")
    assert rest.count("\r\n") == 1


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_resp_to_an_unknown_address_arrives_byte_for_byte(mesh: Mesh, name: str) -> None:
    host, bad = mesh.b.ip4, MALFORMED[name]
    # What an echo answers to PING is no reply, which is how it turns raw.
    assert mesh.run(lambda: exchange(host, ECHO_PORT, bad)) == bad.decode("latin-1")


@pytest.mark.parametrize(
    ("body", "ec"),
    [
        ('{"params":{"m":"echo","args":[]}}', 401),
        ('{"action":null,"params":{"m":"echo"}}', 401),
        ('{"action":5,"params":{"m":"echo"}}', 402),
        ('{"action":"","params":{"m":"echo"}}', 402),
        ('{"action":"/service/demo"}', 302),
        ('{"action":"/service/demo","params":{}}', 502),
        ('{"a":' * 5000 + "1" + "}" * 5000, 302),
    ],
)
def test_json_that_is_no_request_is_told_why_and_the_connection_stays(
    mesh: Mesh, body: str, ec: int
) -> None:
    host = mesh.b.ip4

    def session() -> list[Any]:
        connection = Connection(host, PORT)
        refused = connection.call(body)
        return [refused["ec"], refused["em"], connection.call(request("echo", "still"))["result"]]

    seen = mesh.run(session)
    assert seen[0] == ec
    assert seen[1]
    assert seen[2] == "still"


def test_three_gigabytes_are_refused_before_they_are_sent(mesh: Mesh, measured: Measured) -> None:
    host = mesh.b.ip4
    before = mesh.rss()

    def session() -> list[Any]:
        with socket.create_connection((host, PORT), timeout=10) as sock:
            start_s = time.monotonic()
            sock.sendall(b"*2\r\n$3\r\nGET\r\n$3000000000\r\n")
            answer = sock.recv(1000).decode()
            return [answer, time.monotonic() - start_s]

    answers = [mesh.run(session) for _ in range(5)]
    grown = mesh.rss() - before
    assert all(
        a.startswith("-ERR Protocol error: invalid bulk length: 3000000000") for a, _ in answers
    )
    measured("3 GB refused", seconds=max(s for _, s in answers), grown_mib=grown / MIB)
    assert grown < 4 * MIB


def test_a_client_that_pours_after_its_refusal_costs_nothing(mesh: Mesh) -> None:
    host = mesh.b.ip4
    before = mesh.rss()

    def session() -> int:
        sent = 0
        with socket.create_connection((host, PORT), timeout=10) as sock:
            sock.sendall(b"*2\r\n$3\r\nGET\r\n$3000000000\r\n")
            try:
                while sent < 300 * MIB:
                    sent += sock.send(b"x" * 65536)
            except ConnectionError:
                return sent
        return sent

    assert mesh.run(session) < 50 * MIB
    assert mesh.rss() - before < 4 * MIB


def test_slow_clients_are_ended_and_hurt_nobody(mesh: Mesh, measured: Measured) -> None:
    host, count = mesh.b.ip4, 500
    half = frame(request("echo", "x" * 5000))[:40]

    def session() -> dict[str, Any]:
        slow = [socket.create_connection((host, PORT), timeout=10) for _ in range(count)]
        for sock in slow:
            sock.sendall(half)
        start_s = time.monotonic()
        waits: list[float] = []
        ended: list[str] = []
        good = Connection(host, PORT)
        poll = select.poll()
        for sock in slow:
            poll.register(sock, select.POLLIN)
        while len(ended) < count and time.monotonic() - start_s < 20:
            asked_s = time.monotonic()
            good.call(request("echo", "good"))
            waits.append(time.monotonic() - asked_s)
            for fd, _ in poll.poll(20):
                poll.unregister(fd)
                ended.append(os.read(fd, 100).decode())
            # A byte now and then does not make them faster.
            for sock in slow[::50]:
                try:
                    sock.send(b"e")
                except OSError:
                    continue
        return {
            "ended": len(ended),
            "texts": sorted(set(ended)),
            "seconds": time.monotonic() - start_s,
            "slowest": max(waits),
            "good": len(waits),
        }

    seen = mesh.run(session)
    assert seen["ended"] == count
    assert seen["texts"] == ["-ERR Protocol error: the request did not arrive in time\r\n"], seen[
        "texts"
    ]
    assert READ_TIMEOUT_MS / 1000 * 0.9 < seen["seconds"] < 10
    assert seen["slowest"] < 1.0
    measured(
        f"{count} slow clients",
        ended_after=seen["seconds"],
        others_slowest=seen["slowest"],
        others=seen["good"],
    )


def test_a_pipeline_without_reading_is_bounded(mesh: Mesh, measured: Measured) -> None:
    host = mesh.b.ip4
    before = mesh.rss()
    batch = frame(request("big", 100_000)) * 100

    def session() -> int:
        sent = 0
        with socket.create_connection((host, PORT), timeout=10) as sock:
            sock.setblocking(False)
            # The agent stops reading; how much fits until then is the kernel's buffers.
            while select.select([], [sock], [], 1.0)[1] and sent < 64 * MIB:
                sent += sock.send(batch)
        return sent

    sent = mesh.run(session)
    grown = mesh.rss() - before
    measured("pipelined and never read", sent_mib=sent / MIB, grown_mib=grown / MIB)
    assert sent < 32 * MIB
    assert grown < 16 * MIB


def test_random_bytes_never_hurt(mesh: Mesh) -> None:
    host = mesh.b.ip4

    def session() -> int:
        rand = random.Random(11)
        done = 0
        for _ in range(200):
            start = rand.choice(
                [b"*", b"$", b"*2\r\n", b"GET ", b"", b"\0", b"*1\r\n$4\r\nPING\r\n"]
            )
            port = rand.choice([PORT, ECHO_PORT])
            with socket.create_connection((host, port), timeout=10) as sock:
                sock.sendall(start + rand.randbytes(rand.randrange(200)))
                if rand.random() < 0.5:
                    sock.shutdown(socket.SHUT_WR)
            done += 1
        return done

    assert mesh.run(session) == 200
    assert mesh.run(lambda: call(host, PORT, request("echo", "well")))["result"] == "well"


def test_nothing_is_left_of_all_these_clients(mesh: Mesh) -> None:
    def left() -> list[Any]:
        return list(mesh.agent.moactl("conns")["conns"])

    wait_until(lambda: not left(), 15, "no connections left")
    status = mesh.agent.status()
    assert status["requests"]["in_flight"] == 0, json.dumps(status)
