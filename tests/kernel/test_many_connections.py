"""All intercepted connections share one port of the agent; source ports must not run out."""

from __future__ import annotations

import errno
import socket

import pytest

from interceptor.libbpf import AttachType
from tests.kernel.ends import Ends, on_both_ends
from tests.kernel.features import without
from tests.kernel.mesh import PORT, Mesh, answered_by_agent, read_line
from tests.support.lab import Lab

OPEN_AT_ONCE = 10_000
SOURCE_PORTS = 1000


@pytest.fixture
def meshed(lab: Lab) -> Mesh:
    mesh = Mesh(lab)
    mesh.node.call("sysctl", "-w", f"net.ipv4.ip_local_port_range=40000 {40000 + SOURCE_PORTS - 1}")
    mesh.node.agent.create()
    return mesh


def scoped(mesh: Mesh) -> None:
    mesh.kernel.add_scope(mesh.node.services)
    mesh.kernel.switch(on=True)
    mesh.include_all()


def test_ten_times_more_connections_than_source_ports(meshed: Mesh) -> None:
    """10 000 open at once to one port of the agent, out of 1000 source ports."""
    meshed.start_agent()
    scoped(meshed)

    def action() -> dict[str, int]:
        kept, agents = [], set()
        for port in range(1024, 1024 + OPEN_AT_ONCE):
            sock = socket.create_connection(("10.77.0.2", port), timeout=5)
            answer = read_line(sock)
            answered_by_agent(answer, f"10.77.0.2:{port}")
            agents.add(answer["local"][0])
            kept.append(sock)
        return {"open": len(kept), "agent's addresses": len(agents)}

    seen = meshed.node.do(action, timeout_s=110)
    assert seen["open"] == OPEN_AT_ONCE
    assert seen["agent's addresses"] > OPEN_AT_ONCE / 2


def test_without_sk_lookup_the_source_ports_are_the_ceiling(meshed: Mesh) -> None:
    """And then the caller is told so at once; the counterpart that proves the test above."""
    meshed.kernel.install(
        meshed.settings(heartbeat_max_age_ns=30 * 10**9), features=without(AttachType.SK_LOOKUP)
    )
    scoped(meshed)

    def action(ends: Ends) -> list[int]:
        kept: list[object] = []
        for number in range(SOURCE_PORTS + 1):
            try:
                kept += ends.connect("10.77.0.2", PORT)
            except OSError as e:
                return [number, e.errno or 0]
        return [len(kept), 0]

    opened, number = on_both_ends(meshed, action)
    assert number == errno.EADDRNOTAVAIL
    assert SOURCE_PORTS / 2 <= opened <= SOURCE_PORTS


def test_original_destinations_do_not_mix_when_source_ports_are_used_again(
    meshed: Mesh,
) -> None:
    meshed.kernel.install(meshed.settings(heartbeat_max_age_ns=30 * 10**9))
    scoped(meshed)

    def action(ends: Ends) -> int:
        wrong = 0
        for number in range(3 * SOURCE_PORTS):
            port = 1024 + number
            caller, accepted = ends.connect("10.77.0.2", port)
            assert accepted is not None
            raw = accepted.getsockopt(socket.SOL_IP, 80, 16)
            wrong += int.from_bytes(raw[2:4], "big") != port
            caller.close()
            accepted.close()
        return wrong

    assert on_both_ends(meshed, action) == 0
