"""The agent with no more than its unit leaves it: four capabilities, no new privileges, and no
memory that is both written and executed."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator

import pytest

from installer.plan import units
from interceptor.programs import OBJECT_PATH
from tests.support import agents
from tests.support.agents import Agent
from tests.support.lab import Lab, wait_until
from tests.support.supervised import start_world

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it attaches eBPF programs"),
    pytest.mark.skipif(not OBJECT_PATH.exists(), reason=f"needs {OBJECT_PATH}: run `make build`"),
]

UNIT = units.texts(["moa-agent"], "/etc/moa/agent.toml")["moa-agent.service"]
SUPERVISOR_UNIT = units.texts(["moa-opsd"], "/etc/moa/agent.toml")["moa-opsd.service"]

# PR_SET_MDWE (65) with PR_MDWE_REFUSE_EXEC_GAIN, as MemoryDenyWriteExecute= does by a filter.
_DENY_AND_RUN = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):
    print("kernel without PR_SET_MDWE", file=sys.stderr)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def sandbox(unit: str) -> tuple[str, ...]:
    """How to start something with what a unit leaves it."""
    found = re.search(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    assert found
    kept = [f"+{name.removeprefix('CAP_').lower()}" for name in found[1].split()]
    return (
        *("setpriv", f"--bounding-set={','.join(['-all', *kept])}", "--inh-caps=-all"),
        *("--no-new-privs", sys.executable, "-I", "-c", _DENY_AND_RUN),
    )


def test_agent_intercepts_with_what_its_unit_leaves_it(lab: Lab) -> None:
    node, far = lab.add_node("a"), lab.add_node("b")
    agents.start_service(far, 5000)
    services = {"/service/demo": [f"{far.ip4}:5000"]}
    registry = agents.static_registry(node.directory / "services.toml", services)
    config = agents.write_config(node, registry)
    process = node.start(
        "agent",
        *sandbox(UNIT),
        *(sys.executable, "-I", "-m", "installer.agent", str(config)),
    )
    process.wait_line('"ready"')
    agent = Agent(node, config, process)
    agent.mesh_on()
    request = json.dumps({"action": "/service/demo", "params": {"m": "whoami", "args": []}})
    done = node.call("redis-cli", "-h", far.ip4, "-p", "5000", "GET", request)
    assert "200" in done.stdout, done.stderr
    assert agent.status()["requests"]["ok"] == 1
    assert process.stop() == 0


def test_supervisor_adopts_and_upgrades_with_what_its_unit_leaves_it(lab: Lab) -> None:
    world = start_world(lab, *sandbox(SUPERVISOR_UNIT))
    wait_until(lambda: world.ask() == "b", 10, "the agent routes")
    first = world.wait_serving()
    os.kill(first, signal.SIGKILL)
    second = world.wait_serving(other_than=first)
    assert f"keeper-{first}.sock" in world.words
    wait_until(lambda: world.ask() == "b", 10, "the next agent routes")
    assert world.moactl("restart", "--bake", "0")[-1]["outcome"] == "upgraded"
    assert world.wait_serving(other_than=second)
    assert world.ask() == "b"
    assert "Permission" not in world.words
    assert "not permitted" not in world.words
    assert world.opsd is not None
    assert world.opsd.stop(20) == 0
