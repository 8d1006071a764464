"""Every early return counts itself: each reason, and how to provoke it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from contextlib import suppress

import pytest

from interceptor.abi import CgroupFlag, ListenerSlot, Reason
from interceptor.cgroup import Cgroup
from interceptor.events import EventStream
from tests.kernel.ends import Ends, on_both_ends
from tests.kernel.handshake import held, make_older
from tests.kernel.mesh import (
    OUTBOUND,
    PORT,
    Mesh,
    Prepare,
    family_of,
    in_namespace,
)
from tests.kernel.peering import include_instances, write_peers
from tests.support.lab import Lab, LabNode

FAR4 = "10.77.0.2"
IN_PORT = 6000

CANNOT_BE_PROVOKED = {
    Reason.CONNECT_NO_SOCKET: "the kernel always gives the hook a socket",
    Reason.CARRY_STORE_FAILED: "an LRU map makes room instead of failing",
}


def knock(
    node: LabNode,
    host: str,
    port: int = PORT,
    *,
    prepare: Prepare | None = None,
    cgroup: Cgroup | None = None,
    times: int = 1,
) -> None:
    """connect(), whatever becomes of it; wait for the answer when there is somebody."""

    def action() -> None:
        for _ in range(times):
            with socket.socket(family_of(host), socket.SOCK_STREAM) as sock:
                sock.settimeout(2)
                if prepare:
                    prepare(sock)
                with suppress(OSError):
                    sock.connect((host, port))
                    sock.recv(4096)
                    sock.getpeername()

    node.do(action, cgroup=cgroup)


def redirected(mesh: Mesh) -> None:
    knock(mesh.node, FAR4)


def disabled(mesh: Mesh) -> None:
    mesh.kernel.switch(on=False)
    knock(mesh.node, FAR4)


def not_tcp(mesh: Mesh) -> None:
    def action() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((FAR4, PORT))

    mesh.node.do(action)


def agent_cgroup(mesh: Mesh) -> None:
    inside = Cgroup(f"{mesh.node.services.name}/agent")
    mesh.kernel.install(mesh.settings(cgroup=inside))
    knock(mesh.node, FAR4, cgroup=inside)


def agent_mark(mesh: Mesh) -> None:
    mesh.kernel.install(mesh.settings(mark=7))
    knock(mesh.node, FAR4, prepare=lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7))


def device_bound(mesh: Mesh) -> None:
    device = socket.SO_BINDTODEVICE
    knock(mesh.node, FAR4, prepare=lambda s: s.setsockopt(socket.SOL_SOCKET, device, b"eth0"))


def dial_agent(mesh: Mesh) -> None:
    knock(mesh.node, "127.0.0.1", OUTBOUND)


def dial_agent_from_outside(mesh: Mesh) -> None:
    knock(mesh.node, "127.0.0.1", OUTBOUND, cgroup=Cgroup(f"/{mesh.lab.id}/outside"))


def loopback(mesh: Mesh) -> None:
    knock(mesh.node, "127.0.0.1")


def cgroup_excluded(mesh: Mesh) -> None:
    with mesh.kernel.maps() as maps:
        maps.set_cgroup_policy(mesh.node.services.id, CgroupFlag.EXCLUDED)
    knock(mesh.node, FAR4)


def destination_excluded(mesh: Mesh) -> None:
    mesh.exclude("10.77.0.0/24")
    knock(mesh.node, FAR4)


def destination_not_included(mesh: Mesh) -> None:
    mesh.include()
    knock(mesh.node, FAR4)


def stop_agent(mesh: Mesh) -> None:
    mesh.kernel.install(mesh.settings(heartbeat_max_age_ns=10**8))
    mesh.agent.signal(signal.SIGSTOP)
    mesh.wait_stale()


def heartbeat_stale(mesh: Mesh) -> None:
    stop_agent(mesh)
    knock(mesh.node, FAR4)


def no_listener(mesh: Mesh) -> None:
    with mesh.kernel.maps() as maps:
        maps.withdraw_listener(ListenerSlot.OUT4)
    knock(mesh.node, FAR4)


def foreign_listener(mesh: Mesh) -> None:
    mesh.agent.kill()
    mesh.serve(f"0.0.0.0:{OUTBOUND}", on=mesh.node)
    with mesh.kernel.maps() as maps:
        maps.beat()
    knock(mesh.node, FAR4)


def optmem(mesh: Mesh, size: int) -> None:
    """What the kernel may keep for one socket, storage of BPF programs included."""
    assert mesh.node.call("sysctl", "-w", f"net.core.optmem_max={size}").returncode == 0


def no_storage(mesh: Mesh) -> None:
    optmem(mesh, 0)
    knock(mesh.node, FAR4)


def shadow(mesh: Mesh) -> None:
    mesh.kernel.switch(on=True, shadow=True)
    knock(mesh.node, FAR4)


def peer(mesh: Mesh) -> None:
    include_instances(mesh)
    write_peers(mesh)
    no_listener(mesh)


def peer_not_instance(mesh: Mesh) -> None:
    write_peers(mesh)
    no_listener(mesh)


def peer_other_netns(mesh: Mesh) -> None:
    include_instances(mesh)
    write_peers(mesh, cookie=1)
    no_listener(mesh)


def peer_none_fresh(mesh: Mesh) -> None:
    include_instances(mesh)
    write_peers(mesh, valid_s=-1)
    no_listener(mesh)


def carry_stale(mesh: Mesh) -> None:
    with held(mesh) as release:
        make_older(mesh.kernel, age_s=600)
        release()


def carry_no_storage(mesh: Mesh) -> None:
    with held(mesh) as release:
        optmem(mesh, 0)
        release()


def short_buffer(mesh: Mesh) -> None:
    mesh.agent.kill()

    def action(ends: Ends) -> None:
        _, accepted = ends.connect(FAR4)
        assert accepted is not None
        with suppress(OSError):
            accepted.getsockopt(socket.SOL_IP, 80, 8)

    on_both_ends(mesh, action)


def inbound(mesh: Mesh) -> None:
    knock(mesh.far, mesh.node.ip4, IN_PORT)


def inbound_disabled(mesh: Mesh) -> None:
    mesh.kernel.switch(on=False)
    inbound(mesh)


def inbound_not_ours(mesh: Mesh) -> None:
    knock(mesh.far, mesh.node.ip4, IN_PORT + 1)


def inbound_loop_guard(mesh: Mesh) -> None:
    knock(
        *(mesh.node, mesh.node.ip4, IN_PORT),
        prepare=lambda s: s.bind(("127.0.0.6", 0)),
        cgroup=mesh.node.agent,
    )


def inbound_heartbeat_stale(mesh: Mesh) -> None:
    stop_agent(mesh)
    inbound(mesh)


def inbound_no_listener(mesh: Mesh) -> None:
    with mesh.kernel.maps() as maps:
        maps.withdraw_listener(ListenerSlot.IN4)
    inbound(mesh)


def inbound_assign_failed(mesh: Mesh) -> None:
    """An IPv6-only listener in the IPv4 slot."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET6)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("::1", 15007))
        sock.listen()
        return sock

    with in_namespace(mesh.node, make) as sock, mesh.kernel.maps() as maps:
        maps.publish_listener(ListenerSlot.IN4, sock, mark=1)
        inbound(mesh)


