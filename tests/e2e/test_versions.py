"""From the version before to this one and back, under load, by the supervisor."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from installer.client import AgentClient
from tests.e2e.conftest import Measured
from tests.support.lab import Lab, wait_until
from tests.support.supervised import World, start_world
from tests.support.versions import environment_of

pytestmark = pytest.mark.e2e

BEFORE = "0.1.0"
THIS = Path(sys.executable).parent.parent


@pytest.fixture(scope="module")
def world(lab: Lab) -> World:
    return start_world(lab)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment_of(BEFORE, tmp_path_factory.mktemp("versions") / BEFORE)


def version(world: World) -> str:
    return str(AgentClient.of(world.a.directory / "run").status()["version"])


def test_older_version_and_back(world: World, before: Path, measured: Measured) -> None:
    this = version(world)
    load = world.load(40)
    for target, wanted in ((before, BEFORE), (THIS, this), (before, BEFORE)):
        last = world.moactl("upgrade", "--to", str(target), "--bake", "1")[-1]
        assert last["outcome"] == "upgraded", last
        assert version(world) == wanted
    assert world.moactl("rollback")[-1]["ok"]
    wait_until(lambda: version(world) == this, 10, "this version again")
    load.popen.wait(60)
    report = json.loads(load.output.splitlines()[-1])
    measured("from a version to the one before, four times", sent=report["sent"])
    assert report["failures"] == []
    assert world.requests()["total"] >= report["sent"]
