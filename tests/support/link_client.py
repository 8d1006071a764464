"""A supervisor's end of the link to an agent, for tests (docs/UPGRADE.md, "The link")."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from installer.link import MAX_DATAGRAM, link_path
from tests.support.lab import LabError, wait_until

Word = dict[str, Any]


class LinkClient:
    """Connected to one agent; keeps what it has said, beats and progress apart."""

    def __init__(self, runtime_dir: Path, pid: int, timeout_s: float = 20.0) -> None:
        """Waits for the agent to listen."""
        path = link_path(runtime_dir, pid)
        self.pid = pid
        self.said: list[Word] = []
        self.progress: list[Word] = []
        self.beats: list[Word] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        wait_until(lambda: _connects(self._sock, path), timeout_s, f"agent {pid} listens at {path}")

    def drain(self) -> None:
        """Read what was said, so that the agent does not drop who never reads."""
        self._sock.setblocking(False)
        with suppress(BlockingIOError):
            while datagram := self._sock.recv(MAX_DATAGRAM):
                self._keep(json.loads(datagram))

    def _keep(self, word: Word) -> None:
        {"beat": self.beats, "progress": self.progress}.get(word["say"], self.said).append(word)

    def do(self, what: str, **more: Any) -> None:
        self._sock.setblocking(True)
        self._sock.send(json.dumps({"do": what, **more}).encode())

    def wait(self, *says: str, timeout_s: float = 30.0) -> Word:
        """The next word that is one of these; `LabError` when none comes, or it hangs up."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._sock.settimeout(max(0.01, deadline_s - time.monotonic()))
            try:
                datagram = self._sock.recv(MAX_DATAGRAM)
            except OSError as error:
                raise LabError(f"agent {self.pid}: no {says}: {error!r}; {self.said}") from None
            if not datagram:
                raise LabError(f"agent {self.pid} hung up, and did not say {says}: {self.said}")
            word: Word = json.loads(datagram)
            self._keep(word)
            if word["say"] == "hello" and word["last"] is not None:
                word = word["last"]  # said before we came
            if word["say"] in says:
                return word
            last: Word | None = word.get("last") if word["say"] == "hello" else None
            if last is not None and last["say"] in says:
                return last  # It was said before we were there.

    def close(self) -> None:
        self._sock.close()


def _connects(sock: socket.socket, path: Path) -> bool:
    try:
        sock.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True
