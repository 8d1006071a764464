"""A boot of a lab's node: what a power cut takes away, and nothing else."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

from interceptor.cgroup import Cgroup
from tests.support.lab import LabNode, wait_until


def power_cut(node: LabNode, runtime_dir: Path, *cgroups: Cgroup) -> None:
    """The agent, and whatever else runs in `cgroups`, is gone, and so are the pins, the agent's
    cgroup and the runtime directory. Files of the node's state stay."""
    for cgroup in (*cgroups, node.agent):
        wait_until(partial(_is_empty, cgroup), 10, f"nothing runs in {cgroup.name}")
    shutil.rmtree(node.root)
    wait_until(node.agent.remove, 10, f"cgroup {node.agent.name} is removed")
    shutil.rmtree(runtime_dir, ignore_errors=True)


def _is_empty(cgroup: Cgroup) -> bool:
    pids = list(cgroup.processes()) if cgroup.exists() else []
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not pids
