"""moa-lookup: asked by redis-cli, by packets and through the mesh; with and without its Redis."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from proxy.core.model import Address, ServiceKey
from proxy.registry import keys
from proxy.wire import hessian
from proxy.wire.turbo import (
    EXT_HESSIAN,
    Cmd,
    Form,
    Packet,
    PacketLimits,
    PacketParser,
    encode,
    encode9,
)
from tests.e2e.clients.raw import Connection, request
from tests.support.agents import start_agent
from tests.support.lab import REPO, Lab, wait_until
from tests.support.redis import RedisServer

pytestmark = pytest.mark.e2e

LOOKUP, ADMIN, DEMO = "/service/lookup", "/service/moa-admin", "/service/demo"


@dataclass(slots=True)
class Lookup:
    """A moa-lookup on loopback."""

    directory: Path
    url: str
    extra: str = ""
    process: subprocess.Popen[str] = field(init=False)
    port: int = 0
    lines: list[str] = field(default_factory=list)

    def start(self) -> Lookup:
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "moa.toml"
        config.write_text(
            f'[agent]\nstate_dir = "{self.directory}/state"\n'
            f'[registry]\nkind = "redis"\nurl = "{self.url}"\nsweep_s = 1\n'
            f'[lookup]\nlisten = "127.0.0.1:{self.port}"\n{self.extra}'
        )
        config.chmod(0o600)
        self.process = subprocess.Popen(
            [str(Path(sys.executable).with_name("python")), "-m", "installer.lookup.main", config],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, cwd=REPO,
        )  # fmt: skip
        self.lines.clear()
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        line = wait_until(lambda: self._line('"ready"'), 20, f"ready: {self.lines}")
        self.port = int(json.loads(line)["listen"].rpartition(":")[2])
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.lines.extend(process.stderr)

    def _line(self, text: str) -> str | None:
        return next((line for line in list(self.lines) if text in line), None)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=10)

    def call(self, method: str, *args: object, uri: str = LOOKUP, **props: str) -> dict[str, Any]:
        with Connection("127.0.0.1", self.port) as connection:
            return connection.call(request(method, *args, uri=uri, **props))

    def hosts(self, *args: object, **props: str) -> list[str] | None:
        reply = self.call("getService", *args, **props)
        return sorted(reply["result"]["hosts"]) if reply["ec"] == 200 else None

    def follows(self, wanted: list[str] | None, *args: object, **props: str) -> None:
        wait_until(lambda: self.hosts(*args, **props) == wanted, 10, f"hosts {wanted}")

    def redis_cli(self, *words: str) -> str:
        done = subprocess.run(
            ["redis-cli", "-p", str(self.port), *words],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    def packets(self, *raws: bytes, form: Form = Form.PACKET19) -> dict[int, Packet]:
        """The replies to these packets by their number."""
        parser = PacketParser(PacketLimits(), form)
        found: dict[int, Packet] = {}
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock:
            sock.sendall(b"".join(raws))
            while len(found) < len(raws):
                found |= {packet.opaque: packet for packet in parser.feed(sock.recv(65536))}
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="module")
def lookup(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lookup]:
    made = Lookup(tmp_path_factory.mktemp("lookup"), server.url)
    try:
        yield made.start()
    finally:
        made.end()


@pytest.fixture
def uri(request: pytest.FixtureRequest) -> str:
    """A service of the test's own."""
    return f"/service/{request.node.name}"


def test_redis_cli_registers_asks_and_unregisters(lookup: Lookup, uri: str) -> None:
    def ask(action: str, method: str, *args: object) -> Any:
        reply = json.loads(lookup.redis_cli("GET", request(method, *args, uri=action)))
        return reply["result"] if reply["ec"] == 200 else reply["ec"]

    member = "10.1.0.1:9?timeout=1000&version=2&weight=7"
    assert ask(ADMIN, "registerService", uri, member, "redis", "", {}) is True
    assert ask(ADMIN, "REGISTERSERVICE", uri, "10.1.0.2:9", "v1", "*", {"zone": "bj"}) is True
    both = ["10.1.0.1:9?timeout=1000&version=2", "10.1.0.2:9"]
    lookup.follows(both, uri, "", "")
    assert ask(LOOKUP, "getservice", uri, "redis", "") == {"hosts": both[:1], "uri": uri}
    assert lookup.hosts(uri, "v1", "*") == both[1:]
    assert ask(ADMIN, "unregisterService", uri, "10.1.0.1:9", "redis", "", {}) is True
    lookup.follows([], uri, "redis", "")
    assert lookup.hosts(uri, "", "") == both[1:]
    assert lookup.redis_cli("PING") == "PONG"
    assert json.loads(lookup.redis_cli("INFO"))["moa"]["recv"] > 0


