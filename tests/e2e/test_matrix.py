"""Every protocol calls every protocol, with an agent on both sides, on one, and on none.

A row of the matrix is a caller on node A and a service on node B. The caller is in the mesh or
not; the service has two ports, of which B's agent steers one. With both in the mesh, their
agents speak the mesh protocol to each other. Where caller and service speak alike, the service
gets the very bytes that were sent; where they do not, the caller's agent translates, and
without one they do not understand each other, as without us.

The table at the end of a run says of each cell what was seen: `=` the same bytes arrived,
`~` a translated body, `-` does not apply: without an agent at the caller nobody translates,
and how long to wait is the caller's own business. `empty` is a request without a single byte of
body: it names no service, so the caller's agent refuses it with 401, as a service does that
gets it where the caller has no agent.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from interceptor.cgroup import Cgroup
from proxy.net.sockets import set_reset_on_close
from proxy.wire.mesh import BodyCodec, RequestHeader, joined
from proxy.wire.moa import EMPTY_REQUEST
from tests.e2e.clients.raw import Connection
from tests.e2e.conftest import Measured
from tests.samples import hessian_lite
from tests.samples.turbo_client import TurboClient
from tests.support.agents import Agent, start_agent, start_service, static_registry
from tests.support.lab import Lab, LabNode, wait_until
from tests.support.mesh_peer import MeshPeer

pytestmark = pytest.mark.e2e

FORMS = {
    "resp": {},
    "turbo-json": {"form": "19", "codec": "json"},
    "turbo-hessian": {"form": "19", "codec": "hessian2"},
    "turbo9": {"form": "9", "codec": "json"},
}
MEMBERS = {
    "resp": "proto=resp",
    "turbo-json": "proto=turbo",
    "turbo-hessian": "proto=turbo&codec=hessian2",
    "turbo9": "proto=turbo9",
}
UNREADABLE = {
    "resp": (401, "not a MOA request"),
    "turbo-json": (401, "not a MOA request"),
    "turbo-hessian": (302, "no Hessian 2"),
    "turbo9": (401, "not a MOA request"),
}
"""What a service answers to a body that is no request in its codec."""
PLACES = {
    "both meshed": (True, True),
    "caller only": (True, False),
    "callee only": (False, True),
    "neither": (False, False),
}
PLAIN_PORT, STEERED_PORT = 5000, 5100
DEAD = 50
"""Added to a port: nobody listens there."""
TIMEOUT_MS = 20_000
"""python-hessian takes seconds for 2 MiB on a busy machine."""
SHORT_MS = 400
TEXT = 'grüß \u0000 中文 😀 \\ "'
MANY = 1000
CONNECTIONS = 20
"""Over which MANY requests are sent at once."""
COLUMNS = (
    "success",
    "business",
    "transport",
    "timeout",
    "cancel",
    "large",
    "empty",
    "concurrent",
)
ARGUMENTS: list[Any] = [TEXT, [1, -(2**40), 2.5, True, None, {"größe": []}]]
CANCELLED_MS = 60_000
"""Longer than the tests take: who is served so long can be seen to have lost its caller."""
LARGE = 2 * 1024 * 1024 - 4096
"""python-hessian takes seconds for it: where the way is that of another cell, less will do."""


def uri_of(callee: str, *, is_steered: bool, is_dead: bool = False) -> str:
    return f"/service/{callee}-{'steered' if is_steered else 'plain'}{'-dead' * is_dead}"


def port_of(callee: str, *, is_steered: bool, is_dead: bool = False) -> int:
    first = STEERED_PORT if is_steered else PLAIN_PORT
    return first + list(FORMS).index(callee) + DEAD * is_dead


@dataclass(frozen=True, slots=True)
class Mesh:
    a: LabNode
    b: LabNode
    agents: tuple[Agent, Agent]

    def meet(self) -> None:
        """Call every steered service until A's agent speaks the mesh protocol to its agent."""

        def greet() -> None:
            for callee in FORMS:
                uri = uri_of(callee, is_steered=True)
                port = port_of(callee, is_steered=True)
                assert Caller("resp", self.b.ip4, port).call(uri, "echo", 1)["ec"] == 200

        def confirmed() -> bool:
            self.a.do(greet)
            peers = self.agents[0].conns()["peers"]
            states = [peer["state"] for peer in peers]
            return states.count("confirmed") == len(FORMS)

        wait_until(confirmed, 10, "mesh connections to every service's agent")

    def counts(self) -> dict[str, int]:
        """What A's agent has counted of the mesh."""
        counted: dict[str, int] = self.agents[0].status()["mesh"]
        return counted

    def in_flight(self) -> int:
        """Requests under way at either agent."""
        return sum(agent.status()["requests"]["in_flight"] for agent in self.agents)

    def sockets(self, state: str, port: int) -> set[str]:
        """A service's connections in a state."""
        listed = self.b.call("ss", "-tnH", "state", state, "sport", "=", f":{port}")
        return set(listed.stdout.splitlines())

    def wait_cancelled(
        self, callee: str, port: int, before: dict[str, set[str]], *, is_meshed: bool
    ) -> str:
        """Until nobody works any more for a caller that has reset its connection; how."""

        def new(state: str) -> set[str]:
            return self.sockets(state, port) - before[state]

        if not is_meshed:
            wait_until(lambda: not new("established"), 10, "a reset came through")
            return "reset"
        if callee == "resp":
            wait_until(lambda: new("close-wait"), 10, "hung up on")
            return "closed"
        # Many requests share the connection: this one is forgotten.
        wait_until(lambda: not self.in_flight(), 10, "nothing is under way")
        return "forgotten"

    def caller(self, *, is_meshed: bool) -> Cgroup:
        return self.a.services if is_meshed else Cgroup(f"/{self.a.lab.id}/outside")


