"""Streams and dials on real sockets, on both event loops."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from proxy.net import stream as stream_module
from proxy.net.dial import Dial
from proxy.net.sockets import open_client
from proxy.net.stream import HIGH_WATER, READ_SIZE, READS_AT_ONCE, Stream
from tests.unit.net_support import (
    Recorder,
    fill,
    is_open,
    read_end,
    read_exactly,
    reset,
    tcp_pair,
    turns,
    until,
)


def make() -> tuple[Stream, Recorder, socket.socket]:
    near, far = tcp_pair()
    stream = Stream(asyncio.get_running_loop(), near)
    return stream, Recorder(stream), far


async def test_nothing_is_read_before_it_is_asked_for() -> None:
    stream, seen, far = make()
    far.send(b"early")
    await turns()
    assert seen.events == []
    stream.resume_reading()
    await until(lambda: seen.data == b"early")
    stream.abort()
    await until(lambda: stream.is_closed)
    far.close()


async def test_everything_arrives_however_much_and_then_the_fin() -> None:
    stream, seen, far = make()
    stream.resume_reading()
    sent = bytes(range(256)) * 8192
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(far, sent)
    far.shutdown(socket.SHUT_WR)
    await until(lambda: "eof" in seen.events)
    assert bytes(seen.data) == sent
    assert seen.events == ["data", "eof"]
    assert stream.peer_done
    assert stream.bytes_in == len(sent)
    # The other direction still works.
    stream.write(b"answer")
    assert await read_exactly(far, 6) == b"answer"
    stream.close()
    await until(lambda: seen.events[-1] == "close")
    assert await read_end(far) == b""
    far.close()


async def test_a_reset_behind_unread_data_is_noticed() -> None:
    """libuv reports an error once and then never again."""
    stream, seen, far = make()
    fill(far)
    seen.when_data = lambda: reset(far) if is_open(far) else None
    stream.resume_reading()
    await until(lambda: "close" in seen.events)
    assert isinstance(seen.error, ConnectionResetError)
    assert not is_open(stream.sock)


async def test_a_reset_behind_a_short_message_is_noticed() -> None:
    stream, seen, far = make()
    far.send(b"last words")
    await turns(1)
    seen.when_data = lambda: reset(far)
    stream.resume_reading()
    await until(lambda: "close" in seen.events)
    assert seen.data == b"last words"


async def test_bytes_between_a_message_and_a_reset_are_read() -> None:
    stream, seen, far = make()
    far.send(b"last words")
    await turns(1)

    def more() -> None:
        if is_open(far):
            far.send(b", and more")
            reset(far)

    seen.when_data = more
    stream.resume_reading()
    await until(lambda: "close" in seen.events)
    assert seen.data == b"last words, and more"
    assert isinstance(seen.error, ConnectionResetError)


@pytest.mark.parametrize("end", ["bytes", "fin", "reset", "closed"])
async def test_quiet_is_who_has_nothing_for_us(end: str) -> None:
    stream, _, far = make()
    assert stream.is_quiet()
    if end == "bytes":
        far.send(b"x")
    elif end == "fin":
        far.shutdown(socket.SHUT_WR)
    elif end == "reset":
        reset(far)
    else:
        stream.abort()
        await until(lambda: stream.is_closed)
    await until(lambda: not stream.is_quiet())
    stream.abort()
    await until(lambda: stream.is_closed)
    far.close()


async def test_one_turn_reads_a_bounded_amount() -> None:
    stream, seen, far = make()
    fill(far)
    stream.resume_reading()
    read_in_turn = []
    for _ in range(20):
        before = len(seen.data)
        await asyncio.sleep(0)
        read_in_turn.append(len(seen.data) - before)
    assert 0 < max(read_in_turn) <= READS_AT_ONCE * READ_SIZE
    stream.abort()
    await until(lambda: stream.is_closed)
    assert seen.events == ["data", "close"]
    far.close()


async def test_paused_in_the_callback_reads_no_more() -> None:
    stream, seen, far = make()
    fill(far)

    def on_data(data: bytes) -> None:
        seen.data.extend(data)
        stream.pause_reading()

    stream.on_data = on_data
    stream.resume_reading()
    await until(lambda: seen.data)
    await turns()
    assert len(seen.data) <= READ_SIZE
    first = len(seen.data)
    stream.resume_reading()
    await until(lambda: len(seen.data) > first)
    await turns()
    assert len(seen.data) <= 2 * READ_SIZE
    stream.abort()
    await until(lambda: stream.is_closed)
    far.close()


class _TrickySocket:
    """Takes what it is told to take, as a kernel with a small buffer may."""

    def __init__(self, sock: socket.socket, takes: list[int]) -> None:
        self._sock = sock
        self._takes = takes

    def send(self, data: memoryview) -> int:
        if not self._takes:
            return self._sock.send(data)
        count = self._takes.pop(0)
        if count == 0:
            raise BlockingIOError(errno.EAGAIN, "full")
        return min(count, len(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


async def test_drained_is_told_when_the_kernel_stops_between_two_pieces() -> None:
    """Whole pieces leave, the next one would block: the low water mark was passed all the same."""
    stream, seen, far = make()
    big, small = bytes(HIGH_WATER), b"y" * 1000
    stream.sock = _TrickySocket(stream.sock, [0, len(big), 0])  # type: ignore[assignment]
    stream.write(big)
    stream.write(small)
    await until(lambda: "drain" in seen.events, "drain")
    assert not stream.is_congested
    stream.abort()
    await until(lambda: stream.is_closed)
    far.close()


async def test_a_slow_reader_congests_and_then_drains_once() -> None:
    stream, seen, far = make()
    sent = 0
    while not stream.is_congested:
        stream.write(b"z" * 65536)
        sent += 65536
    assert len(await read_exactly(far, sent)) == sent
    await until(lambda: "drain" in seen.events)
    assert seen.events == ["drain"]
    assert not stream.has_unsent
    stream.abort()
    await until(lambda: stream.is_closed)
    far.close()


async def test_close_sends_what_is_left_and_then_the_fin() -> None:
    stream, seen, far = make()
    size = fill(stream.sock)
    stream.write(b"e" * 300_000)
    stream.close()
    stream.write(b"too late")
    got = await read_end(far)
    assert isinstance(got, bytes)
    assert len(got) == size + 300_000
    await until(lambda: seen.events == ["close"])
    far.close()


async def test_a_peer_that_takes_nothing_of_the_last_bytes_is_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_module, "FLUSH_STALL_S", 0.02)
    stream, seen, far = make()
    fill(stream.sock)
    stream.write(b"e" * 300_000)
    stream.close()
    await until(lambda: "close" in seen.events)
    assert not is_open(stream.sock)
    assert await read_end(far) is ConnectionResetError
    far.close()


async def test_nothing_is_called_back_after_abort_but_the_close() -> None:
    stream, seen, far = make()
    stream.resume_reading()
    far.send(b"data")
    stream.abort()
    stream.resume_reading()
    stream.write(b"no")
    await turns()
    assert seen.events == ["close"]
    assert seen.error is None
    assert await read_end(far) is ConnectionResetError
    far.close()


async def test_abort_from_inside_on_data_ends_the_reading() -> None:
    stream, seen, far = make()
    fill(far)
    calls = []

    def on_data(data: bytes) -> None:
        calls.append(len(data))
        stream.abort()

    stream.on_data = on_data
    stream.resume_reading()
    await until(lambda: "close" in seen.events)
    assert len(calls) == 1
    far.close()


async def test_last_words_are_read_before_a_broken_write_is_told() -> None:
    """An early answer (HTTP's 413) reaches the peer although our sending has failed."""
    stream, seen, far = make()
    fill(stream.sock)
    stream.write(b"more" * 100_000)
    far.send(b"stop it")
    reset(far)
    await until(lambda: not stream.has_unsent, "the failed write")
    assert "close" not in seen.events
    stream.resume_reading()
    await until(lambda: "close" in seen.events)
    assert isinstance(seen.error, OSError)
    assert bytes(seen.data) in (b"", b"stop it")  # the kernel may drop it with the reset
    assert "eof" not in seen.events


async def test_a_failed_write_while_congested_lets_its_source_go_on() -> None:
    stream, seen, far = make()
    while not stream.is_congested:
        stream.write(b"z" * 65536)
    reset(far)
    await until(lambda: "drain" in seen.events)
    stream.resume_reading()
    await until(lambda: "close" in seen.events)
    assert seen.error is not None


async def test_fin_waits_for_what_is_unsent() -> None:
    stream, seen, far = make()
    size = fill(stream.sock)
    stream.write(b"w" * 200_000)
    stream.write_eof()
    got = await read_end(far)
    assert isinstance(got, bytes)
    assert len(got) == size + 200_000
    stream.resume_reading()
    far.send(b"still heard")
    await until(lambda: seen.data == b"still heard")
    stream.close()
    await until(lambda: stream.is_closed)
    far.close()


async def test_hang_up_resets_a_peer_that_is_owed_bytes_and_is_polite_otherwise() -> None:
    stream, seen, far = make()
    stream.hang_up()
    await until(lambda: seen.events == ["close"])
    assert await read_end(far) == b""
    far.close()
    stream, seen, far = make()
    fill(stream.sock)
    stream.write(b"rest" * 100_000)
    stream.hang_up()
    await until(lambda: seen.events == ["close"])
    assert await read_end(far) is ConnectionResetError
    far.close()


# Dials


async def _dial(target: tuple[str, int], timeout_s: float = 2.0) -> socket.socket | OSError:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[socket.socket | OSError] = loop.create_future()
    sock = socket.socket()
    sock.setblocking(False)
    Dial(loop, sock, target, timeout_s, done.set_result)
    return await done


async def test_dial_hands_over_the_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        result = await _dial(listener.getsockname())
        assert isinstance(result, socket.socket)
        assert result.getpeername() == listener.getsockname()
        result.close()


async def test_dial_says_why_it_was_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = listener.getsockname()
    result = await _dial(target)
    assert isinstance(result, ConnectionRefusedError)
    assert result.errno == errno.ECONNREFUSED
    assert result.strerror == "Connection refused"


async def test_dial_ends_at_its_timeout_and_closes_its_socket() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        # A full backlog leaves further SYNs without an answer.
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        loop = asyncio.get_running_loop()
        done: asyncio.Future[socket.socket | OSError] = loop.create_future()
        sock = socket.socket()
        sock.setblocking(False)
        Dial(loop, sock, listener.getsockname(), 0.05, done.set_result)
        assert isinstance(await done, TimeoutError)
        assert not is_open(sock)
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("listens", [True, False])
async def test_a_cancelled_dial_calls_nobody_and_keeps_nothing(listens: bool) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = listener.getsockname()
        if not listens:
            listener.close()
        sock = socket.socket()
        sock.setblocking(False)
        results: list[object] = []
        dial = Dial(loop, sock, target, 1.0, results.append)
        dial.cancel()
        dial.cancel()
        await turns()
        assert results == []
        assert not is_open(sock)


async def test_a_connection_of_ours_finds_out_that_its_peer_is_gone() -> None:
    from proxy.core.model import Address

    sock = open_client(Address("127.0.0.1", 1))
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    sock.close()
