"""Upgrades by the supervisor as a real process, with scripted agents: real sockets and deaths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from installer.client import AgentError
from tests.support.lab import wait_until
from tests.support.opsd import OpsdWorld, serving_world, short_home

CHECK_FAILS = "registry.url: expected a URL"


@pytest.fixture
def home() -> Iterator[Path]:
    with short_home() as made:
        yield made


@pytest.fixture
def world(home: Path) -> Iterator[OpsdWorld]:
    """With an agent of version 1 that serves."""
    with serving_world(home) as made:
        yield made


def test_starts_the_version_that_was_confirmed(world: OpsdWorld) -> None:
    agent = world.wait_serving()
    assert agent["version"] == "1"
    assert world.client.status()["circuit"] == "closed"
    assert world.stop() == 0
    wait_until(lambda: not world.pids_of_agents(), 10, "no agent and no keeper is left")
    assert sorted(os.listdir(world.runtime_dir)) == ["opsd.lock"]


def test_upgrade_and_rollback_by_hand(world: OpsdWorld) -> None:
    first = world.wait_serving()
    two = world.environment("2")
    done = world.upgrade(two)
    assert (done["outcome"], done["ok"], done["moved"]) == ("upgraded", True, 7), done
    second = world.wait_serving()
    assert second["version"] == "2"
    assert second["pid"] != first["pid"]
    record = world.record()
    assert (record["current"], record["previous"]) == (str(two), str(world.home / "1"))
    wait_until(lambda: len(world.agents()) == 1, 10, "the old one has left")
    done = list(world.client.ask({"do": "rollback"}))[-1]
    assert (done["outcome"], done["ok"]) == ("upgraded", True)
    assert world.wait_serving()["version"] == "1"


@pytest.mark.parametrize(
    ("script", "outcome", "why"),
    [
        ({"check": CHECK_FAILS}, "refused", CHECK_FAILS),
        ({"handover": [2, 3]}, "refused", "hands over by protocol 2 to 3"),
        ({"abi": 3}, "refused", "layout 3"),
        ({"at": {"start": "exit"}}, "refused", "exit code 3"),
        ({"at": {"ready": "die"}}, "refused", "killed by SIGKILL"),
        ({"at": {"ready": "refuse"}}, "refused", "the script says so"),
        ({"at": {"take": "die"}}, "refused", "killed by SIGKILL"),
        ({"at": {"taken": "die"}}, "rolled back", "killed by SIGKILL"),
        ({"beat": {"failed": 5}}, "rolled back", "requests failed"),
        ({"beat": {"latency_ms": 90}}, "rolled back", "requests take 90.0 ms"),
        ({"beat": {"loop_lag_ms": 900}}, "rolled back", "900 ms late"),
    ],
)  # fmt: skip
def test_new_one_that_is_no_good(
    world: OpsdWorld, script: dict[str, Any], outcome: str, why: str
) -> None:
    """The old one goes on in every case, and the next upgrade works."""
    first = world.wait_serving()
    wait_until(
        lambda: ((world.serving() or first)["requests"] or 0) > 50, 10, "enough to compare with"
    )
    done = world.upgrade(world.environment("2", **script), bake_s=10)
    assert (done["outcome"], done["ok"]) == (outcome, False), done
    assert why in done["text"], done
    assert done["next"]
    assert world.wait_serving()["pid"] == first["pid"]
    wait_until(lambda: len(world.agents()) == 1, 10, "the new one has gone")
    assert world.record()["current"] == str(world.home / "1")
    done = world.upgrade(world.environment("3"))
    assert done["outcome"] == "upgraded", done


def test_new_one_that_hangs_while_it_bakes_is_killed(world: OpsdWorld) -> None:
    first = world.wait_serving()
    done = world.upgrade(world.environment("2", at={"taken": "stop"}), bake_s=10)
    assert done["outcome"] in ("refused", "rolled back"), done
    assert world.wait_serving()["pid"] == first["pid"]


def test_second_upgrade_is_refused(world: OpsdWorld) -> None:
    two = world.environment("2", at={"ready": "hang"})
    lines = world.client.ask({"do": "upgrade", "to": str(two)})
    next(lines)
    with pytest.raises(AgentError, match="one at a time"):
        world.upgrade(two)
    with pytest.raises(AgentError, match="cannot be rolled back just now"):
        list(world.client.ask({"do": "rollback"}))
    lines.close()  # who asked goes away: the upgrade goes on
    wait_until(lambda: world.client.status()["upgrade"]["stage"] == "starting", 10, "it goes on")


def test_rolled_back_by_hand_while_it_bakes(world: OpsdWorld) -> None:
    first = world.wait_serving()
    two = world.environment("2")
    lines = world.client.ask({"do": "upgrade", "to": str(two), "bake_s": 600})
    line = next(line for line in lines if line["stage"] == "baking")
    assert line["left_s"] > 500
    undone = list(world.client.ask({"do": "rollback"}))[-1]
    assert (undone["outcome"], undone["ok"]) == ("rolled back", True)
    seen = list(lines)[-1]
    assert (seen["outcome"], seen["ok"]) == ("rolled back", False)
    assert world.wait_serving()["pid"] == first["pid"]


@pytest.mark.parametrize("point", ["give", "given"])
def test_old_one_that_dies_while_it_gives(home: Path, point: str) -> None:
    """The new one takes the rest from its keeper; there is no way back then."""
    world = OpsdWorld(home)
    try:
        world.confirm(world.environment("1", at={point: "die"}))
        world.start()
        world.wait_serving()
        done = world.upgrade(world.environment("2"))
        assert done["outcome"] == "upgraded", done
        assert world.wait_serving()["version"] == "2"
    finally:
        world.close()


def test_both_die(home: Path) -> None:
    """Whoever was confirmed is started, and adopts what both left."""
    world = OpsdWorld(home)
    try:
        world.confirm(world.environment("1", at={"give": ["die", 1]}))
        world.start()
        first = world.wait_serving()
        done = world.upgrade(world.environment("2", at={"adopt": "die"}))
        assert done["outcome"] == "broken", done
        wait_until(lambda: (world.serving() or first)["pid"] != first["pid"], 10, "another one")
        assert world.wait_serving()["version"] == "1"
        assert world.words().count("keeper-") >= 1
    finally:
        world.close()


def test_stopped_during_an_upgrade(world: OpsdWorld) -> None:
    """Both agents end, and the next start knows of no upgrade."""
    lines = world.client.ask({"do": "upgrade", "to": str(world.environment("2")), "bake_s": 600})
    next(line for line in lines if line["stage"] == "baking")
    assert world.stop() == 0
    wait_until(lambda: not world.pids_of_agents(), 10, "no agent and no keeper is left")
    world.start()
    assert world.wait_serving()["version"] == "1", "the new one was not confirmed"
    assert world.record()["upgrade"] is None