def test_groups_fall_back_and_marks_are_heeded(
    lookup: Lookup, server: RedisServer, uri: str
) -> None:
    def register(member: str, group: str = "") -> None:
        reply = lookup.call("registerService", uri, member, "redis", group, {}, uri=ADMIN)
        assert reply["ec"] == 200, reply

    register("10.1.0.1:9")
    register("10.1.0.2:9", "blue")
    register("10.1.0.3:9?pre=1")
    lookup.follows(["10.1.0.2:9"], uri, "redis", "blue")
    lookup.follows(["10.1.0.1:9"], uri, "redis", "green")
    lookup.follows(["10.1.0.3:9"], uri, "redis", "", **{"moa.env.pre": "1"})
    register("10.1.0.4:9")
    lookup.follows(["10.1.0.1:9", "10.1.0.4:9"], uri, "redis", "")
    marks = keys.marks_key(ServiceKey(uri))
    with server.client() as direct:
        direct.hset(marks, f"{Address('10.1.0.1', 9)} drain", "1 me why")
        register("10.1.0.5:9")  # a change, so that the marks are read
        lookup.follows(["10.1.0.4:9", "10.1.0.5:9"], uri, "redis", "")
        for number in (4, 5):
            direct.hset(marks, f"10.1.0.{number}:9 maint", "1 me why")
        register("10.1.0.6:9?pre=1")
        lookup.follows(["10.1.0.1:9"], uri, "redis", "")


@pytest.mark.parametrize(
    ("body", "ec"),
    [
        (request("getService", "/service/none", "redis", "", uri=LOOKUP), 501),
        (request("getServices", "/service/x", "redis", "", uri=LOOKUP), 502),
        (request("getService", uri=LOOKUP), 302),
        (request("getService", 5, "redis", "", uri=LOOKUP), 302),
        (request("getService", "/service/x", "smtp", "", uri=LOOKUP), 302),
        (request("registerService", "/service/x", "db.example:5", "redis", "", uri=ADMIN), 302),
        (request("registerService", "/a b", "10.0.0.1:5", "redis", "", uri=ADMIN), 302),
        (request("registerService", "/service/x", "10.0.0.1:5", "redis", "", 7, uri=ADMIN), 302),
        (request("anything", uri="/service/else"), 501),
        ('{"params":{"m":"getService"}}', 401),
        ('{"action":"/service/lookup","params":{"m":"getService","args":{}}}', 302),
    ],
)
def test_what_cannot_be_answered_has_its_code(lookup: Lookup, body: str, ec: int) -> None:
    with Connection("127.0.0.1", lookup.port) as connection:
        reply = connection.call(body)
        assert reply["ec"] == ec, reply
        assert reply["em"]
        assert connection.command(b"PING") == b"+PONG\r\n"


def test_packets_of_both_forms_and_codecs(lookup: Lookup, uri: str) -> None:
    added = lookup.call("registerService", uri, "10.1.0.1:9", "redis", "", {}, uri=ADMIN)
    assert added["ec"] == 200
    lookup.follows(["10.1.0.1:9"], uri, "redis", "")
    body = request("getService", uri, "redis", "", uri=LOOKUP).encode()
    in_hessian = hessian.json_to_hessian(body, hessian.DEFAULT_LIMITS)
    replies = lookup.packets(
        encode(Cmd.REQ, 1, body),
        encode(Cmd.REQ, 2, in_hessian, extension=EXT_HESSIAN),
        encode(Cmd.PING, 3, b'{"timestamp":5}'),
        encode(Cmd.INFO, 4),
    )
    wanted = {"ec": 200, "em": "", "result": {"hosts": ["10.1.0.1:9"], "uri": uri}}
    assert json.loads(replies[1].body) == wanted
    assert json.loads(hessian.hessian_to_json(replies[2].body, hessian.DEFAULT_LIMITS)) == wanted
    assert (replies[3].cmd, replies[3].body) == (Cmd.PONG, b'{"timestamp":5}')
    assert replies[4].cmd is Cmd.INFO
    nine = lookup.packets(encode9(Cmd.REQ, 7, body), form=Form.PACKET9)
    assert json.loads(nine[7].body) == wanted


def test_a_pipeline_keeps_its_order(lookup: Lookup, uri: str) -> None:
    with Connection("127.0.0.1", lookup.port) as connection:
        connection.send(
            request("registerService", uri, "10.1.0.1:9", "redis", "", {}, uri=ADMIN),
            *(request("getService", f"/service/none{n}", "", "", uri=LOOKUP) for n in range(200)),
        )
        assert connection.reply()["result"] is True
        for n in range(200):
            assert f"/service/none{n} " in connection.reply()["em"]


