"""The agent's end of its link to the supervisor: `<agent.runtime_dir>/link-<pid>.sock`.

A `SOCK_SEQPACKET` socket on which the agent listens; one JSON object a datagram, both ways
(docs/UPGRADE.md). Nothing depends on somebody being there: without a supervisor words are
dropped, and one that comes later is told first how things stand. The newest supervisor counts.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from proxy.net.sockets import peer_credentials

MAX_DATAGRAM = 64 * 1024

Word = dict[str, Any]

_STATES = {"ready": "ready", "serving": "serving", "given": "retired", "taken": "serving"}
"""What an agent is after it has said this."""

log = structlog.get_logger("link")


def link_path(runtime_dir: Path, pid: int) -> Path:
    """Where the agent with this process id listens for its supervisor."""
    return runtime_dir / f"link-{pid}.sock"


def environment() -> Path:
    """Where this process's commands are: `<environment>/bin/moa-agent`."""
    return Path(os.path.realpath(os.path.dirname(sys.executable))).parent


def is_trusted(uid: int) -> bool:
    """Whether this user may speak with us: root, or whoever we are."""
    return uid in (0, os.geteuid())


def decode(datagram: bytes) -> Word | None:
    """The JSON object in a datagram; None when it is anything else."""
    with suppress(ValueError, RecursionError):
        word = json.loads(datagram)
        if isinstance(word, dict):
            return word
    return None


class AgentLink:
    """Owns the socket and its name from `listen` to `close`.

    `state` is `starting`, `ready` (a taker), `giving`, `retired` or `serving`; it follows what
    is said and done, and the agent may set it.
    """

    def __init__(
        self, runtime_dir: Path, facts: Mapping[str, Any], on_word: Callable[[Word], None]
    ) -> None:
        """`facts` are told to each supervisor that comes: version, handover, abi."""
        self._path = link_path(runtime_dir, os.getpid())
        self._facts = dict(facts)
        self._on_word = on_word
        self._listener: socket.socket | None = None
        self._supervisor: socket.socket | None = None
        self._last: Word | None = None
        self.state = "starting"

    def listen(self) -> None:
        """Start; needs the running loop. Raises OSError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            with suppress(FileNotFoundError):
                os.unlink(self._path)  # of an earlier process with our number
            sock.bind(str(self._path))
            os.chmod(self._path, 0o600)
            sock.listen(4)
        except BaseException:
            sock.close()
            raise
        self._listener = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._accept)

    def say(self, word: Mapping[str, Any]) -> None:
        """Tell the supervisor, if there is one.

        One that does not read is dropped: it comes again, and is told how things stand.
        """
        name = str(word.get("say"))
        self.state = _STATES.get(name, self.state)
        if name == "refused" and self.state == "giving":
            self.state = "serving"
        if name not in ("beat", "progress"):
            self._last = dict(word)
        self._send(word)

    def close(self) -> None:
        """Hang up and take our name away."""
        self._drop()
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
            with suppress(FileNotFoundError):
                os.unlink(self._path)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        pid, uid = peer_credentials(sock)
        if not is_trusted(uid):
            log.warning("link refused", pid=pid, uid=uid)
            sock.close()
            return
        self._drop()
        sock.setblocking(False)
        self._supervisor = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._read)
        hello = {
            "say": "hello", "pid": os.getpid(), "environment": str(environment()), **self._facts,
            "state": self.state,
        }  # fmt: skip
        self._send({**hello, "last": self._last})

    def _read(self) -> None:
        assert self._supervisor is not None
        try:
            datagram = self._supervisor.recv(MAX_DATAGRAM)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            datagram = b""
        if not datagram:
            self._drop()
            return
        word = decode(datagram)
        if word is None or "do" not in word:
            log.warning("link: not understood", seen=datagram[:80])
            return
        if word["do"] == "give":
            self.state = "giving"
        self._on_word(word)

    def _send(self, word: Mapping[str, Any]) -> None:
        if self._supervisor is None:
            return
        try:
            self._supervisor.send(json.dumps(word).encode(), socket.MSG_DONTWAIT)
        except OSError as error:
            log.warning("link lost", error=error.strerror)
            self._drop()

    def _drop(self) -> None:
        if self._supervisor is not None:
            asyncio.get_running_loop().remove_reader(self._supervisor.fileno())
            self._supervisor.close()
            self._supervisor = None
