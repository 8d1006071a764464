"""The supervisor's parts by themselves: back-off and circuit, the gate, versions, names, words."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from installer.config import Config
from installer.config_ops import Ops
from installer.opsd import estates, versions
from installer.opsd.agent import Agent
from installer.opsd.ending import Watch
from installer.opsd.health import Beat, GateLimits, Health, Pulse, unwell
from installer.opsd.restarts import Circuit, Restarts, RestartTimes
from installer.opsd.settings import OpsdSettings, OpsSettings, SettingsError, read
from installer.opsd.versions import Record, VersionError
from tests.support.scripted_agent import make_environment

TIMES = RestartTimes(first_s=0.1, max_s=10, crashes=5, window_s=60, open_s=60)
GATE = GateLimits(
    min_requests=50, error_share=0.02, latency_factor=3, latency_ms=20, lag_ms=250, silent_s=5
)
OPS = OpsSettings(**Ops().model_dump())
BEFORE = Health(requests=1000, errors=10, latency_ms=2.0, loop_lag_ms=1.0)

# Back-off and circuit


def test_waits_double_with_jitter() -> None:
    restarts = Restarts(RestartTimes(0.1, 1.0, 100, 60, 60), random.Random(1))
    waits = [restarts.crashed(float(n)) for n in range(8)]
    for wait_s, longest_s in zip(waits, (0.1, 0.2, 0.4, 0.8, 1, 1, 1, 1), strict=True):
        assert longest_s / 2 <= wait_s <= longest_s


def test_crashes_in_a_window_open_the_circuit() -> None:
    restarts = Restarts(TIMES)
    for n in range(4):
        restarts.crashed(float(n))
        assert restarts.circuit is Circuit.CLOSED
    assert restarts.crashed(4.0) == 60
    assert restarts.circuit is Circuit.OPEN


def test_crashes_far_apart_do_not() -> None:
    restarts = Restarts(TIMES)
    for n in range(20):
        restarts.crashed(20.0 * n)
    assert restarts.circuit is Circuit.CLOSED


def test_half_open_fails_and_waits_longer_up_to_a_bound() -> None:
    restarts = Restarts(TIMES)
    for n in range(5):
        restarts.crashed(float(n))
    waits = []
    for n in range(6):
        restarts.trying()
        assert restarts.circuit is Circuit.HALF_OPEN
        waits.append(restarts.crashed(100.0 * (n + 1)))
    assert waits == [120, 240, 480, 600, 600, 600]


def test_agent_that_serves_for_a_window_is_well_again() -> None:
    restarts = Restarts(TIMES)
    for n in range(5):
        restarts.crashed(float(n))
    restarts.trying()
    restarts.serves(100.0)
    restarts.tick(159.0)
    assert restarts.circuit is Circuit.HALF_OPEN
    restarts.tick(160.0)
    assert (restarts.circuit, restarts.crashes) == (Circuit.CLOSED, 0)
    assert restarts.crashed(161.0) <= 0.1


# The gate


def pulse(*beats: tuple[int, int, float | None, float]) -> Pulse:
    """Beats as requests, errors, latency and lag, a second apart."""
    made = Pulse()
    for second, (requests, errors, latency_ms, lag_ms) in enumerate(beats):
        made.add(Beat(float(second), requests, errors, latency_ms, lag_ms))
    return made


@pytest.mark.parametrize(
    ("beats", "why"),
    [
        ([(0, 0, None, 0), (40, 40, 999.0, 0)], None),
        ([(0, 0, None, 0), (100, 2, 2.0, 0)], None),
        ([(0, 0, None, 0), (100, 4, 2.0, 0)], "4 of 100 requests failed"),
        ([(0, 0, None, 0), (100, 0, 21.0, 0)], None),
        ([(0, 0, None, 0)] * 4 + [(100, 0, 23.0, 0)], "requests take 23.0 ms, before 2.0 ms"),
        ([(0, 0, None, 0)] * 3 + [(100, 0, 99.0, 0)], None),
        ([(0, 0, None, 0), (90, 0, 1.0, 0), (100, 0, 99.0, 0)], None),
        ([(0, 0, None, 300)] * 4, None),
        ([(0, 0, None, 300)] * 5, "its loop is 300 ms late"),
    ],
)
def test_gate(beats: list[Any], why: str | None) -> None:
    new = pulse(*beats)
    assert new.last is not None
    seen = unwell(BEFORE, new, 0.0, new.last.at_s, GATE)
    assert seen is None if why is None else why in str(seen)


def test_gate_without_a_past_judges_errors_alone() -> None:
    new = pulse((0, 0, None, 0), (100, 3, 900.0, 0))
    assert "3 of 100" in str(unwell(None, new, 0.0, 1.0, GATE))
    assert unwell(None, pulse((0, 0, None, 0), (100, 0, 900.0, 0)), 0.0, 1.0, GATE) is None


def test_silence() -> None:
    assert unwell(BEFORE, Pulse(), 10.0, 14.0, GATE) is None
    assert "said nothing for 6.0 s" in str(unwell(BEFORE, Pulse(), 10.0, 16.0, GATE))


@pytest.mark.parametrize("word", [{}, {"requests": "x"}, {"requests": None}])
def test_beat_that_is_none(word: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="beat"):
        Beat.of(word, 0.0)


# An agent that hangs


@pytest.fixture
def agent() -> Iterator[Agent]:
    process = subprocess.Popen(["sleep", "600"])
    pidfd = os.pidfd_open(process.pid)
    yield Agent(process.pid, pidfd, Path("/nowhere"), None)
    os.close(pidfd)
    process.kill()
    process.wait()


def look(agent: Agent, times: Iterable[float], crashes: int = 0) -> bool:
    """Whether an agent that is silent is killed, by a supervisor that runs at these times."""
    watch = Watch(OPS)
    for now_s in times:
        watch.look(agent, now_s, crashes)
    return agent.was_killed


def every_200_ms(seconds: float) -> list[float]:
    return [100 + n / 5 for n in range(int(seconds * 5) + 1)]


def test_agent_that_is_silent_is_killed(agent: Agent) -> None:
    agent.has_served = True
    assert not look(agent, every_200_ms(OPS.silent_s))
    assert look(agent, every_200_ms(0.4))


def test_agent_that_does_not_come_to_serve_is_killed(agent: Agent) -> None:
    assert not look(agent, every_200_ms(OPS.start_s))
    assert look(agent, every_200_ms(0.4))


@pytest.mark.parametrize(("crashes", "longer"), [(1, 2), (3, 8), (50, 16)])
def test_agent_has_longer_to_start_after_each_crash(
    agent: Agent, crashes: int, longer: int
) -> None:
    """On a node that is too slow for `start_s`, one serves at last."""
    assert not look(agent, every_200_ms(OPS.start_s * longer), crashes)
    assert look(agent, every_200_ms(0.4), crashes)


def test_time_in_which_the_supervisor_did_not_run_does_not_count(agent: Agent) -> None:
    agent.has_served = True
    assert not look(agent, [0, 1000, 2000, 2000.2])
    assert agent.silent_s == pytest.approx(1.2)


# Settings


def test_settings_have_every_key_of_the_section() -> None:
    assert {field.name for field in fields(OpsSettings)} == set(Ops.model_fields)


def test_settings_survive_the_way_through_json() -> None:
    settings = OpsdSettings.of(Config(), Path("/etc/moa/agent.toml"))
    assert OpsdSettings.from_json(json.loads(settings.to_json())) == settings


def test_configuration_that_is_not_valid_is_told(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("[ops]\ncrashes = 0\n")
    with pytest.raises(SettingsError, match=r"ops\.crashes"):
        read(path)


HEAVY = ("pydantic", "redis", "aiohttp", "google.protobuf", "uvloop", "rich", "click")


def test_supervisor_imports_nothing_heavy() -> None:
    """Each of these is megabytes for as long as the node is up."""
    done = subprocess.run(
        [
            sys.executable, "-I", "-c",
            "import sys; sys.modules['rich'] = None; import installer.opsd.daemon; "
            f"print([n for n in {HEAVY} if sys.modules.get(n)])",
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


# Versions


def test_path_to_an_environment_or_its_agent(tmp_path: Path) -> None:
    made = make_environment(tmp_path / "2")
    assert versions.resolve(str(made)) == made
    assert versions.resolve(str(made / "bin" / "moa-agent")) == made


@pytest.mark.parametrize("to", ["9.9.9", "/nowhere", "a/b", "/etc"])
def test_what_is_no_version(to: str) -> None:
    with pytest.raises(VersionError):
        versions.resolve(to)


def test_version_is_confirmed_and_the_installers_link_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below, link = tmp_path / "versions", tmp_path / "current"
    monkeypatch.setattr(versions, "VERSIONS", below)
    monkeypatch.setattr(versions, "CURRENT", link)
    one, two = (make_environment(below / name) for name in "12")
    link.symlink_to("versions/1")
    versions.confirm(tmp_path / "state", one)
    versions.confirm(tmp_path / "state", two)
    assert os.readlink(link) == "versions/2"
    assert versions.load(tmp_path / "state") == Record(str(two), str(one))
    versions.confirm(tmp_path / "state", two)
    assert versions.load(tmp_path / "state").previous == str(one)
    assert versions.known() == ["1", "2"]
    versions.confirm(tmp_path / "state", make_environment(tmp_path / "elsewhere"))
    assert os.readlink(link) == "versions/2"


def test_link_of_an_operator_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below, link = tmp_path / "versions", tmp_path / "current"
    monkeypatch.setattr(versions, "VERSIONS", below)
    monkeypatch.setattr(versions, "CURRENT", link)
    link.symlink_to("/home/me/checkout")
    versions.confirm(tmp_path / "state", make_environment(below / "2"))
    assert os.readlink(link) == "/home/me/checkout"


@pytest.mark.parametrize("content", ["", "[]", "{", '"x"'])
def test_record_that_cannot_be_read_is_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / versions.RECORD).write_text(content)
    assert versions.load(tmp_path) == Record()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ({"check": "no"}, "its own check failed: no"),
        ({"handover": [3, 4]}, "by protocol 3 to 4"),
        ({"handover": "x"}, "does not say its versions"),
        ({"abi": 9}, "layout 9"),
    ],
)
async def test_check_of_a_version(tmp_path: Path, script: dict[str, Any], why: str) -> None:
    old = {"version": "1", "handover": [1, 2], "abi": 2}
    good = await versions.check(make_environment(tmp_path / "good"), None, old, 20)
    assert (good.version, good.handover) == ("good", (1, 1))
    with pytest.raises(VersionError, match=why):
        await versions.check(make_environment(tmp_path / "bad", **script), None, old, 20)


async def test_check_that_does_not_end(tmp_path: Path) -> None:
    home = make_environment(tmp_path / "slow")
    (home / "bin" / "moa-agent").write_text("#!/bin/sh\nexec sleep 1000\n")
    with pytest.raises(VersionError, match=r"no answer within 0\.2 s"):
        await versions.check(home, None, {}, 0.2)


# Names in the runtime directory


def test_names_of_the_dead_are_cleaned_and_others_stay(tmp_path: Path) -> None:
    dead = 2**22 + 1  # beyond the largest process id
    for name in (f"link-{dead}.sock", f"link-{os.getpid()}.sock", "agent.sock", "other"):
        (tmp_path / name).touch()
    estate = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with estate:
        estate.bind(str(tmp_path / f"keeper-{dead}.sock"))
        estate.listen()
        estates.clean(tmp_path)
        assert estates.of_the_dead(tmp_path) == [dead]
        assert estates.served(tmp_path, "link") == set()
    assert estates.of_the_dead(tmp_path) == []
    estates.clean(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "agent.sock", f"link-{os.getpid()}.sock", "other",
    ]  # fmt: skip


async def test_release_of_nobody(tmp_path: Path) -> None:
    await estates.release(tmp_path, 1)
