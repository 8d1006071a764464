"""Real agents on the nodes of a lab, and the services that they route to."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from installer.client import AgentClient
from interceptor.node import Node
from tests.support.lab import REPO, LabNode, Running, wait_until

SCOPE = '[scope]\ninclude = ["10.77.0.0/24", "fd77::/64"]\n'
MOACTL = str(Path(sys.executable).with_name("moactl"))


@dataclass(slots=True)
class Agent:
    """A moa-agent on a node, with its configuration and its process."""

    node: LabNode
    config: Path
    process: Running

    def moactl(self, *argv: str) -> Any:
        """Run moactl on this node; its JSON."""
        done = self.node.call(MOACTL, "-c", str(self.config), *argv, "-o", "json")
        assert done.returncode == 0, f"moactl {argv}: {done.returncode}: {done.stderr}"
        return json.loads(done.stdout)

    def client(self) -> AgentClient:
        return AgentClient.of(self.node.directory / "run")

    def status(self) -> dict[str, Any]:
        return self.client().status()

    def threads(self) -> int:
        """Threads of its process now."""
        return len(list(Path(f"/proc/{self.process.popen.pid}/task").iterdir()))

    def conns(self) -> dict[str, Any]:
        return AgentClient.of(self.node.directory / "run").conns()

    def mesh_on(self) -> None:
        """Scope this node's services and switch the mesh on."""
        node = Node(self.node.root)
        node.add_scope(self.node.services)
        node.switch(on=True)


def write_config(node: LabNode, registry: str, extra: str = "", identity: str = "") -> Path:
    """A configuration whose every path is the node's own; `identity` is more of [node]."""
    path = node.directory / "agent.toml"
    path.write_text(
        f"""
[node]
name = "{node.name}"
{identity}
[agent]
cgroup = "{node.agent.name}"
runtime_dir = "{node.directory}/run"
state_dir = "{node.directory}/state"
drain_timeout_s = 5
[bpf]
root = "{node.root}"
[registry]
{registry}
{extra if "[scope]" in extra else SCOPE + extra}
"""
    )
    return path


def start_agent(node: LabNode, registry: str, extra: str = "") -> Agent:
    """Start moa-agent on a node and wait until it is ready."""
    return _start(node, write_config(node, registry, extra))


def restart_agent(agent: Agent) -> Agent:
    """Start another one with the same configuration, after the first has ended."""
    return _start(agent.node, agent.config)


def _start(node: LabNode, config: Path) -> Agent:
    process = node.python("moa-agent", "-I", "-m", "installer.agent", str(config))
    process.wait_line('"ready"')
    return Agent(node, config, process)


def static_registry(path: Path, services: Mapping[str, Iterable[str]]) -> str:
    """Write a static registry of `uri` or `uri#group`; a configuration's [registry]."""
    lines = []
    for name, instances in services.items():
        uri, _, group = name.partition("#")
        quoted = ", ".join(f'"{instance}"' for instance in instances)
        lines.append(f'[[service]]\nuri = "{uri}"\ngroup = "{group}"\ninstances = [{quoted}]\n')
    staging = path.with_suffix(".new")
    staging.write_text("\n".join(lines))
    staging.replace(path)
    return f'kind = "static"\nfile = "{path}"'


def start_service(
    node: LabNode, port: int, service: str = "/service/demo", name: str = "", host: str = ""
) -> Running:
    """Start the sample service on a node and wait until it listens."""
    name = name or f"{node.name}-{port}"
    process = node.python(
        f"service-{name}",
        str(REPO / "tests/samples/demo_service.py"),
        "--host",
        host or node.ip4,
        "--port",
        str(port),
        "--service",
        service,
        "--name",
        name,
    )
    process.wait_line("ready")
    return process


def wait_for_instances(agent: Agent, count: int) -> None:
    """Wait until the agent's registry shows this many instances."""
    wait_until(
        lambda: agent.status()["registry"]["instances"] == count,
        10,
        f"{count} instances in the registry of {agent.node.name}",
    )
