"""The supervisor with real agents in a real kernel: crashes, its own end, upgrades, memory."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Measured
from tests.support.agents import write_config
from tests.support.cli import json_on, moactl_on
from tests.support.documented import assert_as_documented
from tests.support.lab import Lab, wait_until
from tests.support.scripted_agent import make_environment
from tests.support.supervised import CRASHES, OPEN_S, OPS, PORT, World, start_world

pytestmark = pytest.mark.e2e

REDIS_PORT = 6379
MAX_PSS_MB = 25.0


@pytest.fixture(scope="module")
def made(lab: Lab) -> World:
    return start_world(lab)


@pytest.fixture
def world(made: World) -> World:
    """With a supervisor that runs and an agent that serves; the circuit is closed."""
    assert made.opsd is not None
    if made.opsd.popen.poll() is not None:
        made.start()
    made.wait_serving()
    wait_until(lambda: made.ask() == "b", 10, "the agent routes")
    return made


def test_killed_agent_is_started_again(world: World, measured: Measured) -> None:
    """Connections that stood go on with the next agent."""
    first = world.wait_serving()
    load = world.load(20)
    os.kill(first, signal.SIGKILL)
    start_s = time.monotonic()
    wait_until(lambda: world.ask() == "b", 20, "another one routes")
    seconds = time.monotonic() - start_s
    second = world.wait_serving(other_than=first)
    assert second != first
    assert world.ops().status()["last_crash"] == "killed by SIGKILL"
    assert f"--adopt {world.a.directory}/run/keeper-{first}.sock" in world.words
    load.popen.wait(40)
    report = json.loads(load.output.splitlines()[-1])
    measured(
        "agent killed -9, until another one routes", seconds=seconds,
        ok=report["ok"], failed=len(report["failures"]),
    )  # fmt: skip
    # A request whose bytes were in the dead process is told so; no connection was lost.
    assert {failure["kind"] for failure in report["failures"]} <= {"ec 303"}, report


def test_dead_agents_connections_go_direct_at_once(world: World) -> None:
    """Its keeper holds the listeners open, and the heartbeat is fresh for two seconds: it is
    the supervisor that takes them out of the kernel."""
    first = world.wait_serving()
    os.kill(first, signal.SIGSTOP)  # so that it dies with a queue, and nothing is accepted
    os.kill(first, signal.SIGKILL)
    assert world.ask(PORT) == "b", "direct, or by the next agent, but never lost"
    world.wait_serving(other_than=first)


def test_upgrade_under_load(world: World, measured: Measured) -> None:
    """What SIGTERM to an agent alone costs such clients, test_failover.py tells."""
    first = world.wait_serving()
    load = world.load(25, rate=300)
    lines = world.moactl("restart", "--bake", "2")
    last = lines[-1]
    assert (last["outcome"], last["ok"], last["done"]) == ("upgraded", True, True), lines
    assert last["moved"] >= 8
    assert {"checking", "starting", "giving", "baking"} <= {line["stage"] for line in lines}
    for line in lines:
        assert_as_documented("agent restart", line)
    assert world.serving() not in (0, first)
    load.popen.wait(30)
    report = json.loads(load.output.splitlines()[-1])
    assert report["failures"] == []
    wait_until(lambda: not Path(f"/proc/{first}").exists(), 15, "the old one has left")
    measured(
        "moactl agent restart, clients without any retry",
        seconds=last["elapsed_s"], moved=last["moved"],
        sent=report["sent"], failed=len(report["failures"]),
    )  # fmt: skip


def test_text_of_an_upgrade_and_status(world: World) -> None:
    done = moactl_on(world.a, "agent", "restart", "--bake", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "giving" in done.stdout
    assert done.stdout.isascii()
    assert "connections moved" in done.stdout
    assert_as_documented("agent status", json_on(world.a, "agent", "status"))
    assert_as_documented("agent versions", json_on(world.a, "agent", "versions"))
    assert "supervisor" in moactl_on(world.a, "agent", "status").stdout


def test_rolled_back_by_hand(world: World) -> None:
    first = world.wait_serving()
    load = world.load(20)
    lines = world.ops().ask({"do": "restart", "bake_s": 600})
    next(line for line in lines if line["stage"] == "baking")
    undone = world.moactl("rollback")[-1]
    assert (undone["outcome"], undone["ok"]) == ("rolled back", True)
    assert_as_documented("agent rollback", undone)
    assert world.wait_serving() == first
    load.popen.wait(30)
    assert json.loads(load.output.splitlines()[-1])["failures"] == []


def test_new_agent_killed_while_it_bakes(world: World, measured: Measured) -> None:
    """The old one, which is retired, takes everything from the dead one's keeper."""
    first = world.wait_serving()
    load = world.load(25)
    lines = world.ops().ask({"do": "restart", "bake_s": 600})
    new = next(line for line in lines if line["stage"] == "baking")["to"]["pid"]
    before = world.requests()["total"]
    wait_until(lambda: world.requests()["total"] > before + 100, 10, "the new one routes")
    os.kill(new, signal.SIGKILL)
    last = list(lines)[-1]
    assert (last["outcome"], last["ok"]) == ("rolled back", False), world.words
    assert last["text"] == "the new agent died: killed by SIGKILL", world.words
    assert world.wait_serving() == first
    load.popen.wait(40)
    report = json.loads(load.output.splitlines()[-1])
    assert {failure["kind"] for failure in report["failures"]} <= {"ec 303"}, report
    measured("new agent killed -9 while it bakes", ok=report["ok"], failed=len(report["failures"]))


