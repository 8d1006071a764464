"""What is not MOA arrives byte for byte where it was sent, and ends as it would without us."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from interceptor.cgroup import Cgroup
from tests.e2e.clients import raw_server
from tests.e2e.clients.raw import Connection, frame, request
from tests.e2e.conftest import Measured
from tests.support.agents import Agent, start_agent, start_service, static_registry
from tests.support.lab import Lab, LabNode, Running, wait_until

pytestmark = pytest.mark.e2e

SERVER = str(Path(raw_server.__file__))
PORTS = {mode: 7000 + number for number, mode in enumerate(raw_server.MODES)}
DEAD_PORT = 7999
HTTP_PORT = 8000
REDIS_PORT = 6379
PASSWORD = "a secret"
INSTANCE_PORT = 5000
MIB = 1 << 20
MEMORY_BOUND = 24 * MIB
"""What two slow readers may cost the agent; what they do not read is several times as much."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """Callers and the agent on `a`; on `b` servers that know nothing."""

    a: LabNode
    b: LabNode
    agent: Agent
    servers: Running

    def through(self, action: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        """Run on A inside of the mesh."""
        return self.a.do(action, timeout_s=timeout_s)

    def direct(self, action: Callable[[], Any]) -> Any:
        """Run on A outside of the mesh."""
        return self.a.do(action, cgroup=Cgroup(f"/{self.a.lab.id}/outside"), timeout_s=60.0)

    def address(self, mode: str) -> tuple[str, int]:
        return self.b.ip4, PORTS[mode]

    def rss(self) -> int:
        return int(psutil.Process(self.agent.process.pid).memory_info().rss)

    def connections(self) -> int:
        return int(self.agent.status()["connections"]["outbound"])


@pytest.fixture(scope="module")
def mesh(lab: Lab) -> Mesh:
    a, b = lab.add_node("a"), lab.add_node("b")
    pem = _certificate(lab.directory)
    modes = [f"{mode}={port}" for mode, port in PORTS.items()]
    servers = b.start("raw", sys.executable, SERVER, b.ip4, *modes, env={"TLS_PEM": str(pem)})
    for mode in PORTS:
        servers.wait_line(f"ready {mode}")
    b.start(
        "redis",
        *("redis-server", "--bind", b.ip4, "--port", str(REDIS_PORT), "--save", ""),
        *("--requirepass", PASSWORD),
    ).wait_line("Ready to accept connections")
    (b.directory / "page.txt").write_text("page\n" * 100_000)
    b.python(
        "http",
        *("-m", "http.server", "--bind", b.ip4, "--directory", str(b.directory), str(HTTP_PORT)),
    ).wait_line("Serving HTTP")
    start_service(b, INSTANCE_PORT)
    registry = static_registry(
        lab.directory / "services.toml", {"/service/demo": [f"{b.ip4}:{INSTANCE_PORT}"]}
    )
    agent = start_agent(a, registry)
    agent.mesh_on()
    return Mesh(a, b, agent, servers)


def _certificate(directory: Path) -> Path:
    pem = directory / "tls.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=raw", "-keyout", str(pem), "-out", f"{pem}.crt"),
        ],
        check=True,
        capture_output=True,
    )
    with pem.open("a") as out:
        out.write(Path(f"{pem}.crt").read_text())
    return pem


def dial(address: tuple[str, int], timeout_s: float = 30.0) -> socket.socket:
    return socket.create_connection(address, timeout=timeout_s)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


def how_it_ends(sock: socket.socket) -> str:
    """`fin` or `reset`, after whatever still comes."""
    try:
        read_all(sock)
    except ConnectionResetError:
        return "reset"
    return "fin"


# Redis


def redis_session(host: str) -> list[Any]:
    """What an application does with Redis, and everything that it sees."""
    seen: list[Any] = []

    def see(*commands: Any) -> None:
        for command in commands:
            try:
                seen.append(repr(command()))
            except redis.RedisError as error:
                seen.append(f"{type(error).__name__}: {error}")

    for protocol in (2, 3):
        client: Any = redis.Redis(
            host, REDIS_PORT, db=1, password=PASSWORD, protocol=protocol, socket_timeout=20
        )
        see(
            client.flushdb,
            lambda c=client: c.set("key", b"\0\r\n\xff" * 100),
            lambda c=client: c.get("key"),
            lambda c=client: c.get("none"),
            lambda c=client: c.hset("hash", mapping={"a": 1, "b": 2}),
            lambda c=client: c.hgetall("hash"),
            lambda c=client: c.incr("key"),  # an error reply
            lambda c=client: c.set("big", b"x" * (3 * MIB)),
            lambda c=client: hashlib.sha256(c.get("big")).hexdigest(),
            lambda c=client: c.blpop(["empty"], timeout=0.2),
            lambda c=client: c.rpush("list", "one") and c.blpop(["list"], timeout=5),
            lambda c=client: c.ping(),
            lambda c=client: c.echo("x"),
            lambda c=client: c.client_setname("me") and c.client_getname(),
            lambda c=client: c.execute_command("SELECT", 1),
            lambda c=client: c.execute_command("SELECT", 99),
            lambda c=client: c.execute_command("NO-SUCH"),
        )
        with client.pipeline(transaction=True) as transaction:
            transaction.set("t", 1).incr("t").lpush("t", 1).get("t")
            see(lambda t=transaction: t.execute(raise_on_error=False))
        with client.pipeline(transaction=False) as pipeline:
            for number in range(1000):
                pipeline.set(f"p{number}", number)
            see(pipeline.execute)
        listener = client.pubsub()
        listener.subscribe("one", "two")
        listener.psubscribe("t*")
        for _ in range(3):
            see(lambda s=listener: s.get_message(timeout=5))
        see(lambda c=client: c.publish("two", "hello"))
        for _ in range(2):
            see(lambda s=listener: s.get_message(timeout=5))
        listener.close()
        client.close()
    once = Retry(NoBackoff(), 0)
    wrong = redis.Redis(host, REDIS_PORT, password="wrong", socket_timeout=20, retry=once)
    see(wrong.ping)
    bare = redis.Redis(host, REDIS_PORT, socket_timeout=20, retry=once)
    see(bare.ping, lambda: bare.get("key"))
    return seen


def test_redis_py_sees_the_same_as_without_us(mesh: Mesh) -> None:
    host = mesh.b.ip4
    direct = mesh.direct(lambda: redis_session(host))
    through = mesh.through(lambda: redis_session(host))
    assert through == direct
    assert len(direct) > 50
    assert not any("Timeout" in str(seen) for seen in direct)


def test_a_connection_that_routed_moa_before_turns_raw_for_redis(mesh: Mesh) -> None:
    host = mesh.b.ip4

    def session() -> list[str]:
        seen = []
        connection = Connection(host, REDIS_PORT)
        seen.append(connection.command(b"PING").decode())
        seen.append(connection.command(f'AUTH "{PASSWORD}"'.encode()).decode())
        seen.append(str(connection.call(request("echo", "routed"))["result"]))
        seen.append(connection.command(b"SET here redis").decode())
        seen.append(connection.command(b"GET here").decode())
        connection.sock.sendall(frame(request("echo", "no longer looked at")))
        seen.append(connection.read().decode())
        return seen

    assert mesh.through(session) == [
        # It is not yet MOA's: Redis answers for itself.
        "-NOAUTH Authentication required.\r\n",
        "+OK\r\n",
        "routed",
        "+OK\r\n",
        "$5\r\nredis\r\n",
        "$-1\r\n",
    ]


def test_client_reply_off_and_tracking_pushes(mesh: Mesh) -> None:
    host = mesh.b.ip4

    def session() -> str:
        with dial((host, REDIS_PORT)) as sock:
            sock.sendall(f'AUTH "{PASSWORD}"\r\n'.encode())
            assert sock.recv(100) == b"+OK\r\n"
            sock.sendall(b"CLIENT REPLY OFF\r\nSET silent 1\r\nCLIENT REPLY ON\r\nGET silent\r\n")
            data = b""
            while not data.endswith(b"$1\r\n1\r\n"):
                data += sock.recv(1000)
        return data.decode()

    assert mesh.through(session) == mesh.direct(session) == "+OK\r\n$1\r\n1\r\n"


# Other protocols


def test_http_with_curl(mesh: Mesh) -> None:
    url = f"http://{mesh.b.ip4}:{HTTP_PORT}"
    page = mesh.a.call("curl", "-sS", "--max-time", "20", f"{url}/page.txt")
    assert page.stdout == "page\n" * 100_000, page.stderr
    missing = mesh.a.call(
        "curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}", f"{url}/none"
    )
    assert missing.stdout == "404"
    dead = mesh.a.call("curl", "-sS", "--max-time", "20", f"http://{mesh.b.ip4}:{DEAD_PORT}/")
    assert dead.returncode == 56, dead.stderr  # the receive failed: a reset


def test_a_server_that_speaks_first(mesh: Mesh) -> None:
    address = mesh.address("banner")

    def session() -> str:
        with dial(address) as sock:
            data = sock.recv(1000)
            sock.sendall(b"EHLO\r\n")
            return (data + sock.recv(1000)).decode()

    assert mesh.through(session) == raw_server.BANNER.decode() + "EHLO\r\n"


def test_a_tls_handshake_and_what_is_inside(mesh: Mesh) -> None:
    address = mesh.address("tls")

    def session() -> list[str]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(dial(address)) as sock:
            sock.sendall(b"inside")
            return [str(sock.version()), sock.recv(100).decode()]

    assert mesh.through(session) == ["TLSv1.3", "inside"]


def test_fifty_megabytes_each_way_at_once(mesh: Mesh, measured: Measured) -> None:
    address, size = mesh.address("echo"), 50 * MIB

    def session() -> dict[str, Any]:
        data = random.Random(3).randbytes(size)
        start_s = time.monotonic()
        with dial(address) as sock:

            def send() -> None:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            digest, count = raw_server.read_all(sock)
            sender.join()
        seconds = time.monotonic() - start_s
        same = digest == hashlib.sha256(data).hexdigest()
        return {"count": count, "same": same, "seconds": seconds}

    before = mesh.rss()
    result = mesh.through(session)
    assert result["count"] == size
    assert result["same"]
    grown = mesh.rss() - before
    measured("50 MiB each way through a splice", seconds=result["seconds"], grown_mib=grown / MIB)
    assert grown < MEMORY_BOUND


# How connections end


def test_a_client_that_has_said_all_gets_the_answer(mesh: Mesh) -> None:
    address = mesh.address("digest")

    def session() -> str:
        with dial(address) as sock:
            sock.sendall(b"\0all" * 1000)
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock).decode()

    wanted = hashlib.sha256(b"\0all" * 1000).hexdigest()
    assert mesh.through(session) == f"{wanted} 4000\n"


def test_a_client_that_says_nothing_but_its_end_gets_the_answer(mesh: Mesh) -> None:
    address = mesh.address("digest")

    def session() -> str:
        with dial(address) as sock:
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock).decode()

    assert mesh.through(session) == f"{hashlib.sha256().hexdigest()} 0\n"


def test_a_server_that_has_said_all_still_hears(mesh: Mesh) -> None:
    address = mesh.address("first")

    def session() -> str:
        with dial(address) as sock:
            sock.sendall(b"hello ")
            said = read_all(sock)
            sock.sendall(b"after your end")
            return said.decode()

    assert mesh.through(session) == "goodbye"
    mesh.servers.wait_line(f"first: got 20 {hashlib.sha256(b'hello after your end').hexdigest()}")


def test_a_servers_reset_is_a_reset(mesh: Mesh) -> None:
    address = mesh.address("reset")

    def session() -> list[str]:
        with dial(address) as sock:
            sock.sendall(b"\1abc")
            return [repr(sock.recv(4)), how_it_ends(sock)]

    assert mesh.through(session) == mesh.direct(session) == [repr(b"cba\1"), "reset"]


def test_a_clients_reset_is_a_reset(mesh: Mesh) -> None:
    address = mesh.address("echo")

    def session() -> None:
        sock = dial(address)
        sock.sendall(b"\1abc")
        assert sock.recv(4) == b"\1abc"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    mesh.through(session)
    mesh.servers.wait_line("echo: ConnectionResetError")


@pytest.mark.parametrize("first", [b"\x16\x03\x01", b"SET a b\r\n", b"GET / HTTP/1.1\r\n\r\n", b""])
def test_a_dead_server_is_a_reset_and_never_a_clean_end(mesh: Mesh, first: bytes) -> None:
    host = mesh.b.ip4

    def session() -> str:
        with dial((host, DEAD_PORT)) as sock:
            if first:
                sock.sendall(first)
            return how_it_ends(sock)

    assert mesh.through(session) == "reset"


# Slow readers


def test_a_client_that_reads_slowly_costs_no_memory_and_loses_nothing(mesh: Mesh) -> None:
    address = mesh.address("blast")
    before = mesh.rss()
    ready, go = _pipes()

    def session() -> list[Any]:
        with dial(address) as sock:
            sock.sendall(b"\1go")
            sock.recv(1)
            os.write(ready[1], b"r")
            os.read(go[0], 1)
            digest, count = raw_server.read_all(sock)
            return [digest, count + 1]

    def meanwhile() -> None:
        os.read(ready[0], 1)
        sampled.append(_settled(mesh))
        os.write(go[1], b"g")

    sampled: list[int] = []
    watcher = threading.Thread(target=meanwhile)
    watcher.start()
    result = mesh.through(session)
    watcher.join()
    assert result[1] == raw_server.BLASTS * len(raw_server.BLAST)
    assert sampled[0] - before < MEMORY_BOUND


def test_a_server_that_reads_slowly_costs_no_memory_and_loses_nothing(mesh: Mesh) -> None:
    address, size = mesh.address("stall"), 64 * MIB
    before = mesh.rss()
    data = random.Random(5).randbytes(size)

    def session() -> str:
        with dial(address) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock).decode()

    sampled: list[int] = []

    def meanwhile() -> None:
        wait_until(lambda: mesh.agent.status()["connections"]["raw"] > 0, 20, "a splice")
        sampled.append(_settled(mesh))
        mesh.servers.signal(signal.SIGUSR1)

    watcher = threading.Thread(target=meanwhile)
    watcher.start()
    answer = mesh.through(session)
    watcher.join()
    assert answer == f"{hashlib.sha256(data).hexdigest()} {size}\n"
    assert sampled[0] - before < MEMORY_BOUND


def _pipes() -> tuple[tuple[int, int], tuple[int, int]]:
    return os.pipe(), os.pipe()


def _settled(mesh: Mesh) -> int:
    """The agent's memory once no byte moves any more."""
    seen: list[int] = []

    def still() -> bool:
        conns = mesh.agent.moactl("conns")
        seen.append(sum(c["bytes_in"] + c["bytes_out"] for c in conns["conns"]))
        return len(seen) > 2 and seen[-1] == seen[-2] == seen[-3]

    wait_until(still, 30, "bytes at rest")
    return mesh.rss()


