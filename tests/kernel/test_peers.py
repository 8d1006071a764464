"""Peer agents in the kernel: tried when the own agent does not serve, and only then."""

from __future__ import annotations

import time

import pytest

from interceptor import peers
from interceptor.abi import CgroupFlag, Reason
from interceptor.events import Decision, EventStream
from interceptor.maps import Destination
from tests.kernel.mesh import PORT, Mesh, answered_by_agent
from tests.kernel.peering import PEER_PORT, include_instances, write_peers
from tests.support.lab import Lab, wait_until

HOSTS = ["10.77.0.2", "fd77::2", "::ffff:10.77.0.2"]


@pytest.fixture
def peered(mesh: Mesh) -> Mesh:
    """An agent, instances on the far node, and a peer agent's port beside them."""
    ends = [f"{host}:{port}" for host in ("10.77.0.2", "[fd77::2]") for port in (PORT, PEER_PORT)]
    mesh.serve(*ends)
    include_instances(mesh)
    write_peers(mesh)
    return mesh


def reached(mesh: Mesh, host: str) -> int:
    """The port at which the far node was reached; 0 for the own agent."""
    answer = mesh.dial(host)
    return int(answer["local"][1]) if answer["slot"] == "DIRECT" else 0


def decided(moved: dict[Reason, int]) -> dict[Reason, int]:
    """The decisions about connect(); other packets come and go."""
    return {reason: count for reason, count in moved.items() if "CONNECT_" in reason.name}


@pytest.mark.parametrize("host", HOSTS)
def test_peer_takes_over_while_the_own_agent_is_dead(peered: Mesh, host: str) -> None:
    assert reached(peered, host) == 0
    peered.agent.kill()
    with peered.counted() as moved:
        answer = peered.dial(host)
    assert answer["local"][1] == PEER_PORT
    assert answer["getpeername"] == [host, PORT], "the service sees what it dialled"
    assert decided(moved) == {Reason.CONNECT_NO_LISTENER: 1, Reason.CONNECT_PEER: 1}
    assert moved[Reason.PEERNAME_ANSWERED] == 1
    assert Reason.CARRY_STORED not in moved, "nobody on this node will ask"
    peered.start_agent()
    answered_by_agent(
        peered.dial(host), f"[{host}]:{PORT}" if host == "fd77::2" else f"10.77.0.2:{PORT}"
    )


def test_peer_takes_over_from_an_agent_that_hangs(peered: Mesh) -> None:
    peered.pulse("off")
    peered.wait_stale()
    with peered.counted() as moved:
        assert reached(peered, "10.77.0.2") == PEER_PORT
    assert (moved[Reason.CONNECT_HEARTBEAT_STALE], moved[Reason.CONNECT_PEER]) == (1, 1)


def test_peers_expire_when_nobody_stamps_them(peered: Mesh) -> None:
    peered.agent.kill()
    write_peers(peered, valid_s=0.5)
    wait_until(lambda: reached(peered, "10.77.0.2") == PORT, 10, "connections go direct")
    with peered.counted() as moved:
        assert reached(peered, "fd77::2") == PORT
    assert moved[Reason.CONNECT_PEER_NONE_FRESH] == 1


def test_stamp_of_another_clock_is_not_believed(peered: Mesh) -> None:
    peered.agent.kill()
    write_peers(peered, valid_s=3600)
    assert reached(peered, "10.77.0.2") == PORT


def test_off_shadow_and_exclusion_win_over_peers(peered: Mesh) -> None:
    peered.agent.kill()
    with peered.counted() as moved:
        peered.kernel.switch(on=False)
        assert reached(peered, "10.77.0.2") == PORT
        peered.kernel.switch(on=True, shadow=True)
        assert reached(peered, "10.77.0.2") == PORT
        peered.kernel.switch(on=True)
        for policy in (CgroupFlag.SHADOW, CgroupFlag.EXCLUDED):
            with peered.kernel.maps() as maps:
                maps.set_cgroup_policy(peered.node.services.id, policy)
            assert reached(peered, "10.77.0.2") == PORT
        with peered.kernel.maps() as maps:
            maps.set_cgroup_policy(peered.node.services.id, CgroupFlag(0))
        peered.exclude("10.77.0.2/32")
        assert reached(peered, "10.77.0.2") == PORT
    assert Reason.CONNECT_PEER not in moved
    assert moved[Reason.CONNECT_NO_LISTENER] == 2, "shadow looks, and leaves alone"


def test_only_instances_of_the_registry_go_to_a_peer(peered: Mesh) -> None:
    """The peer would not know what to do with anything else."""
    peered.agent.kill()
    peered.include("10.77.0.0/24")
    with peered.counted() as moved:
        assert reached(peered, "10.77.0.2") == PORT
    assert moved[Reason.CONNECT_PEER_NOT_INSTANCE] == 1


def test_caller_in_another_network_namespace_goes_direct(peered: Mesh) -> None:
    peered.agent.kill()
    write_peers(peered, cookie=1)
    with peered.counted() as moved:
        assert reached(peered, "10.77.0.2") == PORT
    assert moved[Reason.CONNECT_PEER_OTHER_NETNS] == 1


def test_node_without_peers_counts_as_before(peered: Mesh) -> None:
    peered.agent.kill()
    with peered.kernel.maps() as maps:
        peers.clear(maps)
        assert peers.read(maps) == []
    with peered.counted() as moved:
        assert reached(peered, "10.77.0.2") == PORT
    assert decided(moved) == {Reason.CONNECT_NO_LISTENER: 1}


def test_tap_shows_the_peer(peered: Mesh) -> None:
    peered.agent.kill()
    seen: list[Decision] = []
    with peered.kernel.maps() as maps, EventStream(maps, seen.append) as stream:
        peered.dial("10.77.0.2")
        stream.consume()
    (decision,) = seen
    assert (decision.reason, decision.before, decision.after) == (
        Reason.CONNECT_PEER,
        "10.77.0.2:5000",
        f"10.77.0.2:{PEER_PORT}",
    )


def test_slots_are_shared_out_among_the_peers(lab: Lab) -> None:
    mesh = Mesh(lab)
    mesh.kernel.install(mesh.settings())
    three = [("10.0.0.1", 1), ("10.0.0.2", 2), ("10.0.0.3", 65535)]
    with mesh.kernel.maps() as maps:
        until_ns = time.monotonic_ns()
        peers.write(maps, 4, three, valid_until_ns=until_ns, cookie=7)
        slots = peers.read(maps)
        counts = [[(s.host, s.port) for s in slots].count(peer) for peer in three]
        assert counts == [6, 5, 5]
        assert {(s.valid_until_ns, s.netns_cookie) for s in slots} == {(until_ns, 7)}
        peers.write(maps, 4, [], valid_until_ns=until_ns, cookie=7)
        assert {s.valid_until_ns for s in peers.read(maps)} == {0}


def test_destination_keeps_its_entry_when_it_becomes_an_instance(lab: Lab) -> None:
    mesh = Mesh(lab)
    mesh.kernel.install(mesh.settings())
    plain = Destination.of("10.0.0.1", 80)
    instance = Destination.of("10.0.0.1", 80, is_instance=True)
    with mesh.kernel.maps() as maps:
        maps.set_destinations("include", [plain])
        maps.set_destinations("include", [instance])
        assert maps.destinations("include") == {instance}
        maps.set_destinations("include", [plain])
        assert maps.destinations("include") == {plain}
