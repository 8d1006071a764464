"""The keeper of an agent that was killed: what it keeps, and what it lets go of at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from installer.estate import fetch
from tests.support.lab import wait_until
from tests.support.opsd import short_home


def test_what_no_heir_could_use_is_closed_with_the_agent() -> None:
    """A connection of which nothing is noted, such as another agent's: who is at its other end
    is not left waiting for the next agent. What is noted stays open until it is fetched."""
    with short_home() as home, socket.create_server(("127.0.0.1", 0)) as server:
        process = start_agent(home, server.getsockname()[1])
        try:
            noted, unnoted, named = (server.accept()[0] for _ in range(3))
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.kill()
            process.wait()
            unnoted.settimeout(5)
            assert unnoted.recv(1) == b""
            for sock in (noted, named):
                sock.setblocking(False)
                assert not is_over(sock)
            estate = fetch(home / "keeper.sock")
            assert estate is not None
            assert estate.names == ["door"]
            assert len(estate.descriptors) == 2
            estate.done()
            wait_until(lambda: is_over(noted) and is_over(named), 5, "nobody has them any more")
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        for sock in (noted, unnoted, named):
            sock.close()


def is_over(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def start_agent(home: Path, port: int) -> subprocess.Popen[bytes]:
    """A process with a keeper, a board, and three connections: noted, not noted, and named."""
    script = f"""
import signal, socket
from installer import keeper
keeper.start()
from proxy.net.board import Board
from proxy.net.notes import Notes
from proxy.net.moved import Kind
from proxy.net.stream import Stream
import asyncio
mine = keeper.mine()
board = Board.create(mine.board, 1024)
mine.listen({str(home / "keeper.sock")!r})
noted, unnoted, named = (socket.create_connection(("127.0.0.1", {port})) for _ in range(3))
loop = asyncio.new_event_loop()
Notes(board, noted.fileno()).start(Kind.RESP, b"", Stream(loop, noted), b"")
board.name("door", named.fileno())
print("ready", flush=True)
signal.pause()
"""
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
