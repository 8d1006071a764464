"""The keeper: what a killed process had is there for who asks in time, and nothing is left."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from installer import estate, keeper
from proxy.net.board import Board
from tests.support.lab import REPO, wait_until


@dataclass(slots=True)
class Kept:
    """A process with a keeper, and the clients that it serves."""

    process: subprocess.Popen[str]
    path: Path
    port: int
    keeper: int
    clients: list[socket.socket] = field(default_factory=list)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def keeper_ends(self, timeout_s: float) -> bool:
        """Whether the keeper is gone within this time."""
        try:
            pidfd = os.pidfd_open(self.keeper)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([pidfd], [], [], timeout_s)[0])
        finally:
            os.close(pidfd)


Start = Callable[..., Kept]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Kept] = []

    def begin(connections: int = 3) -> Kept:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.kernel.kept", str(tmp_path), str(connections)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPO,
        )
        assert process.stdout is not None
        words = process.stdout.readline().split()
        path = tmp_path / f"keeper-{process.pid}.sock"
        made = Kept(process, path, int(words[1]), int(words[3]))
        started.append(made)
        for _ in range(connections):
            made.clients.append(socket.create_connection(("127.0.0.1", made.port)))
        assert process.stdout.readline() == "serving\n"
        return made

    yield begin
    for made in started:
        made.kill()
        with suppress(ProcessLookupError):
            os.kill(made.keeper, signal.SIGKILL)
        assert made.process.stdout is not None
        made.process.stdout.close()
        for client in made.clients:
            client.close()


def test_a_killed_process_loses_no_connection(start: Start) -> None:
    kept = start(3)
    kept.clients[0].send(b"before")
    kept.kill()
    kept.clients[0].send(b" and after")
    # Nobody accepts, but the listener is there.
    late = socket.create_connection(("127.0.0.1", kept.port))
    kept.clients.append(late)
    got = estate.fetch(kept.path)
    assert got is not None
    board = Board.read(got.board)
    assert board is not None
    numbers = [number for number, _entry in board.entries()]
    assert len(numbers) == 3
    assert got.names == ["out4"]
    listener = socket.socket(fileno=got.take("out4"))
    ends = [socket.socket(fileno=got.descriptors.pop(number)) for number in numbers]
    board.close()
    got.done()
    assert kept.keeper_ends(1)
    assert not kept.path.exists()
    assert {end.getpeername() for end in ends} == {c.getsockname() for c in kept.clients[:3]}
    by_peer = {end.getpeername(): end for end in ends}
    first = by_peer[kept.clients[0].getsockname()]
    assert first.recv(100) == b"before and after"
    first.send(b"answered")
    assert kept.clients[0].recv(100) == b"answered"
    accepted, peer = listener.accept()
    assert peer == late.getsockname()
    for sock in (accepted, listener, *ends):
        sock.close()
    assert kept.clients[1].recv(1) == b""


def test_more_than_one_message_of_descriptors(start: Start) -> None:
    kept = start(2 * keeper.BATCH + 7)
    kept.kill()
    got = estate.fetch(kept.path)
    assert got is not None
    assert len(got.descriptors) == 2 * keeper.BATCH + 8
    got.done()
    assert kept.keeper_ends(1)


def test_who_took_nothing_leaves_everything_to_the_next(start: Start) -> None:
    kept = start(2)
    kept.kill()
    first = estate.fetch(kept.path)
    assert first is not None
    first.close()
    second = estate.fetch(kept.path)
    assert second is not None
    assert len(second.descriptors) == 3
    second.done()
    assert all(client.recv(1) == b"" for client in kept.clients)


def test_a_living_process_keeps_what_it_has(start: Start) -> None:
    kept = start(1)
    with pytest.raises(estate.EstateError, match=f"process {kept.process.pid}, lives"):
        estate.fetch(kept.path)
    kept.kill()
    got = estate.fetch(kept.path)
    assert got is not None
    got.done()


def test_peace_leaves_no_keeper(start: Start) -> None:
    kept = start(1)
    kept.process.terminate()
    assert kept.process.wait() == 0
    assert kept.keeper_ends(2)
    assert not kept.path.exists()
    assert kept.clients[0].recv(1) == b""


def test_an_estate_that_nobody_wants_is_let_go(start: Start) -> None:
    kept = start(1)
    kept.kill()
    begun_s = time.monotonic()
    assert kept.keeper_ends(keeper.UNCLAIMED_S + 3)
    assert time.monotonic() - begun_s > keeper.UNCLAIMED_S - 1
    assert kept.clients[0].recv(1) == b""
    assert estate.fetch(kept.path) is None


@pytest.mark.parametrize("is_dead", [True, False])
def test_release_lets_go_at_once(start: Start, is_dead: bool) -> None:
    kept = start(1)
    if is_dead:
        kept.kill()
    estate.release(kept.path)
    assert kept.keeper_ends(0)
    assert not kept.path.exists()
    estate.release(kept.path)
    if is_dead:
        assert kept.clients[0].recv(1) == b""
        socket.create_server(("127.0.0.1", kept.port)).close()


def test_signals_for_the_agent_leave_the_keeper_alone(start: Start) -> None:
    kept = start(1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(kept.keeper, number)
    kept.kill()
    got = estate.fetch(kept.path)
    assert got is not None
    got.done()


def test_another_user_gets_nothing(start: Start, tmp_path: Path) -> None:
    kept = start(1)
    assert kept.path.stat().st_mode & 0o777 == 0o600
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o011)
    os.chmod(kept.path, 0o666)
    kept.kill()
    asked = subprocess.run(
        [sys.executable, "-c", _ASK, str(kept.path)], capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["say"] == "refused"
    got = estate.fetch(kept.path)
    assert got is not None
    got.done()


_ASK = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1])
s.send(b'{"do":"estate"}'); data, fds, _, _ = socket.recv_fds(s, 4096, 10)
assert not fds
print(data.decode())
"""


