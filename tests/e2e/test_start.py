"""What an agent needs to start, and what it does without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.agents import Agent, start_agent, static_registry, write_config
from tests.support.lab import Lab, LabNode, wait_until

pytestmark = pytest.mark.e2e


@pytest.fixture
def node() -> Iterator[LabNode]:
    with Lab() as lab:
        yield lab.add_node("a")


def _registry(node: LabNode) -> str:
    return static_registry(node.lab.directory / "services.toml", {"/service/demo": []})


def _refused(node: LabNode, config: str) -> str:
    process = node.python("refused", "-I", "-m", "installer.agent", config)
    assert process.popen.wait(20) == 1, process.output
    return process.output


def test_without_a_state_directory_it_serves_and_says_so(node: LabNode) -> None:
    config = write_config(node, _registry(node))
    (node.directory / "state").write_text("in the way")
    process = node.python("moa-agent", "-I", "-m", "installer.agent", str(config))
    process.wait_line('"ready"')
    assert "no state directory" in process.output


def test_an_agent_is_one_thread_also_when_its_registry_file_is_large(node: LabNode) -> None:
    """Of a killed process the last thread closes the listener: a second one loses connections."""
    agent = start_agent(node, _registry(node))
    assert agent.threads() == 1
    path = node.lab.directory / "services.toml"
    static_registry(path, {f"/service/s{n}": ["10.77.9.9:5000"] for n in range(500)})
    wait_until(lambda: agent.status()["registry"]["services"] == 500, 10, "the new table")
    assert agent.threads() == 1


def test_an_unusable_runtime_directory_is_named_with_its_key(node: LabNode) -> None:
    config = write_config(node, _registry(node))
    (node.directory / "run").write_text("in the way")
    assert "agent.runtime_dir" in _refused(node, str(config))


def test_a_second_agent_with_the_same_pins_leaves_the_first_alone(node: LabNode) -> None:
    first: Agent = start_agent(node, _registry(node))
    first.mesh_on()
    config = first.config.with_name("second.toml")
    text = first.config.read_text().replace(f"{node.directory}/run", f"{node.directory}/run2")
    config.write_text(text.replace("[agent]", "[agent]\noutbound_port = 15002"))
    assert "another agent serves with these pins" in _refused(node, str(config))
    assert first.moactl("status")["node"]["outbound_port"] == 15001