# Those who say nothing


def test_a_client_that_never_speaks_to_an_instance_is_left_alone(mesh: Mesh) -> None:
    host = mesh.b.ip4

    def session() -> list[Any]:
        with dial((host, INSTANCE_PORT)) as silent:
            # Others come and go meanwhile, for longer than anything waits for first bytes.
            other = Connection(host, INSTANCE_PORT)
            other.call(request("sleep", 300))
            silent.settimeout(0.0)
            try:
                return ["heard", repr(silent.recv(1))]
            except BlockingIOError:
                silent.settimeout(10)
                silent.sendall(b"PING\r\n")
                return ["silence", silent.recv(100).decode()]

    assert mesh.through(session) == ["silence", "+PONG\r\n"]


def test_a_client_that_never_speaks_to_an_unknown_address_is_connected_to_it(mesh: Mesh) -> None:
    address = mesh.address("silent")

    def session() -> None:
        with dial(address):
            wait_until(lambda: mesh.agent.status() and _is_connected(mesh), 10, "connected")

    mesh.through(session)
    mesh.servers.wait_line("silent: fin after 0")


def _is_connected(mesh: Mesh) -> bool:
    conns = mesh.agent.moactl("conns")["conns"]
    original = f"{mesh.b.ip4}:{PORTS['silent']}"
    return any(c["original"] == original and c["upstream"] == original for c in conns)


def test_nothing_is_left_of_all_these_connections(mesh: Mesh) -> None:
    wait_until(lambda: mesh.connections() == 0, 15, json.dumps(mesh.agent.moactl("conns")))
