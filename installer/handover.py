"""One agent and another at the two ends of a channel: they greet, and one gives to the other.

Afterwards the one that gave can take everything back by the same procedure the other way
(docs/UPGRADE.md): it says READY at once, and waits.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from installer.link import is_trusted
from interceptor.abi import ABI_VERSION
from proxy.net.handover.channel import Channel
from proxy.net.handover.giver import Giver, GiveSettings, Progress
from proxy.net.handover.taker import Taker
from proxy.net.sockets import peer_credentials
from proxy.possession import Possession
from proxy.wire.handover import MAX_VERSION, MIN_VERSION, Received, settle
from proxy.wire.handover import handover_pb2 as pb
from proxy.wire.mesh import STATE_FORMAT

GREETING_S = 5.0
CONNECT_S = 5.0

Word = dict[str, Any]

log = structlog.get_logger("handover")


def socket_path(runtime_dir: Path, pid: int) -> Path:
    """Where the agent with this process id waits for its successor."""
    return runtime_dir / f"handover-{pid}.sock"


def facts() -> Word:
    """What `moa-agent --check` and the link tell of this version."""
    return {
        "version": version("moa-interceptor"),
        "handover": [MIN_VERSION, MAX_VERSION],
        "abi": ABI_VERSION,
    }


class Handover:
    """Owns a connected channel; words about what happens go to `tell`, as the link has them.

    `on_gone` is called once, when the other agent has gone.
    """

    def __init__(
        self,
        sock: socket.socket,
        possession: Possession,
        settings: GiveSettings,
        tell: Callable[[Word], None],
        on_gone: Callable[[str], None],
    ) -> None:
        self.is_ready = False
        """Whether the other agent can take."""
        self.is_greeted = asyncio.Event()
        self.is_shared = False
        """Whether the other agent has the listeners and the locks, too."""
        self._loop = asyncio.get_running_loop()
        self._possession = possession
        self._settings = settings
        self._tell = tell
        self._on_gone = on_gone
        self.on_refused: Callable[[str], None] = lambda _why: self.offer()
        """The other agent gives nothing, and lives: offer again, or go."""
        self._channel = Channel(self._loop, sock)
        self._ready: pb.Ready | None = None
        self._is_asked = False
        self._mesh_state = 0
        self._giver: Giver | None = None
        self._taker: Taker | None = None
        self._progress_s = 0.0
        self._has_given = asyncio.Event()
        self._has_given.set()
        self._listen()
        self._channel.start()
        self._timer = self._loop.call_later(GREETING_S, self._on_silence)
        self._channel.send(
            pb.Hello(
                min_version=MIN_VERSION,
                max_version=MAX_VERSION,
                agent_version=version("moa-interceptor"),
                pid=os.getpid(),
                abi=ABI_VERSION,
                mesh_state=STATE_FORMAT,
            )
        )

    def _listen(self) -> None:
        self._channel.on_frame = self._on_frame
        self._channel.on_lost = self._on_lost

    def _on_silence(self) -> None:
        awaited = "READY" if self.is_greeted.is_set() else "HELLO"
        self._channel.close()
        self._on_lost(f"no {awaited} within {GREETING_S:g} s")

    def _on_frame(self, received: Received, fds: list[int] | None) -> None:
        message = received.message
        for fd in fds or []:
            os.close(fd)  # nothing with descriptors is expected here
        if isinstance(message, pb.Hello):
            self._on_hello(message)
        elif isinstance(message, pb.Refuse):
            self._channel.close()
            self._on_lost(f"the other agent refuses: {message.why}")
        elif isinstance(message, pb.Ready) and self.is_greeted.is_set():
            self._timer.cancel()
            self._ready = message
            self.is_ready = True
            self._begin()

    def _on_hello(self, hello: pb.Hello) -> None:
        settled = settle(hello.min_version, hello.max_version)
        why = ""
        if settled is None:
            why = (
                f"agent {hello.agent_version} speaks hand-over versions {hello.min_version} to "
                f"{hello.max_version}, and this one {MIN_VERSION} to {MAX_VERSION}"
            )
        elif hello.abi != ABI_VERSION:
            why = (
                f"agent {hello.agent_version} has pins of layout {hello.abi}, and this one of "
                f"{ABI_VERSION}: stop the one and start the other"
            )
        if why or settled is None:
            self._channel.send(pb.Refuse(why=why))
            self._channel.close()
            self._on_lost(why)
            return
        self._channel.version = settled
        self._mesh_state = hello.mesh_state
        self.is_greeted.set()

    # Giving

    def give(self) -> None:
        """Give everything to the other agent, as soon as it is ready."""
        self._is_asked = True
        self._begin()

    def _begin(self) -> None:
        if not self._is_asked or self._ready is None or self._giver is not None:
            return
        self._has_given.clear()
        ready, self._ready = self._ready, None
        self.is_ready = self._is_asked = False
        self._giver = Giver(
            self._loop,
            self._channel,
            self._possession,
            self._settings,
            self._on_progress,
            self._on_given,
        )
        self._giver.max_mesh_state = min(self._mesh_state, STATE_FORMAT)
        self._giver.start(ready.descriptors, needs_table=ready.needs_table)

    async def wait_given(self) -> None:
        """Until what is being given is given, or is not."""
        await self._has_given.wait()

    def _on_progress(self, progress: Progress) -> None:
        now_s = self._loop.time()
        if now_s - self._progress_s >= 0.1 or not progress.in_flight:
            self._progress_s = now_s
            word = {"moved": progress.moved, "total": progress.total}
            self._tell({"say": "progress", **word, "in_flight": progress.in_flight})

    def _on_given(self, why: str | None) -> None:
        giver, self._giver = self._giver, None
        assert giver is not None
        self._has_given.set()
        self.is_shared = self.is_shared or why is None
        if why is None:
            progress = giver.progress
            self._tell({"say": "given", "moved": progress.moved, "left": progress.left})
            self.offer()
            return
        self._tell({"say": "refused", "why": why})
        if self._channel.is_open:
            self._listen()
        else:
            self._on_lost(why)

    # Taking

    def offer(self) -> None:
        """Be ready to take everything that the other agent has."""
        self._timer.cancel()
        taker = Taker(self._channel, self._possession, self._on_serving, self._on_taken)
        self._taker = taker
        taker.start(_free_descriptors())

    def _on_serving(self) -> None:
        self.is_shared = True
        log.info("took the listeners over")

    def _on_taken(self, why: str | None) -> None:
        taker, self._taker = self._taker, None
        assert taker is not None
        if self._channel.is_open:
            self._listen()
        if why is None:
            self._tell({"say": "taken", "moved": taker.moved})
        elif self._channel.is_open:
            self.on_refused(why)
        elif taker.is_serving:
            log.warning("the other agent was lost halfway", reason=why, moved=taker.moved)
        if not self._channel.is_open:
            self._on_lost(why or "the other agent has closed the connection")

    # The end

    def _on_lost(self, why: str) -> None:
        self._timer.cancel()
        self.is_ready = False
        on_gone, self._on_gone = self._on_gone, lambda _why: None
        on_gone(why)

    def notice_death(self) -> None:
        """If the other agent has died, let that be seen to before anything else is."""
        self._channel.notice_death()

    def abandon(self) -> None:
        """Stop giving: what was not committed is ours, and the other agent is left alone."""
        if self._giver is not None:
            self._giver.abandon("the agent was told to stop")
        self.close()

    def close(self) -> None:
        """Hang up; nothing is called back."""
        self._timer.cancel()
        self._on_gone = lambda _why: None
        if self._taker is not None:
            self._taker.abandon()
            self._taker = None
        self._channel.close()


class Entrance:
    """Where a successor comes in: `handover-<pid>.sock`, from `open` to `close`."""

    def __init__(self, runtime_dir: Path, on_successor: Callable[[socket.socket], str]) -> None:
        """`on_successor` gets each connection, and says why when it does not take it."""
        self._path = socket_path(runtime_dir, os.getpid())
        self._on_successor = on_successor
        self._sock: socket.socket | None = None

    def open(self) -> None:
        """Raises OSError."""
        if self._sock is not None:
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._path.unlink(missing_ok=True)
            sock.bind(str(self._path))
            self._path.chmod(0o600)
            sock.listen(4)
        except BaseException:
            sock.close()
            raise
        self._sock = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._sock is not None
        with suppress(OSError):
            sock, _ = self._sock.accept()
            pid, uid = peer_credentials(sock)
            why = f"user {uid} is neither root nor ours"
            if is_trusted(uid):
                why = self._on_successor(sock)
            if why:
                log.warning("successor refused", pid=pid, uid=uid, reason=why)
                _refuse(sock, why)

    def close(self) -> None:
        """Take our name away."""
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
            self._path.unlink(missing_ok=True)


async def connect(path: Path) -> socket.socket:
    """A connection to the agent that waits on `path`. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        async with asyncio.timeout(CONNECT_S):
            await asyncio.get_running_loop().sock_connect(sock, str(path))
        _pid, uid = peer_credentials(sock)
        if not is_trusted(uid):
            raise PermissionError(f"{path}: user {uid} listens there, neither root nor ours")
    except BaseException:
        sock.close()
        raise
    return sock


def _refuse(sock: socket.socket, why: str) -> None:
    channel = Channel(asyncio.get_running_loop(), sock)
    channel.send(pb.Refuse(why=why), on_sent=channel.close)


def _free_descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(0, soft - len(os.listdir("/proc/self/fd")))
