"""The channel between two agents: frames and descriptors arrive together, or not at all."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, cast

from google.protobuf.message import Message

from proxy.net.handover.channel import Channel
from proxy.net.handover.sides import TakingSide
from proxy.net.handover.taker import Taker
from proxy.net.served import Served
from proxy.wire.handover import Received
from proxy.wire.handover import handover_pb2 as pb
from tests.unit.net_support import until


class Ends:
    """Two channels that speak to each other; what arrives at the second is kept."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.near, self.far = Channel(loop, near), Channel(loop, far)
        self.raw = near
        self.frames: list[tuple[Message, list[int] | None]] = []
        self.lost: list[str] = []
        self.far.on_frame = self._keep
        self.far.on_lost = self.lost.append
        self.near.start()
        self.far.start()

    def _keep(self, received: Received, fds: list[int] | None) -> None:
        self.frames.append((received.message, fds))

    def close(self) -> None:
        self.near.close()
        self.far.close()
        for _, fds in self.frames:
            for fd in fds or []:
                os.close(fd)


@contextmanager
def few_descriptors(more: int) -> Iterator[None]:
    """This process may open so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_descriptors_come_with_their_frames_however_many_wait() -> None:
    ends, sent = Ends(), []
    pipes = [os.pipe() for _ in range(300)]
    for number in range(50):
        fds = [pipe[0] for pipe in pipes[: number * 4]]
        body = b"x" * (number * 10_000)
        connection = pb.Connection(number=number, unread=body)
        ends.near.send(
            pb.Prepare(batch=number, connections=[connection]),
            fds,
            on_sent=lambda n=number: sent.append(n),  # type: ignore[misc]
        )
    await until(lambda: len(ends.frames) == 50)
    assert sent == list(range(50))
    for number, (message, fds_there) in enumerate(ends.frames):
        assert isinstance(message, pb.Prepare)
        assert (message.batch, len(message.connections[0].unread)) == (number, number * 10_000)
        assert fds_there is not None
        assert [os.fstat(fd).st_ino for fd in fds_there] == [
            os.fstat(pipe[0]).st_ino for pipe in pipes[: number * 4]
        ]
        assert not any(os.get_inheritable(fd) for fd in fds_there)
    ends.close()
    for pipe in pipes:
        os.close(pipe[0])
        os.close(pipe[1])


async def test_too_few_descriptors_left_is_told_and_leaks_none() -> None:
    ends = Ends()
    before = len(os.listdir("/proc/self/fd"))
    with few_descriptors(more=10):
        ends.near.send(pb.Prepare(batch=1), [0] * 100)
        ends.near.send(pb.Prepare(batch=2), [0] * 2)
        await until(lambda: len(ends.frames) == 2)
    assert ends.frames[0] == (pb.Prepare(batch=1), None)
    fds = ends.frames[1][1]
    assert fds is not None
    assert len(fds) == 2
    assert len(os.listdir("/proc/self/fd")) == before + 2
    ends.close()


async def test_what_was_sent_arrives_also_when_the_sender_has_gone() -> None:
    ends = Ends()
    for number in range(20):
        ends.near.send(pb.Commit(batch=number))
    ends.near.close()
    await until(lambda: ends.lost)
    assert len(ends.frames) == 20
    assert ends.lost == ["the other agent has closed the connection"]


async def test_what_breaks_the_protocol_ends_it_once() -> None:
    ends = Ends()
    ends.raw.send(b"MOAX" * 10)
    await until(lambda: ends.lost)
    assert ends.lost == ["broke the protocol: magic b'MOAX', expected b'MOAH'"]
    assert not ends.far.is_open
    ends.close()


async def test_a_death_can_be_noticed_before_the_loop_tells(tmp_path: Path) -> None:
    """What it said before counts; a socket that its keeper holds open says nothing of it."""
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, "-c", _CONNECT, str(path)], stdin=subprocess.PIPE
        )
        near, _ = listener.accept()
    channel, lost = Channel(asyncio.get_running_loop(), near), list[str]()
    channel.on_lost = lost.append
    channel.start()
    channel.notice_death()
    assert lost == []
    process.kill()
    process.wait()
    channel.notice_death()
    assert len(lost) == 1
    assert not channel.is_open


_CONNECT = """
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM); s.connect(sys.argv[1])
sys.stdin.read()
"""


class _Nobody:
    sessions: ClassVar[dict[int, Served]] = {}
    needs_table = False


async def test_descriptors_that_nobody_expects_are_closed() -> None:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    channel, giver = Channel(loop, near), Channel(loop, far)
    ended: list[str | None] = []
    taker = Taker(channel, cast(TakingSide, _Nobody()), lambda: None, ended.append)
    channel.start()
    taker.start(100)
    with socket.socket() as sock:
        before = len(os.listdir("/proc/self/fd"))
        giver.send(pb.Done(), [sock.fileno()])
        await until(lambda: ended == [None])
        assert len(os.listdir("/proc/self/fd")) == before
    channel.close()
    giver.close()