def test_without_redis_it_answers_and_changes_nothing(server: RedisServer, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as own:
        lookup = Lookup(tmp_path / "lookup", own.url)
        try:
            lookup.start()
            lookup.call("registerService", DEMO, "10.1.0.1:9", "redis", "", {}, uri=ADMIN)
            lookup.follows(["10.1.0.1:9"], DEMO, "redis", "")
            copy = lookup.directory / "state/lookup.json"
            wait_until(lambda: copy.exists() and "10.1.0.1" in copy.read_text(), 10, "the copy")
            own.kill()
            assert lookup.hosts(DEMO, "redis", "") == ["10.1.0.1:9"]
            reply = lookup.call("registerService", DEMO, "10.1.0.2:9", "redis", "", {}, uri=ADMIN)
            assert reply["ec"] == 303
            assert "may be repeated" in reply["em"]
            lookup.end()
            lookup.start()
            assert lookup.hosts(DEMO, "redis", "") == ["10.1.0.1:9"], "from its copy on disk"
            own.start()

            def registers() -> bool:
                member = "10.1.0.2:9"
                reply = lookup.call("registerService", DEMO, member, "redis", "", {}, uri=ADMIN)
                return bool(reply["ec"] == 200)

            wait_until(registers, 10, "Redis is back")
            lookup.follows(["10.1.0.1:9", "10.1.0.2:9"], DEMO, "redis", "")
        finally:
            lookup.end()


def test_it_registers_itself_and_leaves_on_sigterm_without_a_lost_request(
    server: RedisServer, tmp_path: Path
) -> None:
    """What was sent before the end is answered, in order, and then the connection ends."""
    one = Lookup(tmp_path / "one", server.url, 'advertise = "127.0.0.1:7"\nheartbeat_s = 1\n')
    try:
        one.start()
        with server.client() as direct:
            own = keys.service_key(ServiceKey(LOOKUP))

            def listed() -> bool:
                members = direct.smembers(own)
                return any(member.startswith(b"127.0.0.1:7") for member in members)

            wait_until(listed, 10, "it is registered")
            with (
                Connection("127.0.0.1", one.port) as busy,
                Connection("127.0.0.1", one.port) as idle,
            ):
                assert idle.command(b"PING") == b"+PONG\r\n"
                member: tuple[object, ...] = ("10.1.0.1:9", "redis", "", {})
                uris = [f"/service/leaving{n}" for n in range(200)]
                busy.send(*(request("registerService", u, *member, uri=ADMIN) for u in uris))
                one.process.send_signal(signal.SIGTERM)
                for _ in uris:
                    assert busy.reply()["result"] is True
                for connection in (busy, idle):
                    assert connection.sock.recv(1) == b"", "ended in good order"
            assert not listed()
            assert one.process.wait(timeout=10) == 0
    finally:
        one.end()


def test_more_clients_than_allowed_wait_and_are_served(server: RedisServer, tmp_path: Path) -> None:
    few = Lookup(tmp_path / "few", server.url, "max_connections = 4\n")
    try:
        few.start()
        first = [Connection("127.0.0.1", few.port) for _ in range(4)]
        for connection in first:
            assert connection.command(b"PING") == b"+PONG\r\n"
        with Connection("127.0.0.1", few.port) as late:
            late.sock.sendall(b"PING\r\n")
            late.sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                late.sock.recv(1, socket.MSG_PEEK)
            late.sock.settimeout(10)
            for connection in first:
                connection.close()
            assert late.sock.recv(7) == b"+PONG\r\n"
    finally:
        few.end()


def test_through_the_mesh_one_of_two_dies(lab: Lab) -> None:
    """An agent routes /service/lookup as any service: a dead lookup is no error."""
    a, b, c, r = (lab.add_node(name) for name in "abcr")
    redis_server = r.start(
        "redis", "redis-server", "--bind", r.ip4, "--protected-mode", "no", "--save", ""
    )
    redis_server.wait_line("Ready to accept connections")
    url = f"redis://{r.ip4}:6379/0"
    lookups = {}
    for node in (b, c):
        config = node.directory / "lookup.toml"
        config.write_text(
            f'[agent]\nstate_dir = "{node.directory}/state"\n[registry]\nkind = "redis"\n'
            f'url = "{url}"\n[lookup]\nlisten = "{node.ip4}:15010"\n'
            f'advertise = "{node.ip4}:15010"\nheartbeat_s = 1\n'
        )
        lookups[node.name] = node.python("lookup", "-m", "installer.lookup.main", str(config))
        lookups[node.name].wait_line('"ready"')
    agent = start_agent(a, f'kind = "redis"\nurl = "{url}"')
    agent.mesh_on()
    services = lambda: agent.status()["registry"]["instances"] == 4  # noqa: E731
    wait_until(services, 10, "both lookups, under both names")
    body = request("getService", LOOKUP, "redis", "", uri=LOOKUP)

    def ask(count: int) -> list[int]:
        codes = []
        for _ in range(count):
            with Connection(b.ip4, 15010) as connection:
                codes.append(connection.call(body)["ec"])
        return codes

    assert set(a.do(lambda: ask(20))) == {200}
    lookups["b"].kill()
    assert set(a.do(lambda: ask(40))) == {200}
