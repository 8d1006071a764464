"""Unmodified clients of five libraries reach healthy instances, whatever address they dial."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.clients.raw import Connection, frame, request
from tests.support.agents import Agent, start_agent, start_service, static_registry
from tests.support.lab import Lab, LabNode

pytestmark = pytest.mark.e2e

HERE = Path(__file__).parent
PORT = 5000
DEAD_PORT = 5999
MIB = 1 << 20
NOBODY = "10.77.0.99"
NOBODY6 = "fd77::99"


@dataclass(frozen=True, slots=True)
class Mesh:
    """Callers on `a` and `e`, whose agents pipeline 1 and 32 deep; instances on `b` and `c`."""

    a: LabNode
    e: LabNode
    b: LabNode
    c: LabNode
    agent: Agent

    def target(self, name: str) -> tuple[str, str]:
        """Host and port that a client dials: an instance, a port or a host that is dead."""
        known = {
            "alive": (self.b.ip4, PORT),
            "alive6": (self.b.ip6, PORT),
            "dead": (self.b.ip4, DEAD_PORT),
            "dead6": (self.b.ip6, DEAD_PORT),
            "mapped": (f"::ffff:{self.b.ip4}", PORT),
            "gone": (NOBODY, PORT),
            "gone6": (NOBODY6, PORT),
        }
        host, port = known[name]
        return host, str(port)


@pytest.fixture(scope="module")
def mesh(lab: Lab) -> Mesh:
    a, b, c, e = (lab.add_node(name) for name in "abce")
    for node in (b, c):
        for host in (node.ip4, node.ip6):
            start_service(node, PORT, name=node.name, host=host)
    instances = [f"{node.ip4}:{PORT}" for node in (b, c)]
    instances += [f"[{node.ip6}]:{PORT}" for node in (b, c)]
    registry = static_registry(lab.directory / "services.toml", {"/service/demo": instances})
    agent = start_agent(a, registry)
    agent.mesh_on()
    start_agent(e, registry, "[limits]\npipeline_depth = 32\n").mesh_on()
    return Mesh(a, e, b, c, agent)


@pytest.fixture(scope="module")
def hiredis(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The C client, compiled as its users do."""
    program = tmp_path_factory.mktemp("hiredis") / "hiredis_sync"
    source = str(HERE / "clients/hiredis_sync.c")
    subprocess.run(
        ["gcc", "-O1", "-Wall", "-Werror", "-o", str(program), source, "-lhiredis"], check=True
    )
    return str(program)


