"""One connection to a server: its reply, its loss, and what it says without being asked."""

from __future__ import annotations

import asyncio
import socket

import pytest

from proxy.core.model import Address
from proxy.net.resp_upstream import RespUpstream
from proxy.wire.resp import Limits, Reply
from tests.unit.net_support import fill, is_open, read_end, reset, tcp_pair, turns, until

REQUEST = b"*2\r\n$3\r\nGET\r\n$2\r\n{}\r\n"


class Asked:
    """An upstream, the server's end of it, and everything that it called back."""

    def __init__(self, limits: Limits | None = None) -> None:
        near, self.far = tcp_pair()
        address = Address(*near.getpeername()[:2])
        self.upstream = RespUpstream(asyncio.get_running_loop(), near, address, limits or Limits())
        self.replies: list[bytes] = []
        self.losses: list[str] = []
        self.idle_losses = 0
        self.unasked: list[bytes] = []
        self.upstream.on_idle_loss = self._on_idle_loss

    def _on_idle_loss(self) -> None:
        self.idle_losses += 1

    def hear_everything(self) -> None:
        self.upstream.on_unsolicited = self.unasked.append

    def send(self) -> None:
        self.upstream.send(REQUEST, self._on_reply, self.losses.append)

    def _on_reply(self, reply: Reply) -> None:
        self.replies.append(reply.raw)

    async def end(self) -> None:
        self.upstream.close()
        await until(lambda: self.upstream.stream.is_closed)
        self.far.close()


async def test_a_reply_split_at_every_byte_comes_once() -> None:
    asked = Asked()
    asked.send()
    for byte in b"$5\r\nhello\r\n":
        assert asked.replies == []
        asked.far.send(bytes((byte,)))
        await turns(3)
    await until(lambda: asked.replies)
    assert asked.replies == [b"$5\r\nhello\r\n"]
    assert not asked.upstream.is_busy
    await asked.end()
    assert asked.losses == []
    assert asked.idle_losses == 0


async def test_the_next_request_may_be_sent_from_inside_the_reply() -> None:
    asked = Asked()
    got: list[bytes] = []

    def first(reply: Reply) -> None:
        got.append(reply.raw)
        asked.upstream.send(REQUEST, lambda second: got.append(second.raw), asked.losses.append)

    asked.upstream.send(REQUEST, first, asked.losses.append)
    asked.far.send(b"+one\r\n")
    await until(lambda: len(got) == 1)
    asked.far.send(b"+two\r\n")
    await until(lambda: len(got) == 2)
    assert got == [b"+one\r\n", b"+two\r\n"]
    await asked.end()


@pytest.mark.parametrize(
    "ending", ["fin", "reset", "garbage", "two replies", "half a reply too many"]
)
async def test_every_bad_end_is_one_loss(ending: str) -> None:
    asked = Asked()
    asked.send()
    await turns()
    if ending == "fin":
        asked.far.shutdown(socket.SHUT_WR)
    elif ending == "reset":
        reset(asked.far)
    elif ending == "garbage":
        asked.far.send(b"HTTP/1.1 400\r\n\r\n")
    elif ending == "two replies":
        asked.far.send(b"+a\r\n+b\r\n")
    else:
        asked.far.send(b"+a\r\n$5\r\nhe")
    await until(lambda: asked.losses)
    await until(lambda: asked.upstream.stream.is_closed)
    assert len(asked.losses) == 1
    assert asked.replies == []
    assert asked.idle_losses == 0
    assert asked.upstream.is_lost
    assert not is_open(asked.upstream.stream.sock)
    asked.far.close()


async def test_an_idle_end_is_told_once_and_never_as_a_reply() -> None:
    asked = Asked()
    asked.far.send(b"+nobody asked\r\n")
    await until(lambda: asked.idle_losses)
    assert asked.replies == []
    await until(lambda: asked.upstream.stream.is_closed)
    assert asked.idle_losses == 1
    asked.far.close()


