"""Agents with a keeper, killed and succeeded as a supervisor does it, without one."""

from __future__ import annotations

from pathlib import Path

from tests.support.agents import Agent, write_config
from tests.support.lab import LabNode


def start_supervised(node: LabNode, registry: str, extra: str = "") -> Agent:
    """Start an agent that has a keeper, and wait until it is ready."""
    return _start(node, write_config(node, registry, extra))


def start_frail(node: LabNode, config: Path, trigger: Path) -> Agent:
    """An agent with a keeper that fails by an error of its own once there is this file."""
    code = _FRAIL.format(trigger=str(trigger))
    process = node.python("moa-agent", "-I", "-c", code, str(config), "--supervised")
    process.wait_line('"ready"')
    return Agent(node, config, process)


_FRAIL = """
from installer import keeper
keeper.start()
import os
from installer import agent, kernel_gate
beat = kernel_gate.KernelGate.beat
def fail(self):
    if os.path.exists({trigger!r}):
        raise RuntimeError("this agent is frail")
    beat(self)
kernel_gate.KernelGate.beat = fail
agent.main()
"""


def keeper_of(agent: Agent) -> Path:
    """Where the keeper of this agent can be asked."""
    return agent.node.directory / "run" / f"keeper-{agent.process.pid}.sock"


def kill(agent: Agent) -> None:
    """kill -9, and not a moment to do anything."""
    agent.process.kill()


def succeed(agent: Agent) -> Agent:
    """Start an agent that adopts what this one, which is dead, has left."""
    return _start(agent.node, agent.config, "--adopt", str(keeper_of(agent)))


def _start(node: LabNode, config: Path, *more: str) -> Agent:
    process = node.python(
        "moa-agent", "-I", "-m", "installer.agent_start", str(config), "--supervised", *more
    )
    process.wait_line('"ready"')
    return Agent(node, config, process)