def test_askers_who_say_nothing_or_nonsense(start: Start) -> None:
    kept = start(1)
    kept.kill()
    for word in (b"", b"nonsense", b'{"do":"more"}', b'{"do":7}', b"[]"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asker:
            asker.connect(str(kept.path))
            asker.settimeout(10)
            if word:
                asker.send(word)
                assert asker.recv(100) == b""
    got = estate.fetch(kept.path)
    assert got is not None
    got.done()


def test_a_keeper_is_small_and_says_what_it_is(start: Start) -> None:
    kept = start(1)
    directory = Path(f"/proc/{kept.keeper}")
    wait_until(lambda: (directory / "comm").read_text() == "moa-keeper\n", 5, "its title")
    assert int((directory / "oom_score_adj").read_text()) <= _own_score()
    rollup = (directory / "smaps_rollup").read_text()
    pss_kib = int(rollup.partition("\nPss:")[2].split()[0])
    assert pss_kib < 12 * 1024, pss_kib
    print(f"keeper: {pss_kib} KiB PSS")


def test_too_few_descriptors_for_an_estate(start: Start) -> None:
    """Who has no room takes nothing, and says so; the next one can."""
    import resource

    kept = start(100)
    kept.kill()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, hard))
    try:
        with pytest.raises(estate.EstateError, match="limit of open files"):
            estate.fetch(kept.path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(os.listdir("/proc/self/fd")) <= used + 1
    got = estate.fetch(kept.path)
    assert got is not None
    assert len(got.descriptors) == 101
    got.done()


def test_without_a_board_there_is_no_keeper(tmp_path: Path) -> None:
    """It could give nothing, and would only hold what its agent had."""
    done = subprocess.run(
        [sys.executable, "-c", _NO_BOARD, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=REPO,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no board" in done.stdout


_NO_BOARD = """
import os, sys
from pathlib import Path
from installer import keeper
keeper.start()
from installer import keeping
from proxy.net.board import Board
def fail(*_): raise OSError("no memory for it")
keeping.Board.create = fail
assert keeping.Keeping.begin(Path(sys.argv[1])) is None
assert os.waitstatus_to_exitcode(os.waitpid(keeper.mine().pid, 0)[1]) == -9
"""


def _own_score() -> int:
    """Without CAP_SYS_RESOURCE it stays what it is."""
    return int(Path("/proc/self/oom_score_adj").read_text())
