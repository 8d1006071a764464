"""Each request goes where its service is: services, groups, fallbacks, and what cannot be had."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from interceptor.cgroup import Cgroup
from tests.e2e.clients.raw import Connection, call, call_each, frame, names, request
from tests.support.agents import Agent, start_agent, start_service, static_registry
from tests.support.lab import Lab, LabNode, Running, wait_until

pytestmark = pytest.mark.e2e

NOBODY = "10.77.0.99"
HUNG_MS = 400
PEER_SERVICE = str(Path(__file__).parent / "clients/peer_service.py")


@dataclass(slots=True)
class Mesh:
    """The caller on `a`; services on `b` and `c`."""

    a: LabNode
    b: LabNode
    c: LabNode
    agent: Agent
    hung: Running
    registry: Path
    services: dict[str, list[str]]
    whole: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.whole = self.counts()

    @property
    def outside(self) -> Cgroup:
        """On node A, but not in the mesh."""
        return Cgroup(f"/{self.a.lab.id}/outside")

    def restore(self) -> None:
        """Put the registry back, and wait until the agent has followed."""
        static_registry(self.registry, self.services)
        wait_until(lambda: self.counts() == self.whole, 10, "the registry as it was")

    def counts(self) -> tuple[int, int]:
        """Of services and of instances that the agent knows."""
        registry = self.agent.status()["registry"]
        return registry["services"], registry["instances"]

    def names(self, uri: str, count: int = 20, *, pre: bool = False) -> Counter[str]:
        """Who answers on node A, whatever was dialled."""
        props = {"moa.env.pre": "1"} if pre else {}
        host, bodies = self.b.ip4, [request("whoami", uri=uri, **props)] * count
        replies = self.a.do(lambda: call_each(host, 5000, bodies))
        assert {reply["ec"] for reply in replies} == {200}, replies
        return Counter(reply["result"]["name"] for reply in replies)

    def reached(self, uri: str, wanted: set[str]) -> set[str]:
        """Who answers, until each of `wanted` has: one that was slow just now is spared a while."""
        seen: set[str] = set()

        def ask() -> bool:
            seen.update(self.names(uri))
            return seen >= wanted

        wait_until(ask, 10, f"answers of {wanted}")
        return seen


@pytest.fixture(scope="module")
def mesh(lab: Lab) -> Mesh:
    a, b, c = (lab.add_node(name) for name in "abc")
    for node in (b, c):
        start_service(node, 5000, name=node.name)
    start_service(b, 5001, "/service/other", "other")
    start_service(c, 5002, name="grouped")
    start_service(c, 5003, name="prerelease")
    hung = start_service(b, 5005, "/service/hung", "hung")
    old = b.python("peer-old", PEER_SERVICE, b.ip4, "5006", "old")
    old.wait_line("ready")
    demo = [f"{b.ip4}:5000", f"{c.ip4}:5000", f"{c.ip4}:5003?pre=1"]
    services = {
        "/service/demo": demo,
        "/service/demo#g1": [f"{c.ip4}:5002"],
        "/service/other": [f"{b.ip4}:5001"],
        "/service/only-pre": [f"{c.ip4}:5003?pre=1"],
        "/service/down": [f"{b.ip4}:5998", f"{c.ip4}:5998"],
        "/service/gone": [f"{NOBODY}:5000"],
        "/service/hung": [f"{b.ip4}:5005?timeout={HUNG_MS}"],
        "/service/old": [f"{b.ip4}:5006"],
        "/service/empty": [],
    }
    registry = lab.directory / "services.toml"
    agent = start_agent(a, static_registry(registry, services))
    agent.mesh_on()
    return Mesh(a, b, c, agent, hung, registry, services)


def test_two_services_alternate_on_one_connection(mesh: Mesh) -> None:
    bodies = [request("whoami"), request("whoami", uri="/service/other")] * 20
    replies = mesh.a.do(lambda: call_each(mesh.b.ip4, 5000, bodies))
    seen = [reply["result"]["name"] for reply in replies]
    assert set(seen[0::2]) <= {"b", "c"}
    assert set(seen[1::2]) == {"other"}


def test_two_services_alternate_in_one_pipeline(mesh: Mesh) -> None:
    def pipeline() -> list[str]:
        with Connection(NOBODY, 5000) as connection:
            bodies = [request("whoami"), request("whoami", uri="/service/other")] * 100
            connection.send(*bodies)
            return [connection.reply()["result"]["name"] for _ in bodies]

    seen = mesh.a.do(pipeline)
    assert set(seen[0::2]) == {"b", "c"}
    assert set(seen[1::2]) == {"other"}


def test_an_old_server_is_never_pipelined_to(mesh: Mesh) -> None:
    """Sixteen clients that pipeline share its connections; each carries one request at a time."""

    def pipelines() -> dict[str, Any]:
        connections = [Connection(NOBODY, 5000) for _ in range(16)]
        for connection in connections:
            connection.send(*[request("x", uri="/service/old")] * 20)
        replies = [c.reply() for c in connections for _ in range(20)]
        for connection in connections:
            connection.close()
        last: dict[str, Any] = replies[-1]["result"]
        return last

    result = mesh.a.do(pipelines)
    assert result["pipelined"] == 0
    assert 1 <= result["connections"] <= 16


def test_a_service_is_added_while_a_connection_is_open(mesh: Mesh) -> None:
    """The connection that got 501 before gets the service, without a new connect()."""
    path, services = mesh.registry, mesh.services
    more = services | {"/service/late": [f"{mesh.b.ip4}:5000"]}

    def follow() -> dict[str, Any]:
        body = request("whoami", uri="/service/late")
        with Connection(NOBODY, 5000) as connection:
            before = connection.call(body)
            static_registry(path, more)
            start_s = time.monotonic()
            wait_until(lambda: "not in the registry" not in connection.call(body)["em"], 10, "late")
            return {
                "before": before,
                "after": connection.call(body),
                "known": connection.call(request("whoami")),
                "took_s": time.monotonic() - start_s,
            }

    try:
        seen = mesh.a.do(follow)
    finally:
        mesh.restore()
    assert seen["before"]["ec"] == 501
    # It reached the instance, whose own word it is that it serves something else.
    assert seen["after"]["em"] == "service /service/late is not served here, only /service/demo"
    assert seen["known"]["ec"] == 200
    print(f"a new service was routed {seen['took_s']:.2f} s after the file had changed")


def test_an_instance_is_removed_while_it_answers(mesh: Mesh) -> None:
    """What is under way is finished; what comes after goes elsewhere, on the same connection."""
    path, services = mesh.registry, mesh.services
    less = services | {"/service/demo": [f"{mesh.c.ip4}:5000"]}

    def follow() -> list[Any]:
        slow = [Connection(NOBODY, 5000) for _ in range(4)]
        for connection in slow:
            connection.send(request("sleep", 1500))
        with Connection(NOBODY, 5000) as connection:
            assert connection.call(request("echo", 1))["ec"] == 200
            static_registry(path, less)
            body = [request("whoami")] * 12
            wait_until(
                lambda: {connection.call(b)["result"]["name"] for b in body} == {"c"}, 10, "only c"
            )
        return [connection.reply()["ec"] for connection in slow]

    try:
        assert mesh.a.do(follow) == [200] * 4
    finally:
        mesh.restore()


def test_group_and_its_fallback(mesh: Mesh) -> None:
    assert mesh.names("/service/demo#g1").keys() == {"grouped"}
    assert mesh.reached("/service/demo#unknown", {"b", "c"}) == {"b", "c"}
    assert mesh.reached("/service/demo", {"b", "c"}) == {"b", "c"}


def test_pre_release_instances(mesh: Mesh) -> None:
    assert mesh.names("/service/demo", pre=True).keys() == {"prerelease"}
    assert mesh.names("/service/other", pre=True).keys() == {"other"}
    assert mesh.reached("/service/demo", {"b", "c"}) == {"b", "c"}


def test_ordinary_callers_never_reach_a_pre_release(mesh: Mesh) -> None:
    reply = mesh.a.do(lambda: call(NOBODY, 5000, request("whoami", uri="/service/only-pre")))
    assert reply["ec"] == 501
    assert "pre=1" in reply["em"]


def test_unknown_service_goes_to_the_dialled_address(mesh: Mesh) -> None:
    """Whoever serves there answers: here the sample service, that it does not serve this."""
    body = request("whoami", uri="/service/unknown")
    routed = mesh.a.do(lambda: call(mesh.b.ip4, 5001, body))
    assert routed == mesh.a.do(lambda: call(mesh.b.ip4, 5001, body), cgroup=mesh.outside)
    assert routed["em"] == "service /service/unknown is not served here, only /service/other"


@pytest.mark.parametrize(("host", "most_s"), [("10.77.0.2:5997", 0.3), (f"{NOBODY}:5000", 0.9)])
def test_unknown_service_at_a_dead_address(mesh: Mesh, host: str, most_s: float) -> None:
    address, _, port = host.partition(":")
    reply, took_s = _timed(mesh, address, int(port), "/service/unknown")
    assert reply["ec"] == 501
    assert "/service/unknown is not in the registry" in reply["em"]
    assert took_s < most_s


def _timed(mesh: Mesh, host: str, port: int, uri: str) -> tuple[dict[str, Any], float]:
    def action() -> list[Any]:
        start_s = time.monotonic()
        return [call(host, port, request("whoami", uri=uri)), time.monotonic() - start_s]

    reply, took_s = mesh.a.do(action)
    return reply, took_s


@pytest.mark.parametrize(("uri", "most_s"), [("/service/down", 0.3), ("/service/gone", 0.9)])
def test_no_instance_answers(mesh: Mesh, uri: str, most_s: float) -> None:
    reply, took_s = _timed(mesh, mesh.b.ip4, 5000, uri)
    assert reply["ec"] == 303
    assert reply["em"].startswith(f"{uri}: ")
    assert took_s < most_s


def test_a_service_without_instances(mesh: Mesh) -> None:
    """As an unknown one: the dialled address may be an instance that is about to register."""
    reply, took_s = _timed(mesh, mesh.b.ip4, 5000, "/service/empty")
    assert reply["em"] == "service /service/empty is not served here, only /service/demo"
    assert took_s < 0.3


def test_an_instance_that_hangs(mesh: Mesh) -> None:
    """304 at the member's own timeout; the connection goes on, and no late reply meets it."""
    echo = request("echo", "late", uri="/service/hung")
    pid = mesh.hung.pid

    def action() -> dict[str, Any]:
        with Connection(mesh.b.ip4, 5000) as connection:
            assert connection.call(echo)["ec"] == 200
            os.kill(pid, signal.SIGSTOP)
            try:
                start_s = time.monotonic()
                hung = connection.call(echo)
                took_s = time.monotonic() - start_s
                other = connection.call(request("whoami"))
            finally:
                os.kill(pid, signal.SIGCONT)
            again = [
                connection.call(request("echo", number, uri="/service/hung"))
                for number in range(10)
            ]
        return {"hung": hung, "took_s": took_s, "other": other, "again": again}

    seen = mesh.a.do(action)
    assert seen["hung"]["ec"] == 304
    assert f"{mesh.b.ip4}:5005" in seen["hung"]["em"]
    assert HUNG_MS / 1000 <= seen["took_s"] < HUNG_MS / 1000 + 0.3, seen["took_s"]
    assert seen["other"]["ec"] == 200
    assert [reply["result"] for reply in seen["again"]] == list(range(10))


