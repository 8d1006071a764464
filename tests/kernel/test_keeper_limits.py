"""A keeper has the limit of descriptors of its birth, and its agent's table, which outgrows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from installer import estate
from tests.support.lab import REPO

_AGENT = """
import os, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))
from installer import keeper
keeper.start()
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
from installer.keeping import Keeping
keeping = Keeping.begin(Path(sys.argv[1]))
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(200)]
keeping.name({"last": held[-1]})
print("serving", flush=True)
sys.stdin.read()
"""


def test_agent_with_more_descriptors_than_its_keeper_could_have_opened(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", _AGENT, str(tmp_path)]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, cwd=REPO) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"serving\n"
        process.kill()
        process.wait()
        got = estate.fetch(tmp_path / f"keeper-{process.pid}.sock")
        assert got is not None
        assert got.names == ["last"]
        got.done()
