"""Cgroups that the configuration puts into the mesh, and an operator's word against it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from interceptor.node import Node, Scope
from tests.support.agents import Agent, restart_agent, start_agent, static_registry
from tests.support.lab import Lab, wait_until

pytestmark = pytest.mark.e2e


@pytest.fixture
def agent() -> Iterator[Agent]:
    with Lab() as lab:
        node = lab.add_node("a")
        registry = static_registry(lab.directory / "services.toml", {"/service/demo": []})
        scope = f'[scope]\ncgroups = ["{node.services.name}"]'
        yield start_agent(node, registry, scope)


def scopes(agent: Agent) -> list[Scope]:
    return Node(agent.node.root).scopes()


def test_a_configured_cgroup_is_attached_and_again_when_it_is_made_anew(agent: Agent) -> None:
    assert [s.state for s in scopes(agent)] == ["attached"]
    services = agent.node.services
    wait_until(services.remove, 5, "cgroup removed")
    services.create()
    wait_until(lambda: [s.state for s in scopes(agent)] == ["attached"], 10, "attached again")


def test_what_an_operator_took_out_stays_out_also_with_the_next_agent(agent: Agent) -> None:
    node = Node(agent.node.root)
    node.remove_scope(agent.node.services)
    lag = agent.status()["uptime_s"]
    wait_until(lambda: agent.status()["uptime_s"] > lag + 2.5, 10, "two rounds of reconciling")
    assert scopes(agent) == []
    agent.process.stop()
    restart_agent(agent)
    assert scopes(agent) == []
    agent.process.wait_line("an operator took it out")
    node.add_scope(agent.node.services)
    assert [s.state for s in scopes(agent)] == ["attached"]
