"""Packets for a service's own port go to its agent; what the agent dials goes to the service."""

from __future__ import annotations

import errno
import socket

import pytest

from tests.kernel.mesh import INBOUND, OUTBOUND, Answer, Mesh, dial
from tests.support.lab import Lab

IN_PORT = 6000


@pytest.fixture
def meshed(lab: Lab) -> Mesh:
    """The first node has a service on port 6000, which its agent stands in for."""
    mesh = Mesh(lab)
    mesh.serve(f"0.0.0.0:{IN_PORT}", f"[::]:{IN_PORT}", on=mesh.node)
    mesh.start_agent("--in-port", str(IN_PORT))
    mesh.kernel.add_scope(mesh.node.services)
    mesh.kernel.switch(on=True)
    return mesh


def from_far(mesh: Mesh, host: str, port: int = IN_PORT) -> Answer:
    answer: Answer = mesh.far.do(lambda: dial(host, port))
    return answer


@pytest.mark.parametrize(("host", "slot"), [("10.77.0.1", "IN4"), ("fd77::1", "IN6")])
def test_accepted_socket_has_the_services_own_address(meshed: Mesh, host: str, slot: str) -> None:
    answer = from_far(meshed, host)
    assert answer["slot"] == slot
    assert answer["local"] == [host, IN_PORT]
    assert answer["getpeername"] == [host, IN_PORT]
    assert answer["peer"][0] == {"IN4": "10.77.0.2", "IN6": "fd77::2"}[slot]


@pytest.mark.parametrize("host", ["10.77.0.1", "127.0.0.1"])
def test_agent_reaches_the_local_service_from_127_0_0_6(meshed: Mesh, host: str) -> None:
    answer = meshed.dial(
        host, IN_PORT, prepare=lambda s: s.bind(("127.0.0.6", 0)), cgroup=meshed.node.agent
    )
    assert answer["slot"] == "DIRECT"
    assert answer["peer"][0] == "127.0.0.6"


@pytest.mark.parametrize("host", ["::1", "fd77::1"])
def test_agent_reaches_the_local_service_from_ipv6_loopback(meshed: Mesh, host: str) -> None:
    answer = meshed.dial(
        host, IN_PORT, prepare=lambda s: s.bind(("::1", 0)), cgroup=meshed.node.agent
    )
    assert answer["slot"] == "DIRECT"


def test_service_that_dials_its_own_port_gets_one_agent_and_no_loop(meshed: Mesh) -> None:
    """Outbound first: the agent then dials from its own cgroup, and by the loop guard."""
    meshed.include("10.77.0.1/32")
    answer = meshed.dial("10.77.0.1", IN_PORT)
    assert (answer["slot"], answer["original"]) == ("OUT4", "10.77.0.1:6000")


def test_agent_that_dials_an_agent_on_another_port_is_not_turned_to_itself(
    meshed: Mesh,
) -> None:
    meshed.include_all()
    meshed.serve(f"{meshed.far.ip4}:{OUTBOUND}", f"{meshed.far.ip4}:{INBOUND}")
    for port in (OUTBOUND, INBOUND):
        assert meshed.who(meshed.far.ip4, port, cgroup=meshed.node.agent) == "DIRECT"


def test_other_ports_are_left_alone(meshed: Mesh) -> None:
    meshed.serve(f"0.0.0.0:{IN_PORT + 1}", on=meshed.node)
    assert from_far(meshed, "10.77.0.1", IN_PORT + 1)["slot"] == "DIRECT"


def test_port_that_is_given_back_reaches_the_service(meshed: Mesh) -> None:
    with meshed.kernel.maps() as maps:
        assert maps.in_ports() == {IN_PORT}
        maps.set_in_ports([])
        assert from_far(meshed, "10.77.0.1")["slot"] == "DIRECT"
        maps.set_in_ports([IN_PORT])
        assert from_far(meshed, "10.77.0.1")["slot"] == "IN4"


def test_mesh_off_and_shadow_reach_the_service(meshed: Mesh) -> None:
    meshed.kernel.switch(on=False)
    assert from_far(meshed, "10.77.0.1")["slot"] == "DIRECT"
    meshed.kernel.switch(on=True, shadow=True)
    assert from_far(meshed, "fd77::1")["slot"] == "DIRECT"
    meshed.kernel.switch(on=True)
    assert from_far(meshed, "fd77::1")["slot"] == "IN6"


@pytest.mark.parametrize("port", [OUTBOUND, INBOUND])
@pytest.mark.parametrize("host", ["10.77.0.1", "fd77::1"])
def test_agents_ports_are_closed_to_the_network(meshed: Mesh, host: str, port: int) -> None:
    def action() -> int:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as sock:
            sock.settimeout(5)
            return sock.connect_ex((host, port))

    assert meshed.far.do(action) == errno.ECONNREFUSED


def test_spread_addresses_are_closed_to_the_network(meshed: Mesh) -> None:
    """A neighbour that routes 127.64.0.0/16 to us is a martian to the kernel."""
    meshed.far.call("sysctl", "-w", "net.ipv4.conf.all.route_localnet=1")
    meshed.far.call("ip", "route", "del", "local", "127.0.0.0/8", "table", "local")
    meshed.far.call("ip", "route", "add", "127.64.0.0/16", "via", meshed.node.ip4)

    def action() -> int:
        with socket.socket() as sock:
            sock.settimeout(0.5)
            sock.bind((meshed.far.ip4, 0))
            return sock.connect_ex(("127.64.1.1", OUTBOUND))

    assert meshed.far.do(action) != 0