@pytest.mark.parametrize(
    ("body", "ec"),
    [
        (request("none"), 502),
        (request("fail", "grüß \u0000"), 503),
        (request("big", -1), 503),
        (request("echo", "ü" * 1000), 200),
        (request("big", 300_000), 200),
    ],
)
def test_replies_of_the_service_pass_byte_for_byte(mesh: Mesh, body: str, ec: int) -> None:
    def raw() -> str:
        with Connection(mesh.b.ip4, 5000) as connection:
            connection.send(body)
            return connection.read().decode("latin-1")

    routed, direct = mesh.a.do(raw), mesh.a.do(raw, cgroup=mesh.outside)
    assert routed == direct
    assert json.loads(routed.split("\r\n", 1)[1])["ec"] == ec


def test_business_errors_do_not_count_against_an_instance(mesh: Mesh) -> None:
    bodies = [request("fail", uri="/service/other")] * 20
    replies = mesh.a.do(lambda: call_each(mesh.b.ip4, 5000, bodies))
    assert {reply["ec"] for reply in replies} == {503}
    services = mesh.agent.moactl("service", "show", "/service/other")["services"]
    assert services[0]["instances"][0]["health"]["state"] == "healthy"


def test_a_real_redis_behind_the_mesh_is_what_it_was(mesh: Mesh) -> None:
    """Neither MOA nor registered: bytes go to the address that was dialled, and back."""
    server = mesh.c.start(
        "redis", "redis-server", "--bind", mesh.c.ip4, "--port", "6379", "--save", "",
        "--protected-mode", "no",
    )  # fmt: skip
    server.wait_line("Ready to accept connections")

    def use() -> dict[str, Any]:
        with redis.Redis(host=mesh.c.ip4, port=6379) as client:
            blob = bytes(range(256)) * 8192
            client.set("blob", blob)
            client.rpush("list", 1, 2, 3)
            with client.pubsub() as pubsub:
                pubsub.subscribe("news")
                pubsub.get_message(timeout=5)
                client.publish("news", "hello")
                heard = pubsub.get_message(timeout=5)
            assert heard is not None
            pipeline = client.pipeline()
            for number in range(1000):
                pipeline.set("n", number)
            return {
                "blob": client.get("blob") == blob,
                "list": [item.decode() for item in client.lrange("list", 0, -1)],
                "heard": heard["data"].decode(),
                "pipelined": len(pipeline.execute()),
                "missing": client.get("missing"),
                "info": client.info("server")["redis_mode"],
            }

    assert mesh.a.do(use) == {
        "blob": True,
        "list": ["1", "2", "3"],
        "heard": "hello",
        "pipelined": 1000,
        "missing": None,
        "info": "standalone",
    }
    moa = mesh.a.do(lambda: names(mesh.c.ip4, 6379))  # a known service, at the address of a Redis
    assert set(moa) == {"b", "c"}


def test_two_kinds_of_traffic_in_one_write(mesh: Mesh) -> None:
    """A MOA request, then what is not MOA, sent at once: replies stay in order."""

    def talk() -> list[str]:
        with Connection(mesh.b.ip4, 5000) as connection:
            connection.sock.sendall(frame(request("echo", 1)) + b"PING\r\n" + b"NONSENSE\r\n")
            return [connection.read().decode() for _ in range(3)]

    first, ping, nonsense = mesh.a.do(talk)
    assert '"result": 1' in first
    assert ping == "+PONG\r\n"
    assert nonsense == "-ERR unknown command 'NONSENSE'\r\n"