def test_old_agent_killed_while_the_new_one_bakes(world: World) -> None:
    """There is no way back then, and no harm."""
    first = world.wait_serving()
    load = world.load(20)
    lines = world.ops().ask({"do": "restart", "bake_s": 3})
    next(line for line in lines if line["stage"] == "baking")
    os.kill(first, signal.SIGKILL)
    seen = list(lines)
    assert any(line["event"] == "warning" for line in seen)
    assert seen[-1]["outcome"] == "upgraded"
    assert world.wait_serving(other_than=first)
    load.popen.wait(40)
    assert json.loads(load.output.splitlines()[-1])["failures"] == []


def test_upgrade_that_is_refused(world: World) -> None:
    """The check of a version that speaks another protocol; nothing is started."""
    first = world.wait_serving()
    new = world.a.directory / "other-version"
    if not new.exists():
        make_environment(new, version="9", handover=[90, 91])
    done = moactl_on(world.a, "agent", "upgrade", "--to", str(new))
    assert done.returncode == 1
    assert "by protocol 90 to 91" in done.stderr
    assert "next:" in done.stderr
    done = moactl_on(world.a, "agent", "upgrade", "--to", "7.7.7")
    assert done.returncode == 1
    assert "no version 7.7.7 below /opt/moa/versions" in done.stderr
    assert world.serving() == first


def test_killed_supervisor_finds_its_agent_and_upgrades_it(world: World) -> None:
    first = world.wait_serving()
    assert world.opsd is not None
    world.opsd.kill()
    assert world.ask() == "b", "the agent serves on"
    done = moactl_on(world.a, "agent", "status")
    assert done.returncode == 1
    assert "no supervisor answers" in done.stderr
    assert "systemctl start moa-opsd" in done.stderr
    world.start()
    assert world.wait_serving() == first
    assert world.moactl("restart", "--bake", "0")[-1]["outcome"] == "upgraded"
    assert world.ask() == "b"


def test_crash_loop_opens_the_circuit_and_traffic_goes_direct(world: World) -> None:
    assert world.opsd is not None
    world.opsd.kill()  # who comes anew knows nothing of the crashes of other tests
    world.start()
    pid = 0
    for _ in range(CRASHES):
        pid = world.wait_serving(other_than=pid)
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: world.ops().status()["circuit"] == "open", 30, "the circuit is open")
    status = json_on(world.a, "agent", "status")
    assert status["agents"] == []
    assert status["last_crash"] == "killed by SIGKILL"
    assert 0 < status["next_start_s"] <= OPEN_S
    assert world.ask(PORT) == "b", "direct"
    assert world.ask() == "ConnectionRefusedError", "no agent"
    assert not json_on(world.a, "status")["node"]["serves"]
    world.wait_serving()
    assert world.ops().status()["circuit"] == "half-open"
    wait_until(lambda: world.ask() == "b", 10, "the agent routes again")


def test_stop_ends_the_agent_and_readiness_is_told(world: World) -> None:
    assert world.opsd is not None
    first = world.wait_serving()
    assert world.opsd.stop(20) == 0
    wait_until(lambda: not Path(f"/proc/{first}").exists(), 5, "the agent has ended")
    assert world.ask(PORT) == "b", "direct"
    assert sorted(p.name for p in (world.a.directory / "run").iterdir()) == [
        "agent.lock",
        "opsd.lock",
    ]
    told = _Told(world.a.directory / "notify")
    with told.sock:
        world.start(NOTIFY_SOCKET=str(told.path), WATCHDOG_USEC="2000000")
        told.until("READY=1")
        assert world.serving(), "it is ready when the agent serves"
        told.until(f"STATUS=agent {world.serving()}")
        told.until("WATCHDOG=1")
        assert "FDNAME=control" in told.words
        assert f"FDNAME=agent-{world.serving()}" in told.words
        environment = Path(f"/proc/{world.serving()}/environ").read_bytes()
        assert b"NOTIFY_SOCKET" not in environment


def test_memory(world: World, measured: Measured) -> None:
    """Without peers; with a registry in Redis and a peer."""
    measured("moa-opsd, PSS in MB, no peers", mb=_pss(world))
    assert _pss(world) < MAX_PSS_MB
    redis = world.b.start(
        "redis", "redis-server", "--bind", world.b.ip4, "--port", str(REDIS_PORT),
        "--dir", str(world.b.directory), "--save", "", "--protected-mode", "no",
    )  # fmt: skip
    redis.wait_line("Ready to accept connections")
    text = world.config.read_text()
    assert world.opsd is not None
    assert world.opsd.stop(20) == 0
    write_config(
        world.a, f'kind = "redis"\nurl = "redis://{world.b.ip4}:{REDIS_PORT}/0"',
        f'[peer]\nlisten = ["{world.a.ip4}:15008"]\nnodes = ["{world.b.ip4}:15008"]\n{OPS}',
        'application = "chat"',
    )  # fmt: skip
    world.start()
    world.wait_serving()
    with_peers = _pss(world)
    measured("moa-opsd, PSS in MB, peers and Redis", mb=with_peers)
    assert world.opsd.stop(20) == 0
    world.config.write_text(text)
    assert with_peers < MAX_PSS_MB


def _pss(world: World) -> float:
    return float(world.ops().status()["supervisor"]["pss_mb"])


class _Told:
    """What a process tells the socket of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.settimeout(20)
        self.words = ""

    def until(self, text: str) -> None:
        while text not in self.words:
            self.words += self.sock.recv(4096).decode() + "\n"
