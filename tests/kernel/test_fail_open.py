"""No live agent: the very next connect() reaches what it would reach without us."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from contextlib import suppress

import pytest

from interceptor.abi import ListenerSlot, Reason
from interceptor.cgroup import Cgroup
from tests.kernel.handshake import held, make_older
from tests.kernel.mesh import INBOUND, OUTBOUND, PORT, Mesh, answered_by_agent, in_namespace
from tests.support.lab import Lab

HOSTS = ("10.77.0.2", "fd77::2", "::ffff:10.77.0.2")


@pytest.fixture
def meshed(lab: Lab) -> Mesh:
    """Like `mesh`, with an agent whose pulse is believed for 300 ms only."""
    mesh = Mesh(lab)
    mesh.start_agent("--max-age-ms", "300", "--in-port", "6000")
    mesh.kernel.add_scope(mesh.node.services)
    mesh.kernel.switch(on=True)
    mesh.include_all()
    mesh.serve_far()
    return mesh


@pytest.mark.parametrize("host", HOSTS)
def test_next_connect_is_direct_after_kill_9(meshed: Mesh, host: str) -> None:
    assert meshed.who(host).startswith("OUT")
    meshed.agent.kill()
    with meshed.counted() as moved:
        assert meshed.who(host) == "DIRECT"
    assert moved[Reason.CONNECT_NO_LISTENER] == 1


def test_no_connect_fails_while_the_agent_is_killed(meshed: Mesh) -> None:
    """One caller dials without a pause; its child kills the agent in the middle."""
    pid = meshed.agent.pid

    def action() -> dict[str, int]:
        seen = {"OUT4": 0, "DIRECT": 0, "reset": 0, "refused": 0}
        for number in range(400):
            if number == 200:
                os.kill(pid, signal.SIGKILL)
            try:
                with socket.create_connection(("10.77.0.2", PORT), timeout=5) as sock:
                    answer = sock.recv(4096)
                    seen["DIRECT" if b"DIRECT" in answer else "OUT4"] += 1
            except ConnectionResetError:
                seen["reset"] += 1
            except ConnectionRefusedError:
                seen["refused"] += 1
        return seen

    seen = meshed.node.do(action)
    assert seen["refused"] == 0, seen
    assert seen["reset"] <= 1, "only the connection that the dying agent had accepted"
    assert seen["OUT4"] >= 199, seen
    assert seen["DIRECT"] >= 190, seen


@pytest.mark.parametrize("host", HOSTS)
def test_connect_is_direct_while_the_agent_is_stopped(meshed: Mesh, host: str) -> None:
    meshed.agent.signal(signal.SIGSTOP)
    meshed.wait_stale()
    with meshed.counted() as moved:
        assert meshed.who(host) == "DIRECT"
    assert moved[Reason.CONNECT_HEARTBEAT_STALE] == 1
    meshed.agent.signal(signal.SIGCONT)
    meshed.wait_fresh()
    assert meshed.who(host).startswith("OUT")


def test_inbound_reaches_the_service_while_the_agent_is_stopped(meshed: Mesh) -> None:
    _serve_own(meshed)
    assert _from_far(meshed, meshed.node.ip4) == "IN4"
    meshed.agent.signal(signal.SIGSTOP)
    meshed.wait_stale()
    assert _from_far(meshed, meshed.node.ip4) == "DIRECT"
    meshed.agent.signal(signal.SIGCONT)
    meshed.wait_fresh()
    assert _from_far(meshed, meshed.node.ip4) == "IN4"


@pytest.mark.parametrize(("family", "slot"), [("ip4", "IN4"), ("ip6", "IN6")])
def test_inbound_reaches_the_service_after_kill_9(meshed: Mesh, family: str, slot: str) -> None:
    _serve_own(meshed)
    host = getattr(meshed.node, family)
    assert _from_far(meshed, host) == slot
    meshed.agent.kill()
    assert _from_far(meshed, host) == "DIRECT"


def _serve_own(mesh: Mesh) -> None:
    mesh.serve(f"{mesh.node.ip4}:6000", f"[{mesh.node.ip6}]:6000", on=mesh.node)


def _from_far(mesh: Mesh, host: str) -> str:
    def action() -> str:
        with socket.create_connection((host, 6000), timeout=5) as sock:
            answer = sock.recv(4096).decode()
            return next(name for name in ("IN4", "IN6", "DIRECT") if f'"{name}"' in answer)

    return str(mesh.far.do(action))


def test_listener_that_another_process_holds_open_without_a_pulse(meshed: Mesh) -> None:
    """The holder keeps the descriptors of a dead agent: only the pulse tells."""
    meshed.pulse("off")
    meshed.wait_stale()
    assert meshed.who("10.77.0.2") == "DIRECT"
    meshed.pulse("on")
    meshed.wait_fresh()
    assert meshed.who("10.77.0.2") == "OUT4"


_DIAL_ON = f"""
import collections, json, socket, time
seen, end_s = collections.Counter(), time.monotonic() + 4
while time.monotonic() < end_s:
    with socket.socket() as sock:
        seen["refused" if sock.connect_ex(("10.77.0.2", {PORT})) else "connected"] += 1
