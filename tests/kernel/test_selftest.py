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


def traces() -> set[str]:
    """Self-tests of others on this machine have names of their own, and end."""
    found = [*Path("/sys/fs/bpf").glob("moa-selftest-*"), *mount_point().glob("moa-selftest-*")]
    return {str(path) for path in found}


def test_selftest_passes_and_leaves_nothing() -> None:
    done = subprocess.run(
        [MOACTL, "selftest", "-o", "json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert_as_documented("selftest", found)
    assert [step["id"] for step in found["steps"]][:3] == ["off", "shadow", "redirect"]
    assert traces() == set()


def test_selftest_that_is_killed_is_cleared_by_the_next() -> None:
    script = "from installer import selftest\nfor o in selftest.run(): print(o.id, flush=True)"
    popen = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert popen.stdout is not None
    assert popen.stdout.readline() == "off\n"
    os.kill(popen.pid, signal.SIGKILL)
    popen.wait()
    popen.stdout.close()
    assert traces()
    deadline_s = time.monotonic() + 20
    # Its children notice at their next turn that it has gone.
    while traces() and time.monotonic() < deadline_s:
        subprocess.run([MOACTL, "selftest", "-o", "json"], capture_output=True, check=False)
    assert traces() == set()