async def test_a_reset_is_told_apart_from_a_fin() -> None:
    for end, was_reset in ((reset, True), (lambda far: far.close(), False)):
        asked = Asked()
        end(asked.far)
        await until(lambda asked=asked: asked.idle_losses)  # type: ignore[misc]
        assert asked.upstream.was_reset is was_reset


async def test_a_closed_one_calls_nobody() -> None:
    asked = Asked()
    asked.send()
    asked.upstream.close()
    asked.far.send(b"+late\r\n")
    await until(lambda: asked.upstream.stream.is_closed)
    await turns()
    assert (asked.replies, asked.losses, asked.idle_losses) == ([], [], 0)
    asked.far.close()


async def test_a_frozen_server_does_not_hold_a_request_that_nobody_waits_for() -> None:
    asked = Asked()
    fill(asked.upstream.stream.sock)
    asked.send()
    assert asked.upstream.stream.has_unsent
    asked.upstream.close()
    await until(lambda: asked.upstream.stream.is_closed, "the descriptor given back")
    assert await read_end(asked.far) is ConnectionResetError
    asked.far.close()


async def test_a_server_that_breaks_the_protocol_and_reads_nothing_does_not_hold_it() -> None:
    asked = Asked()
    fill(asked.upstream.stream.sock)
    asked.send()
    asked.far.send(b"garbage\r\n")
    await until(lambda: asked.losses)
    await until(lambda: asked.upstream.stream.is_closed, "the descriptor given back")
    asked.far.close()


async def test_looks_alive_sees_a_fin_that_the_loop_has_not_told() -> None:
    asked = Asked()
    assert asked.upstream.looks_alive()
    asked.far.close()
    assert not asked.upstream.looks_alive()
    await until(lambda: asked.upstream.stream.is_closed)
    assert not asked.upstream.looks_alive()


async def test_a_reply_over_the_limit_is_a_loss_before_it_is_read() -> None:
    asked = Asked(Limits(max_element=1000, max_frame=2000))
    asked.send()
    asked.far.send(b"$1001\r\n")
    await until(lambda: asked.losses)
    assert "1001" in asked.losses[0]
    await until(lambda: asked.upstream.stream.is_closed)
    asked.far.close()


# A server that may say more than it is asked: any server but an instance


async def test_pushes_around_a_reply_are_not_the_reply() -> None:
    asked = Asked()
    asked.hear_everything()
    asked.send()
    asked.far.send(b">2\r\n+invalidate\r\n*0\r\n")
    await until(lambda: asked.unasked)
    assert asked.replies == []
    asked.far.send(b">1\r\n+a\r\n+PONG\r\n>1\r\n+b\r\n>1\r\n+par")
    await until(lambda: asked.replies)
    assert asked.replies == [b"+PONG\r\n"]
    assert b"".join(asked.unasked) == (
        b">2\r\n+invalidate\r\n*0\r\n>1\r\n+a\r\n>1\r\n+b\r\n>1\r\n+par"
    )
    asked.far.send(b"tial\r\n")
    await until(lambda: asked.unasked[-1] == b"tial\r\n")
    assert asked.losses == []
    await asked.end()


async def test_taken_from_inside_the_reply_it_leaves_with_every_byte() -> None:
    asked = Asked()
    asked.hear_everything()
    taken: list[bytes] = []

    def on_reply(reply: Reply) -> None:
        asked.replies.append(reply.raw)
        taken.append(asked.upstream.take_stream()[1])

    asked.upstream.send(REQUEST, on_reply, asked.losses.append)
    asked.far.send(b"*1\r\n+one\r\n*1\r\n+two\r\n*1\r\n+th")
    await until(lambda: taken)
    assert asked.replies == [b"*1\r\n+one\r\n"]
    assert taken == [b"*1\r\n+two\r\n*1\r\n+th"]
    assert asked.unasked == []
    asked.upstream.stream.abort()
    await until(lambda: asked.upstream.stream.is_closed)
    asked.far.close()
