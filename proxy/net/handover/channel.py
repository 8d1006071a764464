"""Frames and descriptors between two agents, over one unix stream socket on the event loop.

The kernel never joins bytes that came with different descriptors in one receive, so the
descriptors of one message belong to the next frame that announces any (unix(7), 6.18
`unix_stream_read_generic`).
"""

from __future__ import annotations

import array
import asyncio
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from google.protobuf.message import Message

from proxy.net.sockets import peer_credentials
from proxy.wire.handover import MAX_VERSION, FrameReader, HandoverError, Received, encode

_READ_SIZE = 256 * 1024
_MAX_FDS = 253

OnFrame = Callable[[Received, list[int] | None], None]


class _Outgoing(NamedTuple):
    data: memoryview
    descriptors: array.array[int]
    on_sent: Callable[[], None] | None


class Channel:
    """Owns a connected unix stream socket.

    `on_frame` gets each frame with its descriptors, which are its to close; None in their
    place: this process could not open all of them, and those that came are closed again.
    `on_lost` comes once, when the other end has gone or does not keep to the protocol. An agent
    that is killed leaves its socket to its keeper, so its process is watched, too.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self.on_frame: OnFrame = lambda _received, fds: close_all(fds or [])
        self.on_lost: Callable[[str], None] = lambda _why: None
        self.version = MAX_VERSION
        """What both sides speak, once their HELLOs are there."""
        self._loop = loop
        self._sock = sock
        self._reader = FrameReader()
        self._arrived: deque[list[int] | None] = deque()
        self._out: deque[_Outgoing] = deque()
        self._is_closed = False
        self._broken = ""
        self._process: int | None = None
        sock.setblocking(False)

    @property
    def is_open(self) -> bool:
        return not self._is_closed

    def start(self) -> None:
        self._loop.add_reader(self._sock.fileno(), self._on_readable)
        try:
            self._process = os.pidfd_open(peer_credentials(self._sock)[0])
        except ProcessLookupError:
            self._loop.call_soon(self._on_death)
        except OSError:
            return  # Of another PID namespace; its socket must tell.
        else:
            self._loop.add_reader(self._process, self._on_death)

    def notice_death(self) -> None:
        """Hear now what the loop would tell next, if the other agent has died."""
        if self._process is None or self._is_closed:
            return
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        if poll.poll(0):
            self._on_death()

    def _on_death(self) -> None:
        self._hear_and_lose("the other agent has died")

    def _hear_and_lose(self, why: str) -> None:
        """What it said before counts."""
        while not self._is_closed and self._receive():
            continue
        self._lose(why)

    def send(
        self,
        message: Message,
        descriptors: Sequence[int] = (),
        on_sent: Callable[[], None] | None = None,
    ) -> None:
        """Queue one frame; descriptors stay the caller's, and must stay open until `on_sent`.

        `on_sent` is called when the kernel has taken the frame: it will be delivered, whatever
        becomes of this process.
        """
        if self._is_closed or self._broken:
            return
        data = encode(message, len(descriptors), self.version)
        self._out.append(_Outgoing(memoryview(data), array.array("i", descriptors), on_sent))
        if len(self._out) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._out and not (self._is_closed or self._broken):
            data, fds, on_sent = self._out[0]
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
            try:
                sent = self._sock.sendmsg([data], control)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock.fileno(), self._on_writable)
                return
            except OSError as error:
                # Told from the loop, and after what the other end has said: it may say why.
                self._broken = f"cannot send: {error.strerror}"
                self._loop.call_soon(self._hear_and_lose, self._broken)
                return
            if sent < len(data):
                self._out[0] = _Outgoing(data[sent:], array.array("i"), on_sent)
                continue
            self._out.popleft()
            if on_sent is not None:
                on_sent()

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._sock.fileno())
        self._flush()

    def _on_readable(self) -> None:
        self._receive()

    def _receive(self) -> bool:
        """Whether there may be more."""
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(
                _READ_SIZE, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._lose(f"cannot receive: {error.strerror}")
            return False
        fds = array.array("i")
        for level, kind, raw in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
        if flags & socket.MSG_CTRUNC:
            close_all(fds)
            self._arrived.append(None)
        elif fds:
            self._arrived.append(list(fds))
        if not data:
            self._lose("the other agent has closed the connection")
            return False
        try:
            frames = self._reader.feed(data)
            for frame in frames:
                self._deliver(frame)
        except HandoverError as error:
            self._lose(f"broke the protocol: {error}")
        return True

    def _deliver(self, frame: Received) -> None:
        found: list[int] | None = []
        if frame.descriptors:
            found = self._arrived.popleft() if self._arrived else None
            if found is not None and len(found) != frame.descriptors:
                close_all(found)
                found = None
        if self._is_closed:
            close_all(found or [])
        else:
            self.on_frame(frame, found)

    def _lose(self, why: str) -> None:
        if not self._is_closed:
            self.close()
            self.on_lost(why)

    def close(self) -> None:
        """Nothing is called back any more."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        if self._process is not None:
            self._loop.remove_reader(self._process)
            os.close(self._process)
        self._out.clear()
        while self._arrived:
            close_all(self._arrived.popleft() or [])


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that came and are not taken."""
    for fd in fds:
        with suppress(OSError):
            os.close(fd)