@pytest.fixture(scope="module")
def mesh(lab: Lab) -> Mesh:
    a, b = lab.add_node("a"), lab.add_node("b")
    services: dict[str, list[str]] = {}
    steered: list[int] = []
    for callee in FORMS:
        for is_steered in (False, True):
            _start(b, callee, is_steered=is_steered)
            for is_dead in (False, True):
                port = port_of(callee, is_steered=is_steered, is_dead=is_dead)
                uri = uri_of(callee, is_steered=is_steered, is_dead=is_dead)
                meshed = "&proto=mesh" * is_steered
                member = f"{b.ip4}:{port}?{MEMBERS[callee]}{meshed}&timeout={TIMEOUT_MS}"
                services[uri] = [member]
                services[f"{uri}#short"] = [member.replace(str(TIMEOUT_MS), str(SHORT_MS))]
                steered += [port] if is_steered else []
    registry = static_registry(lab.directory / "services.toml", services)
    inbound = f"[inbound]\nregistered = false\nports = {steered}\n"
    agents = (start_agent(a, registry), start_agent(b, registry, inbound))
    for agent in agents:
        agent.mesh_on()
    made = Mesh(a, b, agents)
    made.meet()
    return made


def _start(node: LabNode, callee: str, *, is_steered: bool) -> None:
    uri = uri_of(callee, is_steered=is_steered)
    port = port_of(callee, is_steered=is_steered)
    if callee == "resp":
        start_service(node, port, uri)
        return
    options = [f"--{name}={value}" for name, value in FORMS[callee].items()]
    process = node.python(
        f"service-{callee}-{port}",
        *("-m", "tests.samples.turbo_service", "--host", node.ip4, "--port", str(port)),
        *("--service", uri, *options),
    )
    process.wait_line("ready")


