"""The supervisor on bad days: nobody looked at an agent for a while, or the disk is full."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from installer.config import Config
from installer.opsd import versions
from installer.opsd.agent import Agent
from installer.opsd.ending import Watch
from installer.opsd.settings import OpsdSettings

OPS = replace(OpsdSettings.of(Config(), None).ops, silent_s=30, start_s=30)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as made:
        yield made
        made.kill()


@pytest.fixture
def agent(process: subprocess.Popen[bytes], tmp_path: Path) -> Iterator[Agent]:
    pidfd = os.pidfd_open(process.pid)
    yield Agent(process.pid, pidfd, tmp_path, None)
    os.close(pidfd)


@pytest.mark.parametrize("has_served", [False, True])
def test_time_in_which_nobody_looked_is_no_silence(
    agent: Agent, process: subprocess.Popen[bytes], has_served: bool
) -> None:
    """The unit was frozen for a minute, and the agent with it: then it has half a minute anew."""
    agent.has_served = has_served
    watch, now_s = Watch(OPS), time.monotonic()
    watch.look(agent, now_s)
    watch.look(agent, now_s + 60)
    assert process.poll() is None
    for second in range(61, 92):
        watch.look(agent, now_s + second)
    assert agent.was_killed
    assert process.wait(5) == -9


def test_what_a_full_disk_did_not_take_is_remembered_all_the_same(tmp_path: Path) -> None:
    """Otherwise a crash after an upgrade would start the version before it."""
    versions.save(tmp_path, versions.Record("/old", None))
    obstacle = tmp_path / "opsd.new"
    obstacle.mkdir()
    versions.confirm(tmp_path, Path("/new"))
    assert versions.load(tmp_path) == versions.Record("/new", "/old")
    obstacle.rmdir()
    versions.forget_upgrade(tmp_path)
    versions.save(tmp_path, versions.load(tmp_path))
    assert json.loads((tmp_path / versions.RECORD).read_text())["current"] == "/new"
