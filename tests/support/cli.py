"""Ways to call moactl: in this process, and as the real command on a node of a lab."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner, Result

from installer.cli.main import root
from installer.client import SOCKET_NAME
from interceptor.cgroup import Cgroup
from tests.support import documented
from tests.support.agents import MOACTL
from tests.support.fake_agent import http_answer, serving
from tests.support.lab import LabNode

SERVICES = """
[[service]]
uri = "/service/demo"
instances = ["10.0.0.1:5000?weight=50", "10.0.0.2:5000"]
[[service]]
uri = "/service/demo"
group = "blue"
instances = []
"""


def write_config(directory: Path) -> Path:
    """The configuration of a node that is all in one directory, with a static registry."""
    (directory / "services.toml").write_text(SERVICES)
    (directory / "run").mkdir()
    path = directory / "agent.toml"
    path.write_text(
        f"""
        [agent]
        cgroup = "/moa-of-no-test"
        runtime_dir = "{directory}/run"
        state_dir = "{directory}/state"
        [bpf]
        root = "{directory}/pins"
        [registry]
        file = "{directory}/services.toml"
        """
    )
    return path


@contextmanager
def answering_agent(directory: Path) -> Iterator[None]:
    """An agent of that node that answers as docs/CLI.md says."""
    answers = {
        "/v1/status": documented.example("status")["agent"],
        "/v1/conns": {key: documented.example("conns")[key] for key in ("conns", "peers")},
        "/v1/services": {"services": documented.example("service list")["services"]},
        "/v1/explain": documented.example("route explain"),
        "/v1/registry": documented.example("registry status")["registry"],
    }
    raw = {path: http_answer(json.dumps(answer).encode()) for path, answer in answers.items()}
    with serving(directory / "run" / SOCKET_NAME, raw):
        yield


def moactl(*argv: str | Path, stdin: str = "") -> Result:
    """Call moactl in this process."""
    return CliRunner().invoke(root, [str(a) for a in argv], input=stdin, prog_name="moactl")


def as_json(*argv: str | Path) -> dict[str, Any]:
    """The JSON of a call that succeeds."""
    result = moactl(*argv, "-o", "json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def commands(group: click.Group, path: Sequence[str] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command below a group, by its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            if command.invoke_without_command:
                yield " ".join((*path, name)), command
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def moactl_on(node: LabNode, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run the real moactl on a node, from a cgroup outside the mesh as an operator's shell is."""
    outside = Cgroup(f"/{node.lab.id}/outside")
    config = str(node.directory / "agent.toml")
    return node.call(MOACTL, *argv, "-c", config, cgroup=outside)


def json_on(node: LabNode, *argv: str) -> dict[str, Any]:
    """The JSON of the real moactl, which succeeds."""
    done = moactl_on(node, *argv, "-o", "json")
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found