class Caller:
    """One connection of a client, whatever it speaks."""

    def __init__(self, speaks: str, host: str, port: int) -> None:
        self._asked: list[int] = []
        self._resp = Connection(host, port, 30.0) if speaks == "resp" else None
        self._turbo = (
            TurboClient(host, port, timeout_s=30.0, **FORMS[speaks]) if speaks != "resp" else None
        )

    def encode(self, uri: str, method: str, *args: Any) -> bytes:
        value = {"action": uri, "params": {"m": method, "args": list(args)}}
        if self._turbo is not None:
            return self._turbo.encode(value)
        return json.dumps(value, ensure_ascii=False).encode()

    def exchange(self, *bodies: bytes) -> list[bytes]:
        """Send everything at once; the bodies of the replies, in the order of the requests."""
        self.send(*bodies)
        return self.receive(len(bodies))

    def send(self, *bodies: bytes) -> None:
        if self._resp is not None:
            self._resp.send(*[body.decode() for body in bodies])
        elif self._turbo is not None:
            self._asked += [self._turbo.send(body) for body in bodies]

    def receive(self, count: int) -> list[bytes]:
        """The replies to all that was sent."""
        if self._resp is not None:
            return [self._resp.read().split(b"\r\n", 1)[1][:-2] for _ in range(count)]
        assert self._turbo is not None
        replies = dict(self._turbo.reply() for _ in range(count))
        asked, self._asked = self._asked, []
        assert sorted(replies) == asked
        return [replies[number] for number in asked]

    def reset(self) -> bool:
        """Hang up without a farewell: a FIN alone may be half of a close."""
        set_reset_on_close(self.sock)
        (self._resp or self._turbo).close()  # type: ignore[union-attr]  # one of them is there
        return True

    def decode(self, body: bytes) -> dict[str, Any]:
        if self._turbo is not None:
            return self._turbo.decode(body)
        reply: dict[str, Any] = json.loads(body)
        return reply

    def call(self, uri: str, method: str, *args: Any) -> dict[str, Any]:
        return self.decode(self.exchange(self.encode(uri, method, *args))[0])

    @property
    def sock(self) -> socket.socket:
        used = self._resp or self._turbo
        assert used is not None
        return used.sock


def scenario(
    speaks: str, host: str, port: int, uri: str, *, has_deadlines: bool, size: int, many: int
) -> dict[str, Any]:
    """What a caller asks, and everything that it sees.

    The large bodies come before any request expires: an agent asks a server that lets one
    expire by PING, and python-hessian is deaf for seconds over 2 MiB.
    """
    gone, slow, caller = (Caller(speaks, host, port) for _ in range(3))
    gone.send(gone.encode(uri, "sleep", CANCELLED_MS))
    slow.send(slow.encode(uri, "sleep", 100))
    large = caller.encode(uri, "digest", "x" * size)
    seen: dict[str, Any] = {
        "sent large": hashlib.sha256(large).hexdigest(),
        "arrived large": caller.decode(caller.exchange(large)[0])["result"],
        "large back": len(caller.call(uri, "big", size)["result"]),
    }
    late = Caller(speaks, host, port)
    if has_deadlines:
        late.send(late.encode(f"{uri}#short", "sleep", SHORT_MS + 2000))
    digest = caller.encode(uri, "digest", TEXT, 1.5, None)
    return seen | {
        "success": caller.call(uri, "echo", *ARGUMENTS),
        "no args": caller.call(uri, "echo"),
        "empty": caller.decode(caller.exchange(b"")[0]),
        "business error": caller.call(uri, "fail", TEXT),
        "no method": caller.call(uri, "none")["ec"],
        "sent": hashlib.sha256(digest).hexdigest(),
        "arrived": caller.decode(caller.exchange(digest)[0])["result"],
        "many": at_once(speaks, host, port, uri, many),
        "transport": dead(speaks, host, port, uri) if has_deadlines else None,
        "slow": slow.decode(slow.receive(1)[0])["result"],
        "late": late.decode(late.receive(1)[0])["ec"] if has_deadlines else None,
        "gone": gone.reset(),
    }


def dead(speaks: str, host: str, port: int, uri: str) -> int:
    """The result of a call to a service of which nobody listens."""
    ec: int = Caller(speaks, host, port + DEAD).call(f"{uri}-dead", "echo", 1)["ec"]
    return ec


