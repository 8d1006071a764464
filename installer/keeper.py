"""The keeper: a process that shares the agent's table of descriptors, and only sleeps.

While it lives, no descriptor of an agent that is killed is closed that an heir could use; the
others it closes at once, so that who is at their other end knows. It gives what it keeps, with
the board that says what it is (`proxy/net/board.py`), to whoever asks in time, and ends. It is
made in the first lines of `moa-agent`, before anything large is imported, and closes nothing
but what it opened itself: what it closes is closed in the agent, too (docs/UPGRADE.md).
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

BATCH = 200
"""Descriptors in one message; the kernel takes 253."""
UNCLAIMED_S = 10.0
"""An estate that nobody has asked for by then goes the way of all descriptors."""
_ASKER_S = 5.0
"""How long who asks may take for each step."""
_CROWDED_S = 0.1
_MOST_REQUEST = 4096

# proxy/net/board.py says what these are; tests/unit/test_board.py that they are the same.
MAGIC = int.from_bytes(b"MOABOARD", "little")
LAYOUT = 1
NAMES_AT, NAME_SIZE, NAMES = 512, 64, 48
DIRECTORY_AT, ENTRY_SIZE = 4096, 16
_HEAD = struct.Struct("=6Q")
_PAGE = 64 * 1024
_M24 = 0xFFFFFF

_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE_FILES = 0x400
_PR_SET_NAME = 15


class Keeper(NamedTuple):
    """The agent's side: the keeper's process id, the memory file of the board, and a way to
    tell the keeper where to listen."""

    pid: int
    board: int
    control: socket.socket

    def listen(self, path: str) -> None:
        """Let the keeper be asked at this path, which it removes when it ends."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with suppress(FileNotFoundError):
            os.unlink(path)
        # Nobody may connect before it has its mode.
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        listener.listen(8)
        # From here on it is the keeper's, in the table that both have.
        self.control.send(json.dumps({"listener": listener.detach(), "path": path}).encode())


_mine: list[Keeper] = []


def mine() -> Keeper | None:
    """The keeper of this process, if it has one."""
    return _mine[0] if _mine else None


def start() -> None:
    """Make a keeper of this process, which must have one thread. Raises OSError."""
    number = _CLONE.get(os.uname().machine)
    if number is None:
        raise OSError(f"no keeper on {os.uname().machine}: its clone() is not known here")
    board = os.memfd_create("moa-board", os.MFD_CLOEXEC)
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    agent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)
    # Not os.fork: its child has a copy of the table, which goes stale.
    pid = libc.syscall(
        ctypes.c_long(number), ctypes.c_long(_CLONE_FILES | signal.SIGCHLD), None, None, None, None
    )
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone(CLONE_FILES)")
    if pid == 0:
        _run(agent, board, far, libc)
    far.detach()
    _mine.append(Keeper(pid, board, near))


def _run(agent: int, board: int, control: socket.socket, libc: ctypes.CDLL) -> NoReturn:
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        with suppress(OSError):
            os.setsid()
        libc.prctl(_PR_SET_NAME, b"moa-keeper", 0, 0, 0)
        # Whoever has too little memory kills the agent first, and loses nothing by it.
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("-900")
        _Watch(agent, board, control).run()
        code = 0
    except BaseException as error:
        with suppress(Exception):
            sys.stderr.write(f"moa-keeper: {error!r}\n")
            sys.stderr.flush()
    finally:
        # Nothing of the agent's is flushed or closed on the way out.
        os._exit(code)


class _Gone(Exception):
    """Who asked has left, or is too slow, or says what nobody understands."""


class _Estate(NamedTuple):
    """What an heir gets: descriptors, some of which have names."""

    names: dict[str, int]
    numbers: list[int]


