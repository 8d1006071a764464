"""One end of the hand-over protocol for tests: says what a test wants, and nothing by itself."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from interceptor.abi import ABI_VERSION
from proxy.wire.handover import MAX_VERSION, MIN_VERSION, FrameReader, FrameType, Received, encode
from proxy.wire.handover import handover_pb2 as pb
from proxy.wire.mesh import STATE_FORMAT
from tests.support.lab import wait_until


class PeerGone(Exception):
    """The agent has hung up."""


class HandoverPeer:
    """Blocking; keeps the descriptors that came, until `close`."""

    def __init__(self, sock: socket.socket, timeout_s: float = 15.0) -> None:
        self.sock = sock
        self.fds: list[int] = []
        self._reader = FrameReader()
        self._frames: deque[Received] = deque()
        sock.settimeout(timeout_s)

    @classmethod
    def dial(cls, path: Path) -> HandoverPeer:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(path))
        return cls(sock)

    @classmethod
    def dial_when_free(cls, path: Path) -> HandoverPeer:
        """Once the agent has seen that the one before us has gone."""

        def is_free() -> HandoverPeer | None:
            peer = cls.dial(path)
            with suppress(PeerGone, OSError):
                first = peer.next()
                if first.type is FrameType.HELLO:
                    peer._frames.appendleft(first)
                    return peer
            peer.close()
            return None

        found: HandoverPeer = wait_until(is_free, 10, f"{path} takes another successor")
        return found

    def send(self, message: Message, fds: Sequence[int] = (), version: int = MAX_VERSION) -> None:
        data = encode(message, len(fds), version)
        socket.send_fds(self.sock, [data], list(fds)) if fds else self.sock.sendall(data)

    def hello(self, **changed: Any) -> None:
        says: dict[str, Any] = {
            "min_version": MIN_VERSION, "max_version": MAX_VERSION, "agent_version": "test",
            "pid": os.getpid(), "abi": ABI_VERSION, "mesh_state": STATE_FORMAT,
        }  # fmt: skip
        self.send(pb.Hello(**(says | changed)))

    def next(self) -> Received:
        """The next frame; raises PeerGone, TimeoutError."""
        while not self._frames:
            data, fds, _, _ = socket.recv_fds(self.sock, 1 << 18, 253, socket.MSG_CMSG_CLOEXEC)
            self.fds += fds
            if not data:
                raise PeerGone
            self._frames += self._reader.feed(data)
        return self._frames.popleft()

    def wait(self, kind: FrameType) -> Any:
        """The message of the next frame of this type; others are passed over."""
        while (received := self.next()).type is not kind:
            continue
        return received.message

    def wait_gone(self) -> list[Received]:
        """What the agent still says before it hangs up."""
        found = []
        with suppress(PeerGone, ConnectionResetError):
            while True:
                found.append(self.next())
        return found

    def close(self) -> None:
        self.sock.close()
        while self.fds:
            os.close(self.fds.pop())


class FakeGiver:
    """Listens as an agent that waits for its successor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.bind(str(path))
        self._sock.listen()
        self._sock.settimeout(30)

    def accept(self) -> HandoverPeer:
        return HandoverPeer(self._sock.accept()[0])

    def close(self) -> None:
        self._sock.close()
        self.path.unlink(missing_ok=True)
