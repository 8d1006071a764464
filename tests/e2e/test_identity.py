"""Who calls: an instance's agent knows the caller's application and zone, whoever carried it.

Nodes A and B are of one application in two zones, and peers. Node C has the instance, its own
agent of another application, and the registry.
"""

from __future__ import annotations

import signal

import pytest

from installer.client import AgentClient
from tests.e2e.clients.raw import call, request
from tests.e2e.test_peers import PEER_PORT, World
from tests.support.agents import start_service, write_config
from tests.support.lab import Lab, LabNode, wait_until

pytestmark = pytest.mark.e2e

PORT = 5001
SHOP = 'application = "shop"\nzone = "zc"'


@pytest.fixture(scope="module")
def world(lab: Lab) -> World:
    made = World(lab.add_node("a"), lab.add_node("b"), lab.add_node("c"))
    made.start_redis()
    start_service(made.c, PORT)
    for node in (made.a, made.b):
        made.begin(node)
    registry = f'kind = "redis"\nurl = "redis://{made.c.ip4}:6379/0"'
    config = write_config(made.c, registry, identity=SHOP)
    process = made.c.python("moa-agent", "-I", "-m", "installer.agent", str(config))
    process.wait_line('"ready"')
    made.register(PORT, "zc")
    for node in (made.a, made.b, made.c):
        made.mesh_on(node)
    made.wait_for_peers(f"{made.b.ip4}:{PEER_PORT}")
    return made


def origin_seen_by_c(world: World, caller: LabNode) -> dict[str, str] | None:
    """What C's agent is told of a request from a service of `caller`; None without the mesh."""
    agent = AgentClient.of(world.c.directory / "run")
    before = {c["id"]: c["requests"] for c in agent.conns()["conns"]}
    answer = caller.do(lambda: call(world.c.ip4, PORT, request("whoami")))
    assert answer["ec"] == 200
    changed = [
        conn["origin"]
        for conn in agent.conns()["conns"]
        if conn["protocol"] == "mesh" and conn["requests"] != before.get(conn["id"])
    ]
    return changed[0] if changed and changed[0] else None


def wait_for_origin(world: World, caller: LabNode, app: str, zone: str) -> None:
    """The first requests go over the instance's own protocol, until HELLO."""
    seen: list[dict[str, str] | None] = []

    def is_seen() -> bool:
        seen.append(origin_seen_by_c(world, caller))
        return seen[-1] is not None

    wait_until(is_seen, 15, "a request over the mesh")
    assert seen[-1] == {"app": app, "zone": zone}


def test_instances_agent_is_told_of_the_callers_node(world: World) -> None:
    wait_for_origin(world, world.a, "chat", "za")
    wait_for_origin(world, world.b, "chat", "zb")


def test_caller_through_a_peer_keeps_its_own_application_and_zone(world: World) -> None:
    world.end_agent(world.a, signal.SIGKILL)

    def is_through_b() -> bool:
        before = world.routed(world.b)
        world.a.do(lambda: call(world.c.ip4, PORT, request("whoami")))
        return world.routed(world.b) > before

    wait_until(is_through_b, 10, "B carries the callers of A")
    wait_for_origin(world, world.a, "chat", "za")
    wait_for_origin(world, world.b, "chat", "zb")