def inbound_shadow(mesh: Mesh) -> None:
    mesh.kernel.switch(on=True, shadow=True)
    inbound(mesh)


def event_lost(mesh: Mesh) -> None:
    """Nobody reads, and the ring holds fewer than 3000 records."""
    with mesh.kernel.maps() as maps:
        maps.withdraw_listener(ListenerSlot.OUT4)
        with EventStream(maps, lambda decision: None):
            knock(mesh.node, mesh.node.ip4, times=3000)


PROVOCATIONS: dict[Callable[[Mesh], None], set[Reason]] = {
    disabled: {Reason.CONNECT_DISABLED},
    not_tcp: {Reason.CONNECT_NOT_TCP},
    agent_cgroup: {Reason.CONNECT_AGENT_CGROUP},
    agent_mark: {Reason.CONNECT_AGENT_MARK},
    device_bound: {Reason.CONNECT_DEVICE_BOUND},
    dial_agent: {Reason.CONNECT_SELF},
    loopback: {Reason.CONNECT_LOOPBACK},
    cgroup_excluded: {Reason.CONNECT_CGROUP_EXCLUDED},
    destination_excluded: {Reason.CONNECT_DST_EXCLUDED},
    destination_not_included: {Reason.CONNECT_DST_NOT_INCLUDED},
    heartbeat_stale: {Reason.CONNECT_HEARTBEAT_STALE},
    no_listener: {
        Reason.CONNECT_NO_LISTENER,
        Reason.OUTBOUND_NO_LISTENER,
    },
    foreign_listener: {Reason.CONNECT_FOREIGN_LISTENER},
    no_storage: {Reason.CONNECT_NO_STORAGE},
    shadow: {Reason.CONNECT_SHADOW},
    redirected: {
        Reason.CONNECT_REDIRECTED,
        Reason.CARRY_STORED,
        Reason.CARRY_TAKEN,
        Reason.ORIGDST_ANSWERED,
        Reason.PEERNAME_ANSWERED,
        Reason.OUTBOUND_STEERED,
    },
    dial_agent_from_outside: {
        Reason.CARRY_MISSING,
        Reason.ORIGDST_UNKNOWN,
    },
    peer: {Reason.CONNECT_PEER},
    peer_not_instance: {Reason.CONNECT_PEER_NOT_INSTANCE},
    peer_other_netns: {Reason.CONNECT_PEER_OTHER_NETNS},
    peer_none_fresh: {Reason.CONNECT_PEER_NONE_FRESH},
    carry_stale: {Reason.CARRY_STALE},
    carry_no_storage: {Reason.CARRY_NO_STORAGE},
    short_buffer: {Reason.ORIGDST_SHORT_BUFFER},
    inbound_disabled: {Reason.INBOUND_DISABLED},
    inbound_not_ours: {Reason.INBOUND_NOT_OURS},
    inbound_loop_guard: {Reason.INBOUND_LOOP_GUARD},
    inbound_heartbeat_stale: {Reason.INBOUND_HEARTBEAT_STALE},
    inbound_no_listener: {Reason.INBOUND_NO_LISTENER},
    inbound_assign_failed: {Reason.INBOUND_ASSIGN_FAILED},
    inbound_shadow: {Reason.INBOUND_SHADOW},
    inbound: {Reason.INBOUND_STEERED},
    event_lost: {Reason.EVENT_LOST},
}


@pytest.fixture
def meshed(lab: Lab) -> Mesh:
    mesh = Mesh(lab)
    mesh.start_agent("--in-port", str(IN_PORT))
    mesh.kernel.add_scope(mesh.node.services)
    mesh.kernel.switch(on=True)
    mesh.include_all()
    return mesh


@pytest.mark.parametrize("provoke", PROVOCATIONS, ids=lambda function: function.__name__)
def test_reasons_are_counted(meshed: Mesh, provoke: Callable[[Mesh], None]) -> None:
    with meshed.counted() as moved:
        provoke(meshed)
    assert PROVOCATIONS[provoke] <= moved.keys()


def test_no_reason_is_forgotten_here() -> None:
    provoked = set().union(*PROVOCATIONS.values())
    assert provoked | set(CANNOT_BE_PROVOKED) == set(Reason)
