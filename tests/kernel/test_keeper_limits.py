"""Keepers with too low a limit of descriptors, and those that are none."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

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


_STRANGER = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.bind(sys.argv[1]); s.listen()
print("there", flush=True)
sys.stdin.read()
"""


def test_nothing_is_asked_of_another_user() -> None:
    pipe = subprocess.PIPE
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        path = Path(directory, "keeper-1.sock")
        argv = [sys.executable, "-c", _STRANGER, str(path)]
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"there\n"
            with pytest.raises(estate.EstateError, match="user 65534 is there"):
                estate.fetch(path, 0.5)
            process.kill()
