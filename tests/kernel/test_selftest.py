"""`moactl selftest` on this very node: every step, and nothing left, also of a killed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from interceptor.cgroup import mount_point
from tests.support.agents import MOACTL
from tests.support.documented import assert_as_documented


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


def test_selftest_that_is_killed_is_cleared_by_the_next() -> None:
    script = "from installer import selftest\nfor o in selftest.run(): print(o.id, flush=True)"
    popen = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert popen.stdout is not None
    assert popen.stdout.readline() == "off\n"
    os.kill(popen.pid, signal.SIGKILL)
    popen.wait()
    popen.stdout.close()
    assert traces(popen.pid)
    deadline_s = time.monotonic() + 60
    # Its children notice at their next turn that it has gone.
    while traces(popen.pid) and time.monotonic() < deadline_s:
        subprocess.run([MOACTL, "selftest", "-o", "json"], capture_output=True, check=False)
    assert traces(popen.pid) == []
