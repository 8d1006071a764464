"""`moactl selftest` on this very node: every step, and nothing left, also of a killed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from interceptor.cgroup import Cgroup, mount_point
from tests.support.agents import MOACTL
from tests.support.documented import assert_as_documented
from tests.support.lab import wait_until


def traces(pid: int) -> list[str]:
    """Of the self-test that this process was."""
    name = f"moa-selftest-{pid}"
    return [
        str(top / name) for top in (Path("/sys/fs/bpf"), mount_point()) if (top / name).exists()
    ]


def test_selftest_passes_and_leaves_nothing() -> None:
    with subprocess.Popen([MOACTL, "selftest", "-o", "json"], stdout=subprocess.PIPE) as popen:
        found = json.loads(popen.communicate(timeout=60)[0])
    assert popen.returncode == 0, found
    assert_as_documented("selftest", found)
    assert [step["id"] for step in found["steps"]][:3] == ["off", "shadow", "redirect"]
    assert traces(popen.pid) == []


_SCRIPT = "from installer import selftest\nfor o in selftest.run(): print(o.id, flush=True)"


def killed_after(step: str, *, stopped: bool = False) -> int:
    """Kill a self-test behind this step, and when its agent is stopped; its process id."""
    argv = [sys.executable, "-c", _SCRIPT]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as popen:
        assert popen.stdout is not None
        assert f"{step}\n" in iter(popen.stdout.readline, "")
        agent = Cgroup(f"/moa-selftest-{popen.pid}/agent")
        if stopped:
            wait_until(lambda: state_of(agent) == "T", 5, "its agent is stopped")
        os.kill(popen.pid, signal.SIGKILL)
    return popen.pid


def state_of(cgroup: Cgroup) -> str:
    """Of the one process in it; nothing when there is none."""
    states = ""
    for pid in cgroup.processes():
        states += Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return states


@pytest.mark.parametrize(("step", "stopped"), [("off", False), ("excluded", True)])
def test_selftest_that_is_killed_is_cleared_by_the_next(step: str, stopped: bool) -> None:
    pid = killed_after(step, stopped=stopped)
    assert traces(pid)
    top = Cgroup(f"/moa-selftest-{pid}")
    wait_until(lambda: not list(top.processes()), 5, "its processes have ended with it")
    done = subprocess.run([MOACTL, "selftest", "-o", "json"], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    assert traces(pid) == []


def test_process_that_a_killed_selftest_left_is_ended() -> None:
    """Of versions whose processes did not end with them."""
    with subprocess.Popen(["true"]) as gone:
        pass
    agent = Cgroup(f"/moa-selftest-{gone.pid}/agent")
    agent.create()
    with subprocess.Popen(["sleep", "600"]) as left:
        try:
            agent.add(left.pid)
            os.kill(left.pid, signal.SIGSTOP)
            done = subprocess.run([MOACTL, "selftest"], capture_output=True, check=False)
            assert done.returncode == 0, done.stdout
            assert left.wait(5) == -signal.SIGKILL
            assert traces(gone.pid) == []
        finally:
            left.kill()
            left.wait()
            for cgroup in (agent, Cgroup(f"/moa-selftest-{gone.pid}")):
                cgroup.remove()
