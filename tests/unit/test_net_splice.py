"""Two connections joined: every byte, every end, and no more memory than agreed."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket

import pytest

from proxy.net import splice as splice_module
from proxy.net.splice import Splice
from proxy.net.stream import HIGH_WATER, READ_SIZE, READS_AT_ONCE, Stream
from tests.unit.net_support import fill, is_open, read_end, read_exactly, reset, tcp_pair, until

BOUND = HIGH_WATER + (READS_AT_ONCE + 1) * READ_SIZE


class Joined:
    """A client and a server with a splice between them."""

    def __init__(self, to_server: bytes = b"", to_client: bytes = b"") -> None:
        loop = asyncio.get_running_loop()
        self.client, near = tcp_pair()
        self.server, far = tcp_pair()
        self.streams = Stream(loop, near), Stream(loop, far)
        self.ends = 0
        self.splice = Splice(
            *self.streams, to_server=to_server, to_client=to_client, on_end=self._on_end
        )

    def _on_end(self) -> None:
        self.ends += 1

    async def end(self) -> None:
        await until(lambda: self.ends, "the end")
        assert self.ends == 1
        assert not any(is_open(s.sock) for s in self.streams)
        for sock in (self.client, self.server):
            if is_open(sock):
                sock.close()


async def test_what_was_read_before_comes_first_both_ways() -> None:
    joined = Joined(to_server=b"early ", to_client=b"banner ")
    joined.client.send(b"late")
    joined.server.send(b"rest")
    assert await read_exactly(joined.server, 10) == b"early late"
    assert await read_exactly(joined.client, 11) == b"banner rest"
    joined.splice.abort()
    await joined.end()


async def test_megabytes_both_ways_at_once() -> None:
    joined = Joined()
    loop = asyncio.get_running_loop()
    rand = random.Random(7)
    up, down = rand.randbytes(8 << 20), rand.randbytes(8 << 20)

    async def send(sock: socket.socket, data: bytes) -> None:
        await loop.sock_sendall(sock, data)
        sock.shutdown(socket.SHUT_WR)

    _, _, got_up, got_down = await asyncio.gather(
        send(joined.client, up),
        send(joined.server, down),
        read_end(joined.server),
        read_end(joined.client),
    )
    assert isinstance(got_up, bytes)
    assert isinstance(got_down, bytes)
    assert hashlib.sha256(got_up).digest() == hashlib.sha256(up).digest()
    assert hashlib.sha256(got_down).digest() == hashlib.sha256(down).digest()
    await joined.end()


@pytest.mark.parametrize("first", ["client", "server"])
async def test_a_half_closed_side_still_hears_the_other(first: str) -> None:
    joined = Joined()
    a, b = joined.client, joined.server
    if first == "server":
        a, b = b, a
    a.send(b"question")
    a.shutdown(socket.SHUT_WR)
    assert await read_end(b) == b"question"
    assert joined.ends == 0
    b.send(b"answer")
    b.close()
    assert await read_end(a) == b"answer"
    await joined.end()


async def test_a_fin_that_came_before_the_splice_is_passed_on() -> None:
    loop = asyncio.get_running_loop()
    client, near = tcp_pair()
    server, far = tcp_pair()
    streams = Stream(loop, near), Stream(loop, far)
    client.shutdown(socket.SHUT_WR)
    streams[0].resume_reading()
    await until(lambda: streams[0].peer_done)
    ends: list[int] = []
    Splice(*streams, to_server=b"all", to_client=b"", on_end=lambda: ends.append(1))
    assert await read_end(server) == b"all"
    server.send(b"answer")
    server.close()
    assert await read_end(client) == b"answer"
    await until(lambda: ends == [1])
    client.close()


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_reset_is_a_reset_and_never_a_fin(side: str) -> None:
    joined = Joined()
    a, b = joined.client, joined.server
    if side == "server":
        a, b = b, a
    b.send(b"x")
    assert await read_exactly(a, 1) == b"x"
    reset(a)
    assert await read_end(b) is ConnectionResetError
    await joined.end()


async def test_a_reset_behind_data_is_noticed() -> None:
    joined = Joined()
    fill(joined.server)
    reset(joined.server)
    await until(lambda: joined.ends, "the end")
    assert await read_end(joined.client) is ConnectionResetError
    await joined.end()


@pytest.mark.parametrize("slow", ["client", "server"])
async def test_a_slow_reader_stops_the_other_side_and_loses_nothing(slow: str) -> None:
    joined = Joined()
    reader, writer = joined.client, joined.server
    reading, writing = joined.streams
    if slow == "server":
        reader, writer = writer, reader
        reading, writing = writing, reading
    sent = 0
    while not writing.is_paused:
        sent += fill(writer)
        await asyncio.sleep(0.001)
        assert reading._buffered <= BOUND
    sent += fill(writer)
    assert reading._buffered <= BOUND
    writer.shutdown(socket.SHUT_WR)
    got = await read_end(reader)
    assert isinstance(got, bytes)
    assert len(got) == sent
    reader.close()
    await joined.end()


async def test_the_server_gone_while_the_client_is_slow_ends_in_a_reset() -> None:
    joined = Joined()
    while not joined.streams[1].is_paused:
        fill(joined.server)
        await asyncio.sleep(0.001)
    reset(joined.server)
    got = await read_end(joined.client)
    assert got is ConnectionResetError
    await joined.end()


async def test_an_early_answer_arrives_although_the_upload_fails() -> None:
    """HTTP's 413: the server answers, closes, and resets because it did not read all."""
    joined = Joined()

    def is_stuck() -> bool:
        fill(joined.client)  # again and again: the kernel may give the server's side more room
        return joined.streams[0].is_paused or joined.streams[1].has_unsent

    await until(is_stuck)
    joined.server.send(b"413 too large")
    joined.server.close()  # with unread data: the kernel sends a reset
    answer = await read_exactly(joined.client, 13)
    assert answer == b"413 too large"
    assert await read_end(joined.client) is ConnectionResetError
    await joined.end()


async def test_half_of_a_connection_does_not_stay_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(splice_module, "HALF_CLOSED_IDLE_S", 0.03)
    joined = Joined()
    joined.client.close()
    assert await read_end(joined.server) == b""
    # The server never ends its side.
    await joined.end()


async def test_half_of_a_connection_stays_as_long_as_bytes_move(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(splice_module, "HALF_CLOSED_IDLE_S", 0.05)
    joined = Joined()
    joined.client.shutdown(socket.SHUT_WR)
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    while loop.time() - start_s < 0.3:
        joined.server.send(b"x")
        assert await read_exactly(joined.client, 1) == b"x"
    joined.server.close()
    assert await read_end(joined.client) == b""
    await joined.end()


async def test_abort_resets_both() -> None:
    joined = Joined()
    joined.splice.abort()
    assert await read_end(joined.client) is ConnectionResetError
    assert await read_end(joined.server) is ConnectionResetError
    await joined.end()