def at_once(speaks: str, host: str, port: int, uri: str, many: int) -> int:
    """How many of `many` requests got their own reply, over some connections at once."""
    callers = [Caller(speaks, host, port) for _ in range(CONNECTIONS)]
    each = range(many // CONNECTIONS)
    own: list[int] = []

    def ask(number: int, caller: Caller) -> None:
        bodies = [caller.encode(uri, "echo", f"{number}.{n}") for n in each]
        replies = [caller.decode(body)["result"] for body in caller.exchange(*bodies)]
        own.append(sum(reply == f"{number}.{n}" for n, reply in zip(each, replies, strict=True)))

    threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(own)


MATRIX = pytest.mark.parametrize(
    ("caller", "callee", "place"),
    [
        pytest.param(caller, callee, place, id=f"{caller} calls {callee}, {place}")
        for caller in FORMS
        for callee in FORMS
        if "turbo9" not in (caller, callee) or {caller, callee} <= {"turbo9", "resp"}
        for place in PLACES
    ],
)


@MATRIX
def test_matrix(mesh: Mesh, measured: Measured, caller: str, callee: str, place: str) -> None:
    is_meshed, is_steered = PLACES[place]
    uri, host = uri_of(callee, is_steered=is_steered), mesh.b.ip4
    port = port_of(callee, is_steered=is_steered)
    cgroup = mesh.caller(is_meshed=is_meshed)
    row = f"{caller} > {callee}, {place}"
    if caller != callee and not is_meshed:
        assert mesh.a.do(lambda: talk_past_each_other(caller, host, port, uri), cgroup=cgroup)
        measured(row, **dict.fromkeys(COLUMNS, "-"))
        return
    is_mesh = place == "both meshed"
    size = LARGE if is_mesh or "hessian" not in caller + callee else LARGE // 16
    before = mesh.counts()
    sockets = {state: mesh.sockets(state, port) for state in ("established", "close-wait")}
    seen = mesh.a.do(
        lambda: scenario(caller, host, port, uri, has_deadlines=is_meshed, size=size, many=MANY),
        cgroup=cgroup,
        timeout_s=60,
    )
    cancelled = mesh.wait_cancelled(callee, port, sockets, is_meshed=is_meshed)
    after = mesh.counts()
    assert seen["success"] == {"ec": 200, "em": "", "result": ARGUMENTS}
    assert seen["no args"] == {"ec": 200, "em": "", "result": []}
    assert seen["empty"]["result"] is None
    if is_meshed:
        assert (seen["empty"]["ec"], seen["empty"]["em"]) == (401, EMPTY_REQUEST)
    else:
        # The service has got the empty body, and says so in its own words.
        assert seen["empty"]["ec"] == UNREADABLE[callee][0]
        assert UNREADABLE[callee][1] in seen["empty"]["em"]
    assert seen["business error"] == {"ec": 503, "em": f"RuntimeError: {TEXT}", "result": None}
    assert seen["no method"] == 502
    assert seen["large back"] == size
    assert seen["many"] == MANY
    assert seen["slow"] == 100
    is_same = caller == callee or "hessian" not in caller + callee
    assert (seen["arrived"] == seen["sent"]) is is_same
    assert (seen["arrived large"] == seen["sent large"]) is is_same
    assert (seen["transport"], seen["late"]) == ((303, 304) if is_meshed else (None, None))
    assert after["fallbacks"] == before["fallbacks"]
    asked = after["calls"] - before["calls"]
    # All but the one to a service that nobody listens for, which may go either way.
    assert (asked >= MANY + 10) if is_mesh else (asked == 0)
    how = "=" if is_same else "~"
    transport, timeout = seen["transport"] or "-", seen["late"] or "-"
    empty = seen["empty"]["ec"]
    cells = (
        f"200{how}",
        503,
        transport,
        timeout,
        cancelled,
        f"{size // 1024}KiB{how}",
        empty,
        MANY,
    )
    measured(row, **dict(zip(COLUMNS, cells, strict=True)), mesh=asked)


def talk_past_each_other(speaks: str, host: str, port: int, uri: str) -> bool:
    """Whether there is no reply or a refusal, which may be that of the service's agent."""
    caller = Caller(speaks, host, port)
    caller.sock.settimeout(1.0)
    try:
        return caller.call(uri, "echo", 1)["ec"] in (302, 303)
    except (OSError, ValueError, IndexError):
        return True


@pytest.mark.parametrize("caller", FORMS)
@pytest.mark.parametrize("callee", FORMS)
def test_transport_errors_are_told_in_the_callers_words(
    mesh: Mesh, caller: str, callee: str
) -> None:
    """Nobody listens: the caller's agent knows itself, or is told so by the service's agent."""
    host = mesh.b.ip4

    def ask() -> list[dict[str, Any]]:
        seen = []
        for is_steered in (False, True):
            uri = uri_of(callee, is_steered=is_steered, is_dead=True)
            port = port_of(callee, is_steered=is_steered, is_dead=True)
            seen.append(Caller(caller, host, port).call(uri, "echo", 1))
        return seen

    refused, unsent = mesh.a.do(ask)
    assert refused["ec"] == unsent["ec"] == 303
    assert "Connection refused" in refused["em"]
    assert "its agent cannot reach it" in unsent["em"]


@pytest.mark.parametrize("caller", ["resp", "turbo-json", "turbo9"])
def test_what_hessian_cannot_say_is_refused_by_its_value(mesh: Mesh, caller: str) -> None:
    host, uri = mesh.b.ip4, uri_of("turbo-hessian", is_steered=False)
    port = port_of("turbo-hessian", is_steered=False)
    reply = mesh.a.do(lambda: Caller(caller, host, port).call(uri, "echo", 1, 2**70))
    assert reply["ec"] == 302
    assert "$.params.args[1]" in reply["em"]
    assert str(2**70)[:10] in reply["em"]


@pytest.mark.parametrize("place", PLACES)
def test_ping_and_info(mesh: Mesh, place: str) -> None:
    is_meshed, is_steered = PLACES[place]
    host, port = mesh.b.ip4, port_of("turbo-json", is_steered=is_steered)

    def ask() -> list[str]:
        with TurboClient(host, port) as client:
            pong = client.ping()
            client.send(b"", 5)
            info = client.read()
            return [pong.decode(), str(info[1]), info[3].decode()]

    pong, cmd, info = mesh.a.do(ask, cgroup=mesh.caller(is_meshed=is_meshed))
    assert (pong, cmd) == ('{"timestamp":1}', "5")
    assert {"recv", "proc", "error"} <= json.loads(info)["moa"].keys()


@pytest.mark.parametrize("codec", [BodyCodec.JSON, BodyCodec.HESSIAN2], ids=["json", "hessian"])
@pytest.mark.parametrize("way", ["routed", "at the service's agent"])
@pytest.mark.parametrize("callee", FORMS)
def test_an_empty_body_over_the_mesh(mesh: Mesh, callee: str, way: str, codec: BodyCodec) -> None:
    """The header says where it goes, so the service gets it and answers as it sees fit; where
    its codec is another one, there is nothing to translate. What follows is served."""
    is_routed = way == "routed"
    host, port = mesh.b.ip4, port_of(callee, is_steered=True)
    own = BodyCodec.HESSIAN2 if callee == "turbo-hessian" else BodyCodec.JSON
    value = {"action": uri_of(callee, is_steered=True), "params": {"m": "echo", "args": [1]}}
    filled = hessian_lite.write(value) if codec is BodyCodec.HESSIAN2 else json.dumps(value)

    def ask() -> tuple[int, int, Any, int]:
        peer = MeshPeer.dial(host, port)
        header = RequestHeader(uri_of(callee, is_steered=True), "echo", codec=codec)
        peer.ask(header, b"")
        response = peer.response()
        body = joined(response.body)
        is_json = response.header.codec == BodyCodec.JSON
        reply = json.loads(body) if is_json else hessian_lite.read(body)
        peer.ask(header, filled if isinstance(filled, bytes) else filled.encode())
        return response.header.codec, response.header.ec, reply, peer.response().header.ec

    answered_in, told, reply, next_ec = mesh.a.do(ask, cgroup=mesh.caller(is_meshed=is_routed))
    assert answered_in == codec
    assert reply["result"] is None
    assert (reply["ec"], next_ec) == ((UNREADABLE[callee][0] if codec is own else 302), 200)
    assert told in (0, reply["ec"])
    words = UNREADABLE[callee][1] if codec is own else "was not sent"
    assert words in reply["em"]
