"""A front that can be killed at any step: each note on the board, each byte to or from the kernel.

What the kernel has stays: the sockets live on under other descriptors, as in a keeper. What
the process had is forgotten, and another front adopts the rest.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from proxy.core.model import Address
from proxy.core.policy import ServicePolicy
from proxy.net.adoption import Adopted, adopt_board
from proxy.net.board import Board
from proxy.net.front import Front
from proxy.net.served import Direction, Peer
from proxy.wire.resp import RequestParser, bulk
from tests.unit.net_support import LIMITS, forwarder_of, session_settings, table_of, tcp_pair

POLICY = ServicePolicy(idempotent=("get*",))
SERVICE = "/service/echo"
SLOTS = 1024
HELD = b"Held"
"""A request with this in it is answered when it comes a second time."""


class Killed(KeyboardInterrupt):
    """Nothing of ours catches it, and the event loop passes it on."""


class Steps:
    """Counts what could be seen from outside, and raises at the step that was chosen."""

    def __init__(self, last: int = -1, *, has_begun: bool = True) -> None:
        self.count = 0
        self._last = last
        self._has_begun = has_begun

    def begin(self) -> None:
        """Count from now on."""
        self._has_begun = True

    def step(self) -> None:
        if not self._has_begun:
            return
        if self.count == self._last:
            raise Killed
        self.count += 1


class CountedWords:
    """The words of a board, each of whose stores is a step."""

    def __init__(self, words: memoryview, steps: Steps) -> None:
        self._words = words
        self._steps = steps

    def __getitem__(self, at: Any) -> Any:
        return self._words[at]

    def __setitem__(self, at: int, value: int) -> None:
        self._steps.step()
        self._words[at] = value

    def release(self) -> None:
        self._words.release()


class CountedSocket(socket.socket):
    """A socket each of whose calls is two steps: before it, and when the kernel has done it."""

    steps: Steps

    @classmethod
    def of(cls, sock: socket.socket, steps: Steps) -> CountedSocket:
        made = cls(fileno=sock.detach())
        made.setblocking(False)
        made.steps = steps
        return made

    def send(self, *arguments: Any) -> int:
        self.steps.step()
        sent = super().send(*arguments)
        self.steps.step()
        return sent

    def recv_into(self, *arguments: Any) -> int:
        size = super().recv_into(*arguments)
        self.steps.step()
        return size


class EchoService:
    """Answers every command with its key, from a thread of its own; counts what it executes."""

    def __init__(self, *, is_raw: bool = False) -> None:
        """`is_raw`: no commands, every byte comes back."""
        self._is_raw = is_raw
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self._listener.getsockname()[:2])
        self.executed: Counter[bytes] = Counter()
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections.append(sock)
                thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket) -> None:
        parser = RequestParser(LIMITS)
        with suppress(OSError), sock:
            while data := sock.recv(65536):
                if self._is_raw:
                    sock.sendall(data)
                    continue
                for command in parser.feed(data):
                    self.executed[command.args[-1]] += 1
                    if HELD in command.args[-1] and self.executed[command.args[-1]] == 1:
                        continue
                    sock.sendall(bulk(command.args[-1]))

    def close(self) -> None:
        for sock in (self._listener, *self._connections):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(5)


Script = Callable[["World"], Awaitable[None]]


class World:
    """One client of one front, over a board; the kill may come at any step of it."""

    def __init__(
        self, steps: Steps, service: Address, original: Address | None = None, **settings: float
    ) -> None:
        """The registry knows SERVICE at `service`; the client dialled `original`.

        With a `buffer` the kernel takes no more than that of what the client does not read.
        """
        self._service = service
        self._original = original
        self._settings = {"detect_wait_s": 5.0, "request_read_timeout_s": 5.0} | settings
        self.client, near = tcp_pair()
        if buffer := int(self._settings.pop("buffer", 0)):
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.replies = bytearray()
        self.is_reset = False
        self.has_ended = False
        self._use_board(steps)
        self._near: socket.socket | None = CountedSocket.of(near, steps)
        self.adopted = Adopted()
        self._fronts: list[Front] = []

    def _use_board(self, steps: Steps) -> None:
        self._file = os.memfd_create("board", os.MFD_CLOEXEC)
        self._board = Board.create(self._file, SLOTS)
        self._board.words = CountedWords(self._board.words, steps)  # type: ignore[assignment]

    def run(self, script: Script) -> bool:
        """Serve the client while it follows its script; whether there was a kill."""
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self._serve(script))
        except Killed:
            return True
        finally:
            loop.close()
        return False

    def _front(self, board: Board) -> Front:
        table = table_of(SERVICE, self._service)
        forwarder = forwarder_of(table, policy=POLICY)
        front = Front(session_settings(**self._settings), forwarder, lambda: None, board=board)
        self._fronts.append(front)
        return front

    def _peer(self) -> Peer:
        client = Address("127.0.0.1", 1)
        is_instance = self._original == self._service
        return Peer(Direction.OUTBOUND, client, self._original, is_instance, None)

    async def _serve(self, script: Script) -> None:
        assert self._near is not None
        self._front(self._board).serve(self._near, self._peer())
        await script(self)

    def adopt(self, script: Script, steps: Steps | None = None) -> bool:
        """Go on in another front and another loop, with what the kernel and the board have;
        whether that one was killed, too, before it had gone on with everything."""
        descriptors = {number: os.dup(number) for number in self._named()}
        if self._near is not None:
            self._near.close()
        old, file = self._board, self._file
        self._near = None
        self._use_board(steps or Steps())
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self._go_on(file, descriptors, script, steps))
        except Killed:
            return True
        finally:
            loop.close()
            os.close(file)
            del old
        return False

    @property
    def is_noted(self) -> bool:
        """Whether anything of the connection is on the board."""
        return bool(self._named())

    def _named(self) -> set[int]:
        found = set()
        for number, entry in self._board.entries():
            _kind, *others = entry
            found |= {number, *(n for n in others if n >= 0)}
        return found

    async def _go_on(
        self, file: int, descriptors: dict[int, int], script: Script, steps: Steps | None
    ) -> None:
        found = Board.read(file)
        assert found is not None
        front = self._front(self._board)
        is_moa = self._original in (None, self._service)
        self.adopted = adopt_board(
            found, descriptors, lambda moved: is_moa or moved.spoke_moa, LIMITS
        )
        for moved in self.adopted.connections:
            if steps is not None:
                # No step before: until then the keeper of the first has it still.
                counted = CountedSocket.of(moved.client, steps)
                moved = dataclasses.replace(moved, client=counted)
            front.adopt(moved, self._peer())
            front.begin(moved.number)
        for descriptor in descriptors.values():
            os.close(descriptor)
        found.close()
        if steps is not None:
            steps.begin()
        await script(self)
        for session in list(front.sessions.values()):
            session.close()
        await asyncio.sleep(0.002)

    # The client

    def send(self, data: bytes) -> None:
        with suppress(ConnectionError):
            assert self.client.send(data) == len(data)

    async def settle(self, seconds: float = 0.004) -> None:
        """Let the front do what it has to do; nothing depends on whether it gets that far."""
        await asyncio.sleep(seconds)

    def _take(self) -> None:
        try:
            while data := self.client.recv(1 << 20):
                self.replies += data
            self.has_ended = True
        except BlockingIOError:
            pass
        except ConnectionError:
            self.is_reset = True

    async def replied(self, enough: Callable[[bytes], bool]) -> None:
        """Until so much has come, or the end."""
        deadline_s = time.monotonic() + 5
        while not enough(bytes(self.replies)) and not (self.is_reset or self.has_ended):
            assert time.monotonic() < deadline_s, f"no reply: {bytes(self.replies)!r}"
            await asyncio.sleep(0.001)
            self._take()

    def close(self) -> None:
        self.client.close()
        if self._near is not None:
            self._near.close()
        os.close(self._file)
