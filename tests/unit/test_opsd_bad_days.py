"""The supervisor on bad days."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from installer.config import load
from installer.opsd import versions
from installer.opsd.agent import Agent
from installer.opsd.settings import OpsdSettings
from installer.opsd.supervisor import Supervisor
from installer.opsd.systemd import Notifier
from installer.opsd.upgrade_types import Outcome
from installer.opsd.upgrading import Line, Subscriber, Upgrading
from tests.support.opsd import OpsdWorld, short_home


async def test_an_error_of_ours_does_not_leave_an_upgrade_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever it is: the agent that serves goes on, who asked is told, the next one works."""

    def breaks(_upgrading: Upgrading) -> None:
        raise RuntimeError("nobody thought of it")

    with short_home() as home:
        world = OpsdWorld(home)
        settings = OpsdSettings.of(load(world.config), world.config)
        supervisor = Supervisor(settings, Notifier(), lambda: None, {})
        one, two, stop = world.environment("1"), world.environment("2"), asyncio.Event()
        world.confirm(one)
        lines: list[Line] = []

        def current() -> Agent | None:
            return supervisor.current

        running = asyncio.create_task(supervisor.run(stop))
        try:
            async with asyncio.timeout(20):
                while (first := supervisor.current) is None or first.state != "serving":
                    await asyncio.sleep(0.01)
                with monkeypatch.context() as patch:
                    patch.setattr(Upgrading, "_tick", breaks)
                    broken = Upgrading(supervisor, settings, first, two)
                    broken.subscribe(Subscriber(lines.append, Outcome.UPGRADED))
                    supervisor.upgrade(broken)
                    while supervisor.upgrading is not None:
                        await asyncio.sleep(0.01)
                assert supervisor.current is first
                assert lines[-1]["done"]
                assert "nobody thought of it" in lines[-1]["text"]
                supervisor.upgrade(Upgrading(supervisor, settings, first, two))
                while (second := current()) is None or second is first:
                    await asyncio.sleep(0.01)
                assert second.version == "2"
        finally:
            stop.set()
            await running
            world.close()


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