print(json.dumps(seen))
"""


def test_no_connect_is_refused_while_a_listener_comes_and_goes(meshed: Mesh) -> None:
    """Callers dial without a pause; what connect4 turned to the agent arrives there, though the
    agent lets go at that moment. To withdraw it at once refused 3 connections in 100 times."""
    meshed.agent.kill()
    with in_namespace(meshed.node, _listener) as sock, meshed.kernel.maps() as maps:
        sock.listen(4096)
        sock.settimeout(0.002)
        callers = [meshed.node.python(f"caller{n}", "-c", _DIAL_ON) for n in range(4)]
        with meshed.counted() as moved:
            while any(caller.popen.poll() is None for caller in callers):
                maps.beat()
                maps.publish_listener(ListenerSlot.OUT4, sock, mark=1)
                _accept_some(sock)
                maps.disown_listener(sock)
                _accept_some(sock)
    assert sum(json.loads(caller.output)["connected"] for caller in callers) > 100
    assert [json.loads(caller.output).get("refused", 0) for caller in callers] == [0] * 4
    assert moved[Reason.CONNECT_REDIRECTED] > 10
    assert moved[Reason.CONNECT_FOREIGN_LISTENER] > 10
    assert Reason.OUTBOUND_NO_LISTENER not in moved


def _accept_some(sock: socket.socket) -> None:
    with suppress(TimeoutError):
        for _ in range(50):
            sock.accept()[0].close()


def test_listener_that_outlives_its_agent(meshed: Mesh) -> None:
    """A real holder: the listener is the agent's by its mark, and the agent is dead."""
    meshed.agent.kill()
    with in_namespace(meshed.node, _listener) as sock, meshed.kernel.maps() as maps:
        maps.publish_listener(ListenerSlot.OUT4, sock, mark=1)
        meshed.wait_stale()
        with meshed.counted() as moved:
            assert meshed.who("10.77.0.2") == "DIRECT"
        assert moved == {Reason.CONNECT_HEARTBEAT_STALE: 1}


@pytest.mark.parametrize("host", ["10.77.0.2", "fd77::2"])
def test_foreign_listener_on_our_port_gets_nothing(meshed: Mesh, host: str) -> None:
    """The agent is dead, the pulse not yet stale, and a stranger has taken its port."""
    meshed.agent.kill()
    meshed.serve(f"0.0.0.0:{OUTBOUND}", f"[::]:{OUTBOUND}", on=meshed.node)
    with meshed.kernel.maps() as maps:
        maps.beat(time.monotonic_ns())
    with meshed.counted() as moved:
        answer = meshed.dial(host)
    assert answer["local"][1] == PORT, "the far server and not the stranger"
    assert moved[Reason.CONNECT_FOREIGN_LISTENER] == 1


def _listener() -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", OUTBOUND))
    sock.listen()
    return sock


def test_pulse_from_the_future_is_not_believed(meshed: Mesh) -> None:
    """A beat of another clock (a time namespace) would hide a hung agent for ever."""
    meshed.agent.signal(signal.SIGSTOP)
    with meshed.kernel.maps() as maps:
        maps.beat(time.monotonic_ns() + 3600 * 10**9)
    assert meshed.who("10.77.0.2") == "DIRECT"


def test_caller_in_another_network_namespace_goes_direct(meshed: Mesh) -> None:
    """A container: in the scoped cgroup, but the agent's loopback is not its own."""

    def action() -> str:
        with socket.create_connection(("10.77.0.2", PORT), timeout=5) as sock:
            return sock.recv(4096).decode()

    assert '"DIRECT"' in meshed.far.do(action, cgroup=meshed.node.services)


def test_agents_own_connections_are_left_alone_inside_the_scope(lab: Lab) -> None:
    mesh = Mesh(lab)
    inside = Cgroup(f"{mesh.node.services.name}/agent")
    mesh.start_agent(cgroup=inside)
    mesh.kernel.add_scope(mesh.node.services)
    mesh.kernel.switch(on=True)
    mesh.include_all()
    mesh.serve_far()
    below = Cgroup(f"{inside.name}/worker")
    with mesh.counted() as moved:
        assert mesh.who("10.77.0.2", cgroup=inside) == "DIRECT"
        assert mesh.who("fd77::2", cgroup=below) == "DIRECT"
        assert mesh.who("10.77.0.2") == "OUT4"
    assert moved[Reason.CONNECT_AGENT_CGROUP] == 2


@pytest.mark.parametrize("port", [OUTBOUND, INBOUND])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_agents_own_ports_are_never_intercepted(meshed: Mesh, host: str, port: int) -> None:
    """Also when they were included by name: a caller that dials the agent gets the agent."""
    meshed.include("127.0.0.0/8", "::1/128")
    with meshed.counted() as moved:
        answer = meshed.dial(host, port)
    assert answer["original"].startswith("errno")
    assert moved[Reason.CONNECT_SELF] == 1


def test_agent_that_was_replaced_serves_the_next_connect(meshed: Mesh) -> None:
    meshed.agent.kill()
    assert meshed.who("10.77.0.2") == "DIRECT"
    meshed.start_agent("--max-age-ms", "300")
    assert meshed.who("10.77.0.2") == "OUT4"


def test_original_destination_survives_a_slow_handshake(meshed: Mesh) -> None:
    """A full accept queue delays a handshake by the retries of SYN and SYN-ACK: minutes."""
    with held(meshed) as release:
        make_older(meshed.kernel, age_s=60)
        answered_by_agent(release(), "10.77.0.2:5000")


def test_destination_that_an_earlier_connection_left_is_not_believed(meshed: Mesh) -> None:
    with meshed.counted() as moved, held(meshed) as release:
        make_older(meshed.kernel, age_s=600)
        assert release()["original"].startswith("errno")
    assert moved[Reason.CARRY_STALE] == 1