class _Watch:
    """Waits for the agent's death, and then for an heir."""

    def __init__(self, agent: int, board: int, control: socket.socket) -> None:
        self._agent = agent
        self._board = board
        self._control = control
        self._path = ""
        self._listener: socket.socket | None = None
        self._pidfd = -1
        self._poll = select.poll()
        self._estate: _Estate | None = None
        """Since the agent has died."""

    def run(self) -> None:
        try:
            self._watch()
        finally:
            if self._path:
                with suppress(OSError):
                    os.unlink(self._path)

    def _watch(self) -> None:
        self._poll.register(self._control, select.POLLIN)
        is_alive = self._find_agent()
        died_s = time.monotonic()
        if not is_alive:
            self._take_stock()
        while True:
            left_s = died_s + UNCLAIMED_S - time.monotonic()
            if not is_alive and (left_s <= 0 or self._has_ended_in_peace()):
                return
            for descriptor, _events in self._poll.poll(None if is_alive else left_s * 1000):
                if descriptor == self._pidfd:
                    self._poll.unregister(self._pidfd)
                    is_alive, died_s = False, time.monotonic()
                    self._take_stock()
                elif descriptor == self._control.fileno():
                    self._told()
                elif self._listener is not None and self._answer(is_alive=is_alive):
                    return

    def _find_agent(self) -> bool:
        """Watch the agent's process; whether it lives."""
        with suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(self._agent)
            # It might be another process's number by now: but we are this one's child.
            if os.getppid() == self._agent:
                self._poll.register(self._pidfd, select.POLLIN)
                return True
        return False

    def _told(self) -> None:
        data = self._control.recv(_MOST_REQUEST)
        if not data:
            # The agent has closed its end, on its way out.
            self._poll.unregister(self._control)
            return
        told = json.loads(data)
        self._path = told["path"]
        self._listener = socket.socket(fileno=told["listener"])
        self._poll.register(self._listener, select.POLLIN)

    def _take_stock(self) -> _Estate:
        """See, once, what an heir gets of the dead agent, and close the rest.

        A connection of which nothing is noted, as those of other agents are, has nobody any more
        who reads it: who is at its other end had to wait until the keeper ends.
        """
        if self._estate is None:
            while self._listener is None and self._says_something():
                self._told()  # The listener is among what it left.
            names = self._named()
            numbers = sorted({*names.values(), *self._connections()})
            self._estate = _Estate(names, [n for n in numbers if _is_open(n)])
            if not self._has_ended_in_peace():
                self._close_all_but(self._estate.numbers)
        return self._estate

    def _says_something(self) -> bool:
        readable, _, _ = select.select([self._control], [], [], 0)
        return bool(readable) and bool(self._control.recv(1, socket.MSG_PEEK))

    def _close_all_but(self, numbers: list[int]) -> None:
        own = {self._board, self._pidfd, self._control.fileno()}
        if self._listener is not None:
            own.add(self._listener.fileno())
        begin = 3
        for number in sorted(own.union(numbers)):
            if number > begin:
                os.closerange(begin, number)
            begin = max(begin, number + 1)
        os.closerange(begin, os.sysconf("SC_OPEN_MAX"))

    def _has_ended_in_peace(self) -> bool:
        _magic, _layout, ended, *_ = self._head()
        return bool(ended)

    def _head(self) -> tuple[int, ...]:
        return _HEAD.unpack(os.pread(self._board, _HEAD.size, 0).ljust(_HEAD.size, b"\0"))

    # Who asks

    def _answer(self, *, is_alive: bool) -> bool:
        """Serve one who asks; whether nothing is left to do."""
        assert self._listener is not None
        try:
            asker, _ = self._listener.accept()
        except OSError:
            # No descriptor is free; who asks may find one later.
            time.sleep(_CROWDED_S)
            return False
        with asker:
            asker.settimeout(_ASKER_S)
            try:
                return self._serve(asker, is_alive=is_alive)
            except (_Gone, OSError, ValueError):
                return False

    def _serve(self, asker: socket.socket, *, is_alive: bool) -> bool:
        wish = _hear(asker)
        if not _may_ask(asker):
            _say(asker, {"say": "refused", "why": "only its user and root may ask"})
            return False
        if wish == "release":
            _say(asker, {"say": "released", "keeper": os.getpid()})
            return True
        if wish != "estate":
            raise _Gone
        if is_alive and not select.select([self._pidfd], [], [], 0)[0]:
            _say(asker, {"say": "refused", "why": f"the agent, process {self._agent}, lives"})
            return False
        return self._give(asker)

    def _give(self, asker: socket.socket) -> bool:
        """Hand over everything; whether it was taken."""
        names, wanted = self._take_stock()
        head = {"say": "estate", "agent": self._agent, "keeper": os.getpid(), "names": names}
        _say(asker, head, [self._board])
        for begin in range(0, len(wanted), BATCH):
            batch = wanted[begin : begin + BATCH]
            if _hear(asker) != "more":
                raise _Gone
            _say(asker, {"say": "some", "numbers": batch}, batch)
        if _hear(asker) != "more":
            raise _Gone
        _say(asker, {"say": "all"})
        asker.settimeout(UNCLAIMED_S)
        if _hear(asker) != "taken":
            raise _Gone
        with suppress(OSError):
            _say(asker, {"say": "released", "keeper": os.getpid()})
        return True

    # The board

    def _named(self) -> dict[str, int]:
        magic, layout, *_ = self._head()
        if magic != MAGIC or layout != LAYOUT:
            return {}
        found, table = {}, os.pread(self._board, NAMES * NAME_SIZE, NAMES_AT)
        for at in range(0, len(table), NAME_SIZE):
            number = int.from_bytes(table[at + NAME_SIZE - 8 : at + NAME_SIZE], "little")
            name = table[at : at + NAME_SIZE - 8].rstrip(b"\0").decode(errors="replace")
            if number and _is_open(number - 1):
                found[name] = number - 1
        return found

    def _connections(self) -> set[int]:
        """Every descriptor that belongs to a connection."""
        magic, layout, _ended, _inlet, slots, arriving = self._head()
        found: set[int] = set()
        if magic != MAGIC or layout != LAYOUT:
            return found
        if arriving:
            found.add((arriving & 0xFFFFFFFF) - 1)
        end = DIRECTORY_AT + slots * ENTRY_SIZE
        for at in range(DIRECTORY_AT, end, _PAGE):
            page = os.pread(self._board, min(_PAGE, end - at), at)
            if page.count(0) == len(page):
                continue
            words = memoryview(page[: len(page) // ENTRY_SIZE * ENTRY_SIZE]).cast("Q")
            for number in range(len(words) // 2):
                first, second = words[2 * number], words[2 * number + 1]
                if first & 0xFF:
                    found.add((at - DIRECTORY_AT) // ENTRY_SIZE + number)
                    parts = (first >> 8, first >> 32, second, second >> 24)
                    found |= {(part & _M24) - 1 for part in parts if part & _M24}
        return found


def _may_ask(asker: socket.socket) -> bool:
    credentials = asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _pid, uid, _gid = struct.unpack("=iII", credentials)
    return uid in (0, os.geteuid())


def _is_open(descriptor: int) -> bool:
    with suppress(OSError):
        os.fstat(descriptor)
        return True
    return False


def _hear(asker: socket.socket) -> str:
    data = asker.recv(_MOST_REQUEST)
    request = json.loads(data) if data else None
    if not isinstance(request, dict) or not isinstance(request.get("do"), str):
        raise _Gone
    word: str = request["do"]
    return word


def _say(asker: socket.socket, words: dict[str, Any], descriptors: list[int] | None = None) -> None:
    socket.send_fds(asker, [json.dumps(words).encode()], descriptors or [])