Command = list[str]
REDIS_PY = [
    "default", "resp2", "resp3", "decode", "pool", "pipeline", "asyncio", "asyncio-pipeline",
]  # fmt: skip
CLIENTS = [
    *(f"redis-py {mode}" for mode in REDIS_PY),
    *(f"redis-py-python-parser {mode}" for mode in ("default", "resp2", "asyncio")),
    *(f"hiredis {mode}" for mode in ("sync", "pipeline")),
    *(f"ioredis {mode}" for mode in ("default", "lazy", "pipeline")),
    *(f"phpredis {mode}" for mode in ("connect", "pconnect", "pipeline")),
    *(f"redis-cli {mode}" for mode in ("-2", "-3")),
]
OVER_IPV6 = [
    "redis-py default", "redis-py resp2", "redis-py asyncio", "hiredis sync", "ioredis default",
    "phpredis connect", "redis-cli -3",
]  # fmt: skip
# Without the hiredis package redis-py parses replies itself; None in sys.modules is "not there".
WITHOUT_HIREDIS = (
    "import runpy, sys; sys.modules['hiredis'] = None; sys.argv.pop(0); "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


def command(client: str, host: str, port: str, hiredis: str) -> Command:
    """The command line of a client; see `clients/__init__.py` for what it does."""
    library, _, mode = client.partition(" ")
    script = str(HERE / "clients/redis_py.py")
    programs: dict[str, Command] = {
        "redis-py": [sys.executable, script],
        "redis-py-python-parser": [sys.executable, "-c", WITHOUT_HIREDIS, script],
        "hiredis": [hiredis],
        "ioredis": ["node", str(HERE / "node/client.js")],
        "phpredis": ["php", str(HERE / "clients/phpredis.php")],
    }
    if library == "redis-cli":
        return ["redis-cli", mode, "-h", host, "-p", port]
    return [*programs[library], host, port, mode]


Call = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def call(mesh: Mesh, hiredis: str) -> Call:
    """Run one client on node A; the replies to its requests."""

    def run(client: str, target: str, requests: list[str]) -> list[dict[str, Any]]:
        lines = requests
        if client.startswith("redis-cli"):
            # As typed at its prompt: single quotes take everything but themselves.
            lines = [f"GET '{line}'" for line in requests]
        argv = command(client, *mesh.target(target), hiredis)
        done = mesh.a.call(*argv, input="".join(f"{line}\n" for line in lines))
        assert done.returncode == 0, f"{client}: exit {done.returncode}: {done.stderr[-2000:]}"
        replies = [json.loads(line) for line in done.stdout.splitlines() if line]
        if len(replies) != len(requests):  # `assert` would print megabytes
            pytest.fail(f"{client}: {len(replies)} replies: {done.stdout[-999:]}{done.stderr}")
        return replies

    return run


@pytest.mark.parametrize("target", ["alive", "dead"])
@pytest.mark.parametrize("client", CLIENTS)
def test_client_reaches_all_instances(call: Call, client: str, target: str) -> None:
    replies = call(client, target, [request("whoami")] * 40)
    assert {reply["ec"] for reply in replies} == {200}
    assert {reply["result"]["name"] for reply in replies} == {"b", "c"}


@pytest.mark.parametrize("target", ["alive6", "dead6"])
@pytest.mark.parametrize("client", OVER_IPV6)
def test_client_reaches_all_instances_over_ipv6(call: Call, client: str, target: str) -> None:
    test_client_reaches_all_instances(call, client, target)


@pytest.mark.parametrize("target", ["gone", "gone6"])
@pytest.mark.parametrize(
    "client", ["redis-py default", "ioredis default", "phpredis connect", "redis-cli -3"]
)
def test_client_that_dials_a_host_that_is_gone(call: Call, client: str, target: str) -> None:
    """Its greeting waits for the connect timeout: that address is no instance that we know."""
    test_client_reaches_all_instances(call, client, target)


@pytest.mark.parametrize("client", ["redis-py default", "hiredis sync", "ioredis default"])
def test_client_that_dials_an_ipv4_address_over_ipv6(call: Call, client: str) -> None:
    """As Java does it for every IPv4 address."""
    test_client_reaches_all_instances(call, client, "mapped")


ECHOED = ["grüß dich", "日本語 🙂", 'quote " backslash \\ nul \x00', "\u2028line", ""]


@pytest.mark.parametrize("client", CLIENTS)
def test_unicode_and_large_bodies(call: Call, client: str) -> None:
    sizes = [64 * 1024, 65_537] if client.startswith("redis-cli") else [65_537, MIB, 2 * MIB - 4096]
    wanted = [*ECHOED, *("x" * size for size in sizes), "after"]
    replies = call(client, "alive", [request("echo", text) for text in wanted])
    assert [reply["result"] for reply in replies] == wanted


def test_redis_cli_sends_two_megabytes_from_stdin(mesh: Mesh) -> None:
    body = request("echo", "")
    text = "x" * (2 * MIB - len(body))
    body = request("echo", text)
    assert len(body) == 2 * MIB
    done = mesh.a.call("redis-cli", "-h", mesh.b.ip4, "-p", str(PORT), "-x", "GET", input=body)
    assert len(json.loads(done.stdout)["result"]) == len(text)


@pytest.mark.parametrize("client", [c for c in CLIENTS if c.endswith(("pipeline", " -2"))])
def test_pipeline_of_a_thousand_keeps_its_order(call: Call, client: str) -> None:
    replies = call(client, "dead", [request("echo", number) for number in range(1000)])
    assert [reply["result"] for reply in replies] == list(range(1000))


def test_redis_cli_pipe_mode(mesh: Mesh) -> None:
    """`--pipe` sends everything before it reads, then waits for the reply to its own ECHO."""
    raw = b"".join(frame(request("echo", number)) for number in range(1000)).decode()
    done = mesh.a.call("redis-cli", "-h", NOBODY, "-p", str(PORT), "--pipe", input=raw)
    assert "errors: 0, replies: 1000" in done.stdout, done


@pytest.mark.parametrize(("caller", "least_s", "most_s"), [("a", 1.2, 30.0), ("e", 0.05, 0.8)])
def test_pipeline_depth(mesh: Mesh, caller: str, least_s: float, most_s: float) -> None:
    """One connection has as many requests under way as the depth says, replies in order."""
    waits = [60 - number % 3 * 20 for number in range(32)]  # the later ones are done sooner

    def pipeline() -> dict[str, Any]:
        import time

        with Connection(mesh.b.ip4, PORT) as connection:
            connection.call(request("whoami"))
            start_s = time.monotonic()
            connection.send(*(request("sleep", wait) for wait in waits))
            replies = [connection.reply()["result"] for _ in waits]
            return {"replies": replies, "took_s": time.monotonic() - start_s}

    node = mesh.a if caller == "a" else mesh.e
    seen = node.do(pipeline)
    assert seen["replies"] == waits
    assert least_s < seen["took_s"] < most_s, seen["took_s"]


def test_pipeline_of_large_requests_on_a_deep_agent(mesh: Mesh) -> None:
    def pipeline() -> list[int]:
        with Connection(mesh.b.ip4, PORT) as connection:
            sizes = [300_000 - number * 1000 for number in range(40)]
            bodies = [request("big", size) for size in sizes]
            connection.send(*bodies)
            return [len(connection.reply()["result"]) for _ in sizes]

    assert mesh.e.do(pipeline) == [300_000 - number * 1000 for number in range(40)]


def test_half_close_is_answered_to_the_end(mesh: Mesh) -> None:
    """A client that sends everything, ends its side, and then reads, as `nc -N` does."""

    def talk() -> list[Any]:
        with Connection(mesh.b.ip4, PORT) as connection:
            connection.send(*(request("echo", number) for number in range(100)))
            connection.sock.shutdown(socket.SHUT_WR)
            replies = [connection.reply()["result"] for _ in range(100)]
            return [replies, connection.sock.recv(1).decode()]

    assert mesh.a.do(talk) == [list(range(100)), ""]


def test_agent_served_all_of_them(mesh: Mesh) -> None:
    status = mesh.agent.status()
    assert status["requests"]["total"] > 1000
    assert status["requests"]["in_flight"] == 0
