"""One agent's process, as the supervisor holds it: its pidfd, its link, what it said.

An agent that was found after the supervisor's own crash is held as one that it started, but
for its exit code, which only a parent is told.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from installer.link import MAX_DATAGRAM, Word, decode, link_path
from installer.opsd.health import Beat, Pulse
from proxy.net.sockets import peer_credentials

HELLO_S = 5.0
_CONNECT_S = 0.05
_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_FDNAMES")

log = structlog.get_logger("opsd")


class Agent:
    """Owns the pidfd and the link until the process has ended, or until `let_go`.

    `on_word` is told everything but `hello`, which is kept; `on_death` how the process ended,
    once. Both are called from the loop.
    """

    def __init__(
        self,
        pid: int,
        pidfd: int,
        runtime_dir: Path,
        environment: Path | None,
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.environment = environment
        self.hello: Word = {}
        """What it said first on the link that counts now; empty before."""
        self.state = "starting"
        self.pulse = Pulse()
        self.has_served = False
        self.was_killed = False
        self.adopts = False
        """Whether it was started with a dead one's estate."""
        self.heard_s = time.monotonic()
        self.watched_s = self.silent_s = 0.0
        """Since it was held, and since it said something: of the time `watched`."""
        self.on_word: Callable[[Agent, Word], None] = lambda agent, word: None
        self.on_death: Callable[[Agent, str], None] = lambda agent, how: None
        self._runtime_dir = runtime_dir
        self._process = process
        self._link: socket.socket | None = None
        self._link_event = asyncio.Event()
        """Something has happened to this link: a hello, or its end."""
        self._is_dead = False
        self._death = asyncio.Event()
        self._greeting = asyncio.Event()
        """A hello has come, or the agent has ended."""
        self._connecting: asyncio.Task[None] | None = None

    @classmethod
    def start(
        cls, command: Sequence[str], runtime_dir: Path, environment: Path, adopts: bool = False
    ) -> Agent:
        """Start one; raises OSError. In a session of its own: a Ctrl-C is the supervisor's."""
        env = {name: text for name, text in os.environ.items() if name not in _NOT_INHERITED}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, env=env, start_new_session=True
        )
        agent = cls(
            process.pid, os.pidfd_open(process.pid), runtime_dir, environment, process=process
        )
        agent.adopts = adopts
        return agent

    def hold(self) -> None:
        """Watch it and connect to its link; needs the running loop."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.pidfd, self._ended)
        self._connecting = loop.create_task(self._connect())

    def watched(self, for_s: float) -> None:
        """So long somebody looked, and would have heard it."""
        self.watched_s += for_s
        self.silent_s += for_s

    def let_go(self) -> None:
        """Forget it, alive or not."""
        if self._connecting is not None:
            self._connecting.cancel()
        self._hang_up()
        if not self._is_dead:
            self._is_dead = True
            asyncio.get_running_loop().remove_reader(self.pidfd)
            os.close(self.pidfd)

    def tell(self, word: Mapping[str, Any]) -> bool:
        """Say something; False when there is no link, or it is not read."""
        if self._link is None:
            return False
        try:
            self._link.send(json.dumps(word).encode(), socket.MSG_DONTWAIT)
        except OSError as error:
            log.warning("agent not told", pid=self.pid, word=word, error=error.strerror)
            return False
        if word.get("do") == "give":
            self.state = "giving"
        return True

    def signal(self, number: signal.Signals) -> None:
        """To this very process, or to none."""
        if not self._is_dead:
            self.was_killed = self.was_killed or number is signal.SIGKILL
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    @property
    def is_dead(self) -> bool:
        return self._is_dead

    @property
    def is_linked(self) -> bool:
        return bool(self.hello) and self._link is not None

    @property
    def version(self) -> str:
        return str(self.hello.get("version", "unknown"))

    async def ended(self, within_s: float) -> bool:
        """Wait for its end."""
        return await _set_within(self._death, within_s)

    async def linked(self, within_s: float) -> bool:
        """Wait for its hello, or its end."""
        deadline_s = time.monotonic() + within_s
        while not self.is_linked and not self._is_dead and time.monotonic() < deadline_s:
            await _set_within(self._greeting, deadline_s - time.monotonic())
            self._greeting.clear()
        return self.is_linked

    # The process

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self.pidfd)
        self._is_dead = True
        code = self._process.wait() if self._process is not None else _reaped(self.pid)
        os.close(self.pidfd)
        # What it said last may explain its end.
        self._read()
        self.let_go()
        self._death.set()
        self._greeting.set()
        self.on_death(self, _how(code))

    # The link

    async def _connect(self) -> None:
        """Until there is a hello: the socket is there once the agent's loop turns."""
        path = str(link_path(self._runtime_dir, self.pid))
        while not self._is_dead:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            try:
                sock.connect(path)
                pid, _ = peer_credentials(sock)
            except OSError:
                pid = 0
            if pid != self.pid:
                sock.close()
                await asyncio.sleep(_CONNECT_S)
                continue
            self._link, self._link_event = sock, asyncio.Event()
            asyncio.get_running_loop().add_reader(sock.fileno(), self._read)
            if await self._greeted_over(sock):
                return
            self._hang_up()

    async def _greeted_over(self, sock: socket.socket) -> bool:
        await _set_within(self._link_event, HELLO_S)
        return self._link is sock and bool(self.hello)

    def _read(self) -> None:
        while self._link is not None:
            try:
                datagram = self._link.recv(MAX_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                datagram = b""
            if not datagram:
                self._lost()
                return
            word = decode(datagram)
            if word is not None:
                self._heard(word)

    def _heard(self, word: Word) -> None:
        self.heard_s, self.silent_s = time.monotonic(), 0.0
        name = word.get("say")
        if name == "hello":
            self._greet(word)
            return
        if name == "serving":
            self.state, self.has_served = "serving", True
        elif name in ("ready", "given"):
            self.state = "retired" if name == "given" else "ready"
        elif name == "refused" and self.state == "giving":
            self.state = "serving"
        elif name == "beat":
            with suppress(ValueError):
                self.pulse.add(Beat.of(word, self.heard_s))
        self.on_word(self, word)

    def _greet(self, word: Word) -> None:
        self.hello = word
        self._link_event.set()
        self._greeting.set()
        self.state = str(word.get("state", "starting"))
        if self.environment is None and isinstance(word.get("environment"), str):
            self.environment = Path(word["environment"])
        last = word.get("last")
        self.has_served = self.has_served or self.state in ("serving", "giving", "retired")
        # It may have been said while nobody listened.
        if isinstance(last, dict):
            self.on_word(self, last)

    def _lost(self) -> None:
        """The agent hung up, and lives on; a newer supervisor, or one that does not read."""
        self._hang_up()
        if not self._is_dead and (self._connecting is None or self._connecting.done()):
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def _hang_up(self) -> None:
        self.hello = {} if self._link is not None and not self._is_dead else self.hello
        if self._link is not None:
            asyncio.get_running_loop().remove_reader(self._link.fileno())
            self._link.close()
            self._link = None
            self._link_event.set()


async def _set_within(event: asyncio.Event, within_s: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
    return event.is_set()


def _reaped(pid: int) -> int | None:
    """How a process ended that an earlier image of this supervisor has started."""
    with suppress(ChildProcessError):
        _, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status)
    return None


def _how(code: int | None) -> str:
    if code is None:
        return "it ended"
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"
