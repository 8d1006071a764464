"""The real moactl beside a real agent, and against a real registry."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interceptor.programs import OBJECT_PATH
from tests.kernel.mesh import PORT
from tests.support import agents
from tests.support.agents import MOACTL, Agent
from tests.support.cli import json_on, moactl_on
from tests.support.documented import assert_as_documented
from tests.support.lab import Lab, LabNode
from tests.support.redis import RedisServer

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it attaches eBPF programs"),
    pytest.mark.skipif(not OBJECT_PATH.exists(), reason=f"needs {OBJECT_PATH}: run `make build`"),
]


SERVICE = "/service/demo"


HOLDER = Path(__file__).parents[1] / "kernel" / "holder.py"


CALL = b'*2\r\n$3\r\nGET\r\n$60\r\n{"action":"/service/demo","params":{"m":"whoami","args":[]}}\r\n'


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def agent(lab: Lab) -> Agent:
    """A real agent on one node that routes to a real service on another."""
    node, far = lab.add_node("a"), lab.add_node("b")
    agents.start_service(far, PORT)
    services = {SERVICE: [f"{far.ip4}:{PORT}"]}
    registry = agents.static_registry(node.directory / "services.toml", services)
    return agents.start_agent(node, registry)


def call(node: LabNode, host: str) -> bytes:
    """One request by an unmodified client in the services' cgroup."""
    script = (
        "import socket, sys\n"
        f"s = socket.create_connection(({host!r}, {PORT}), 5)\n"
        f"s.sendall({CALL!r})\n"
        "print(s.recv(4096))\n"
    )
    done = node.call("python3", "-c", script)
    assert done.returncode == 0, done.stderr
    return done.stdout.encode()


def test_real_agent_seen_through_every_command(agent: Agent) -> None:
    node = agent.node
    far = node.lab.nodes["b"]
    json_on(node, "mesh", "on", "--cgroup", node.services.name)
    assert b'"ec": 200' in call(node, far.ip4)
    held = node.python("holder", str(HOLDER), "dial", far.ip4, str(PORT))
    held.wait_line("holds")
    status = json_on(node, "status")
    assert_as_documented("status", status)
    assert status["agent"]["pid"] == agent.process.pid
    assert status["agent"]["requests"]["ok"] == 1
    for command in ("conns", "service list", "registry status"):
        assert_as_documented(command, json_on(node, *command.split()))
    assert len(json_on(node, "conns")["conns"]) == 1
    shown = json_on(node, "service", "show", SERVICE)
    assert_as_documented("service show", shown)
    assert shown["source"] == "agent"
    doctor = json_on(node, "doctor")
    assert_as_documented("doctor", doctor)
    assert doctor["failed"] == 0, doctor
    assert {c["id"]: c["status"] for c in doctor["checks"]}["agent"] == "ok"
    for argv in (["status"], ["conns"], ["service", "list"], ["doctor"], ["registry", "status"]):
        done = moactl_on(node, *argv)
        assert done.stdout.isascii(), argv
        assert "\x1b" not in done.stdout, argv


def test_agent_run_serves_and_a_second_one_is_refused(lab: Lab) -> None:
    node = lab.add_node("a")
    registry = agents.static_registry(node.directory / "services.toml", {})
    config = str(agents.write_config(node, registry))
    first = node.start("agent", MOACTL, "agent", "run", "-c", config)
    first.wait_line('"ready"')
    second = node.call(MOACTL, "agent", "run", "-c", config)
    assert (second.returncode, second.stdout) == (1, "")
    assert f"process {first.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    assert first.stop() == 0


def test_uninstall_under_a_running_agent_and_again_after_it(agent: Agent) -> None:
    node = agent.node
    far = node.lab.nodes["b"]
    json_on(node, "mesh", "on", "--cgroup", node.services.name)
    first = json_on(node, "uninstall", "--yes")
    assert_as_documented("uninstall", first)
    assert first["agent_pids"] == [agent.process.pid]
    assert not node.root.exists()
    assert b'"ec": 200' in call(node, far.ip4)  # straight
    assert "kill" in moactl_on(node, "uninstall", "--yes").stdout
    assert agent.process.stop() == 0
    json_on(node, "uninstall", "--yes")
    assert not (node.directory / "run").exists()
    assert not (node.directory / "state").exists()
    last = json_on(node, "uninstall", "--yes")
    assert last["removed"] == []
    assert not node.root.exists()


def test_registering_by_hand_needs_no_agent(tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="s3cret") as server:
        config = tmp_path / "agent.toml"
        config.write_text(
            f'[agent]\nruntime_dir = "{tmp_path}/run"\n'
            f'[registry]\nkind = "redis"\nurl = "{server.url}"\n'
        )

        def run(*argv: str) -> dict[str, Any]:
            done = subprocess.run(
                [MOACTL, "-c", str(config), "-o", "json", *argv],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert "s3cret" not in done.stdout + done.stderr
            found: dict[str, Any] = json.loads(done.stdout)
            return found

        entered = run("service", "register", SERVICE, "10.0.0.1:5000", "--weight", "50", "--pre")
        assert_as_documented("service register", entered)
        assert entered["member"] == "10.0.0.1:5000?weight=50&pre=1"
        protos = ("--proto", "resp", "--proto", "turbo")
        run("service", "register", SERVICE, "10.0.0.1:5000", *protos, "--codec", "hessian2")
        run("service", "register", SERVICE, "[fd00::1]:5000", "--group", "blue", "--zone", "z1")
        listed = run("service", "list")["services"]
        assert [(s["group"], len(s["instances"])) for s in listed] == [("*", 1), ("blue", 1)]
        assert listed[0]["instances"][0]["protocols"] == ["resp", "turbo"]
        assert listed[0]["instances"][0]["codec"] == "hessian2"
        assert run("registry", "status")["registry"]["instances"] == 2
        left = run("service", "deregister", f"{SERVICE}#blue", "[fd00::1]:5000")
        assert_as_documented("service deregister", left)
        run("service", "deregister", f"{SERVICE}#blue", "[fd00::1]:5000")
        assert run("registry", "status")["registry"]["instances"] == 1
