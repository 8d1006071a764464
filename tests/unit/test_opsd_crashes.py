"""Crashes of scripted agents, and of the supervisor itself: real processes, no root."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import moactl
from tests.support.documented import assert_as_documented
from tests.support.lab import wait_until
from tests.support.opsd import OpsdWorld, Store, notify_socket, serving_world, short_home


@pytest.fixture
def home() -> Iterator[Path]:
    with short_home() as made:
        yield made


@pytest.fixture
def world(home: Path) -> Iterator[OpsdWorld]:
    """With an agent of version 1 that serves."""
    with serving_world(home) as made:
        yield made


def test_crashed_agent_is_started_again_with_its_estate(world: OpsdWorld) -> None:
    first = world.wait_serving()
    os.kill(first["pid"], signal.SIGKILL)
    wait_until(lambda: (world.serving() or first)["pid"] != first["pid"], 10, "another one")
    assert f"--adopt {world.runtime_dir}/keeper-{first['pid']}.sock" in world.words()
    assert world.client.status()["crashes"] == 1


def test_agent_that_hangs_is_killed_and_succeeded(home: Path) -> None:
    world = OpsdWorld(home, silent_s=3)
    try:
        world.confirm(world.environment("1"))
        world.start()
        first = world.wait_serving()
        os.kill(first["pid"], signal.SIGSTOP)
        wait_until(lambda: (world.serving() or first)["pid"] != first["pid"], 20, "another one")
        assert world.words().count("agent killed: it says nothing") == 1
        assert f"--adopt {world.runtime_dir}/keeper-{first['pid']}.sock" in world.words()
        assert world.client.status()["last_crash"] == "killed by SIGKILL"
    finally:
        world.close()


def test_agent_is_not_blamed_while_nobody_listened(home: Path) -> None:
    """A machine that stood still: both are frozen for longer than `silent_s`."""
    world = OpsdWorld(home, silent_s=3)
    try:
        world.confirm(world.environment("1"))
        world.start()
        first, opsd = world.wait_serving(), world.process
        assert opsd is not None
        opsd.send_signal(signal.SIGSTOP)
        os.kill(first["pid"], signal.SIGSTOP)
        frozen_s = time.monotonic()
        wait_until(lambda: time.monotonic() - frozen_s > 3.5, 10, "time has passed")
        opsd.send_signal(signal.SIGCONT)
        assert world.agents()[0]["heard_s"] > 3, "it has looked, and its agent is silent still"
        os.kill(first["pid"], signal.SIGCONT)
        wait_until(lambda: world.agents()[0]["heard_s"] < 1, 10, "it beats again")
        assert world.wait_serving()["pid"] == first["pid"]
        assert "agent killed" not in world.words()
    finally:
        world.close()


def test_crash_loop_opens_the_circuit(home: Path) -> None:
    world = OpsdWorld(home, crashes=3, open_s=1, crash_window_s=5)
    try:
        world.confirm(world.environment("1", at={"serve": ["exit", 3]}))
        world.start()
        wait_until(lambda: '"circuit": "open"' in world.words(), 20, "the circuit is open")
        status = world.client.status()
        assert (status["circuit"], status["agents"]) == ("open", [])
        assert world.wait_serving()["version"] == "1", "one is tried after a while"
        assert world.client.status()["circuit"] == "half-open"
        wait_until(lambda: world.client.status()["circuit"] == "closed", 20, "it is well again")
    finally:
        world.close()


def test_open_circuit_is_tried_when_somebody_asks(home: Path) -> None:
    world = OpsdWorld(home, crashes=1, open_s=3600)
    try:
        world.confirm(world.environment("1", at={"serve": ["exit", 1]}))
        world.start()
        wait_until(lambda: '"circuit": "open"' in world.words(), 20, "the circuit is open")
        seen = moactl("-c", world.config, "agent", "start")
        assert seen.exit_code == 0, seen.stderr
        assert "serves now" in seen.stdout
        seen = moactl("-c", world.config, "agent", "start", "-o", "json")
        assert_as_documented("agent start", json.loads(seen.stdout))
        assert json.loads(seen.stdout)["started"] is False
    finally:
        world.close()


def test_agent_of_somebody_else_is_left_alone(home: Path) -> None:
    """An agent without a supervisor holds the lock: nothing is started beside it."""
    world = OpsdWorld(home)
    try:
        world.confirm(world.environment("1"))
        with (world.runtime_dir / "agent.lock").open("w") as lock:
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            world.start()
            what = f"process {os.getpid()} is an agent without a supervisor"
            wait_until(lambda: what in str(world.last_crash()), 20, "it is told")
            assert "agent started" not in world.words()
        world.wait_serving()
    finally:
        world.close()


def test_estate_that_kills_is_released(home: Path) -> None:
    """Who dies over an estate twice shall not have it a third time."""
    world = OpsdWorld(home, crashes=9)
    try:
        world.confirm(world.environment("1", at={"adopt": "die"}))
        world.start()
        first = world.wait_serving()
        os.kill(first["pid"], signal.SIGKILL)
        wait_until(lambda: (world.serving() or first)["pid"] != first["pid"], 20, "another one")
        assert world.client.status()["estates"] == 0
    finally:
        world.close()


def test_killed_supervisor_finds_its_agent(world: OpsdWorld) -> None:
    first = world.wait_serving()
    world.kill()
    assert first["pid"] in world.pids_of_agents()
    world.start()
    assert world.wait_serving()["pid"] == first["pid"]
    os.kill(first["pid"], signal.SIGKILL)
    wait_until(lambda: (world.serving() or first)["pid"] != first["pid"], 10, "it is in charge")


def test_begins_anew_on_sighup(world: OpsdWorld) -> None:
    """The same process, the configuration as it is now, and the agent lives on."""
    first, opsd = world.wait_serving(), world.process
    assert opsd is not None
    world.config.write_text(world.config.read_text().replace("bake_s = 0", "bake_s = 600"))
    opsd.send_signal(signal.SIGHUP)
    wait_until(lambda: '"agents found"' in world.words() or None, 20, "it has begun anew")
    assert world.wait_serving()["pid"] == first["pid"]
    assert opsd.poll() is None
    two = world.environment("2")
    lines = world.client.ask({"do": "upgrade", "to": str(two)})
    assert next(line for line in lines if line["stage"] == "baking")["left_s"] > 500
    os.kill(first["pid"], signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{first['pid']}").exists(), 10, "it was reaped")


def test_both_killed_and_the_estate_is_found(world: OpsdWorld) -> None:
    first = world.wait_serving()
    world.kill()
    os.kill(first["pid"], signal.SIGKILL)
    world.start()
    second = world.wait_serving()
    assert second["pid"] != first["pid"]
    assert f"--adopt {world.runtime_dir}/keeper-{first['pid']}.sock" in world.words()


def test_supervisor_killed_during_an_upgrade_of_which_the_disk_was_too_full_to_tell(
    world: OpsdWorld,
) -> None:
    """The agents are not told to leave in the middle of it: what each says is enough."""
    first = world.wait_serving()
    two = world.environment("2", at={"take": "hang"})
    for line in world.client.ask({"do": "upgrade", "to": str(two)}):
        if line["stage"] == "giving":
            break
    world.kill()
    world.confirm(world.home / "1")
    world.start()
    wait_until(lambda: len(world.agents()) == 1, 30, "the new one has gone")
    assert "upgrade goes on" in world.words()
    assert world.wait_serving()["pid"] == first["pid"]


@pytest.mark.parametrize("stage", ["starting", "giving", "baking"])
def test_supervisor_killed_during_an_upgrade(world: OpsdWorld, stage: str) -> None:
    script = {"starting": {"ready": "hang"}, "giving": {"take": "hang"}, "baking": {}}[stage]
    first = world.wait_serving()
    lines = world.client.ask(
        {"do": "upgrade", "to": str(world.environment("2", at=script)), "bake_s": 1}
    )
    for line in lines:
        if line["stage"] == stage:
            break
    world.kill()
    world.start()
    if stage == "baking":
        wait_until(lambda: len(world.agents()) == 1, 20, "baked, and the old one has left")
        assert world.wait_serving()["version"] == "2"
        assert world.record()["current"] == str(world.home / "2")
    else:
        wait_until(lambda: len(world.agents()) == 1, 30, "the new one has gone")
        assert world.wait_serving()["pid"] == first["pid"]
    assert world.record()["upgrade"] is None


def test_a_start_that_fails_in_an_unforeseen_way_is_not_the_last(home: Path) -> None:
    world = OpsdWorld(home)
    lock = world.runtime_dir / "agent.lock"
    lock.mkdir()
    try:
        world.confirm(world.environment("1"))
        world.start()
        wait_until(lambda: "IsADirectoryError" in world.words(), 20, "a start has failed")
        lock.rmdir()
        world.wait_serving()
    finally:
        world.close()


def test_agent_that_never_serves_is_replaced(home: Path) -> None:
    world = OpsdWorld(home, start_s=3)
    try:
        world.confirm(world.environment("1", at={"start": ["hang", 1]}))
        world.start()
        world.wait_serving()
        assert "it does not serve" in world.words()
    finally:
        world.close()


def test_one_supervisor_at_a_time(world: OpsdWorld) -> None:
    first = world.process
    assert first is not None
    world.start()
    second, world.process = world.process, first
    assert second is not None
    assert second.wait(20) == 1
    assert f"a supervisor runs already (process {first.pid})" in world.words()


def test_systemd_keeps_the_control_socket_and_the_agents_pidfd(home: Path) -> None:
    """Over a crash of the supervisor: who asks meanwhile waits, and is answered."""
    world = OpsdWorld(home)
    world.confirm(world.environment("1"))
    with notify_socket(home / "notify") as systemd:
        env = {"NOTIFY_SOCKET": str(home / "notify")}
        try:
            world.start(env)
            store = Store(systemd)
            first = world.wait_serving()
            store.until(f"agent-{first['pid']}")
            world.kill()
            answer = world.client.ask({"do": "status"})
            waiting = threading.Thread(target=lambda: answers.extend(answer))
            answers: list[dict[str, Any]] = []
            waiting.start()
            world.start(env, store.fds)
            waiting.join(20)
            assert answers
            assert world.wait_serving()["pid"] == first["pid"]
            store.words = ""
            os.kill(first["pid"], signal.SIGKILL)
            store.until(f"FDSTOREREMOVE=1\nFDNAME=agent-{first['pid']}")
        finally:
            world.close()
            store.close()
