"""The sample service and load client as a newcomer finds them: real processes, no agent."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.demo import DemoProcess
from tests.support.lab import wait_until
from tests.support.redis import RedisServer

pytestmark = pytest.mark.e2e

LOAD_CLIENT = Path(__file__).parents[1] / "samples" / "load_client.py"


@pytest.fixture
def service() -> Iterator[DemoProcess]:
    with DemoProcess("--name", "one") as running:
        yield running


def request(method: str, *args: object, action: str = "/service/demo") -> str:
    return json.dumps({"action": action, "params": {"m": method, "args": args}})


def call(service: DemoProcess, body: str) -> dict[str, Any]:
    client = redis.Redis(port=service.port)  # all defaults: HELLO 3 and CLIENT SETINFO included
    try:
        reply: dict[str, Any] = json.loads(client.get(body) or b"")
        return reply
    finally:
        client.close()


def load(target: str, *options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, str(LOAD_CLIENT), "--target", target, "--json", *options]
    ended = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=False)
    return ended.returncode, json.loads(ended.stdout)


def test_methods_and_their_results(service: DemoProcess) -> None:
    assert call(service, request("echo", "a")) == {"ec": 200, "em": "", "result": "a"}
    assert call(service, request("ECHO", 1, [2]))["result"] == [1, [2]]
    assert call(service, request("whoami"))["result"] == {
        "address": service.address,
        "name": "one",
    }
    assert len(call(service, request("big", 1_000_000))["result"]) == 1_000_000
    assert call(service, request("sleep", 20))["result"] == 20


@pytest.mark.parametrize(
    ("body", "ec"),
    [
        (request("echo", action="/service/other"), 501),
        (request("none"), 502),
        (request("fail"), 503),
        (request("big", -1), 503),
        (request("sleep", "x"), 503),
        ('{"params": {}}', 401),
        ('{"action": "/service/demo", "params": 3}', 401),
        ("[]", 401),
        ("nonsense", 401),
    ],
)
def test_what_goes_wrong_is_an_error_code(service: DemoProcess, body: str, ec: int) -> None:
    reply = call(service, body)
    assert reply["ec"] == ec
    assert reply["em"]


def test_redis_cli_calls_it(service: DemoProcess) -> None:
    command = ["redis-cli", "-p", str(service.port), "get", request("echo", "hello")]
    seen = subprocess.run(command, capture_output=True, timeout=10, check=True).stdout
    assert json.loads(seen)["result"] == "hello"


def test_ping_info_and_unknown_commands(service: DemoProcess) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as peer:
        peer.sendall(b"PING\r\n\r\n*1\r\n$4\r\nping\r\n*1\r\n$4\r\nINFO\r\nSET a b\r\nQUIT\r\n")
        seen = b"".join(iter(lambda: peer.recv(4096), b"")).split(b"\r\n")
    assert seen[:2] == [b"+PONG", b"+PONG"]
    assert json.loads(seen[2][1:]) == {"moa": {"recv": 0, "proc": 0, "error": 0}}
    assert seen[3:] == [b"-ERR unknown command 'SET'", b"+OK", b""]


@pytest.mark.parametrize(
    "garbage", [b"*x\r\n", b"*1\r\n$3000000000\r\n", b"*99999\r\n", b"*1\r\n:1\r\n", b"x" * 100_000]
)
def test_garbage_is_answered_and_hung_up_on(service: DemoProcess, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as peer:
        peer.sendall(garbage)
        try:
            assert b"-ERR Protocol error" in b"".join(iter(lambda: peer.recv(4096), b""))
        except ConnectionResetError:
            assert len(garbage) > 1000, "only input that was not read to its end may reset"
    assert call(service, request("echo", 1))["ec"] == 200


def test_one_request_at_a_time_on_a_connection(service: DemoProcess) -> None:
    def frame(body: str) -> bytes:
        return b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(body), body.encode())

    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as peer:
        start_s = time.monotonic()
        peer.sendall(frame(request("sleep", 100)) + frame(request("sleep", 100)) + b"QUIT\r\n")
        replies = b"".join(iter(lambda: peer.recv(4096), b""))
    assert replies.count(b'"result": 100') == 2
    assert time.monotonic() - start_s >= 0.2


def test_it_enters_and_leaves_the_registry(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", password="s3cret") as server:
        client = server.client()
        options = ("--register", server.url, "--params", "weight=7&zone=a")
        with DemoProcess(*options) as service:
            assert client.smembers("moa:services") == {b"/service/demo"}
            members = client.smembers("moa:service:{/service/demo}")
            assert members == {f"{service.address}?weight=7&zone=a".encode()}
            assert service.terminate() == 0
        assert client.scard("moa:service:{/service/demo}") == 0
        assert str(client.get("moa:version:{/service/demo}")).endswith("-2'")
        client.close()


def test_it_serves_without_its_registry() -> None:
    with DemoProcess("--register", "redis://127.0.0.1:1") as service:
        assert call(service, request("echo", 1))["ec"] == 200


def test_sigterm_lets_the_running_request_end(service: DemoProcess) -> None:
    replies: list[dict[str, Any]] = []
    busy = threading.Thread(target=lambda: replies.append(call(service, request("sleep", 700))))
    busy.start()
    _until_received(service, 1)
    assert service.terminate() == 0
    busy.join(timeout=10)
    assert replies == [{"ec": 200, "em": "", "result": 700}]


def _until_received(service: DemoProcess, count: int) -> None:
    deadline_s = time.monotonic() + 5
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as peer:
        while time.monotonic() < deadline_s:
            peer.sendall(b"INFO\r\n")
            if json.loads(peer.recv(4096)[1:])["moa"]["recv"] >= count:
                return
    raise AssertionError(f"{count} requests: not received within 5 s")


def test_load_without_faults(service: DemoProcess) -> None:
    code, report = load(service.address, "--rate", "300", "--seconds", "1")
    assert code == 0
    assert report["sent"] == report["ok"] == 300
    assert report["errors"] == {}
    assert report["answered_by"] == {service.address: 300}
    assert 0 < report["p50_ms"] <= report["p99_ms"] <= report["max_ms"]


def test_load_counts_error_codes(service: DemoProcess) -> None:
    code, report = load(service.address, "--rate", "100", "--seconds", "0.5", "--method", "fail")
    assert code == 1
    assert report["ok"] == 0
    assert report["errors"]["ec 503"]["count"] == len(report["failures"]) == 50


def kill_after(service: DemoProcess, requests: int) -> None:
    """Kill it while it is under way, however long the load took to begin."""
    address = ("127.0.0.1", service.port)
    with socket.create_connection(address) as sock, sock.makefile("rwb") as file:

        def processed() -> int:
            file.write(b"INFO\r\n")
            file.flush()
            return int(json.loads(file.readline()[1:])["moa"]["proc"])

        wait_until(lambda: processed() >= requests, 10.0, f"{requests} requests served")
    service.kill()


def test_load_records_each_failure_with_its_time(service: DemoProcess) -> None:
    killer = threading.Thread(target=kill_after, args=(service, 100))
    killer.start()
    code, report = load(service.address, "--rate", "200", "--seconds", "1.5")
    killer.join()
    assert code == 1
    assert report["sent"] == 300
    assert report["ok"] + len(report["failures"]) == 300
    errors = report["errors"]["ConnectionError"]
    assert report["last_ok_s"] <= errors["last_s"] <= 1.6


def test_load_sees_a_standstill_as_latency(service: DemoProcess) -> None:
    code, report = load(
        service.address, "--rate", "100", "--seconds", "0.5", "--connections", "1",
        "--method", "sleep", "--args", "[50]",
    )  # fmt: skip
    assert code == 0
    assert report["max_ms"] > 1500, "an open loop counts from when a request fell due"
