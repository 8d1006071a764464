"""Many requests on one connection: each reply to its caller, and what becomes of late ones."""

from __future__ import annotations

import asyncio
import socket

import pytest

from proxy.core.model import Address
from proxy.net import turbo_upstream
from proxy.net.turbo_upstream import TurboUpstream
from proxy.wire.resp import Reply
from proxy.wire.turbo import (
    EXT_HESSIAN,
    Cmd,
    Form,
    Packet,
    PacketLimits,
    encode,
    encode9,
    encode_ping,
    encode_pong,
)
from tests.unit.net_support import PacketConnection, fill, reset, tcp_pair, turns, until


class Asked:
    """An upstream, the server's end of it, and everything that it called back."""

    def __init__(self, form: Form = Form.PACKET19, max_body: int = 1 << 21) -> None:
        near, far = tcp_pair()
        self.server = PacketConnection(far, form)
        self.upstream = TurboUpstream(
            asyncio.get_running_loop(),
            near,
            Address(*near.getpeername()[:2]),
            form,
            PacketLimits(max_body),
            self._on_late,
            capacity=128,
        )
        self.replies: dict[str, bytes] = {}
        self.losses: list[str] = []
        self.late = 0
        self.idle_losses = 0
        self.upstream.on_idle_loss = self._on_idle_loss

    def _on_late(self) -> None:
        self.late += 1

    def _on_idle_loss(self) -> None:
        self.idle_losses += 1

    def send(self, name: str, frame: bytes = b"") -> int:
        def on_reply(packet: Packet | Reply) -> None:
            assert name not in self.replies
            self.replies[name] = packet.raw

        request = frame or encode(Cmd.REQ, 7, name.encode())
        return self.upstream.send(request, on_reply, self.losses.append)

    async def end(self) -> None:
        self.upstream.close()
        await until(lambda: self.upstream.stream.is_closed)
        self.server.sock.close()


async def test_replies_come_in_any_order_and_each_finds_its_caller() -> None:
    asked = Asked()
    for name in "abc":
        asked.send(name)
    packets = [await asked.server.packet() for _ in "abc"]
    assert len({packet.opaque for packet in packets}) == 3
    for packet in reversed(packets):
        asked.server.answer(packet, packet.body * 2)
    await until(lambda: len(asked.replies) == 3)
    for packet, name in zip(packets, "abc", strict=True):
        assert asked.replies[name] == encode(Cmd.RESP, packet.opaque, name.encode() * 2)
    assert asked.losses == []
    await asked.end()


async def test_only_the_number_of_a_packet_changes() -> None:
    asked = Asked()
    sent = encode(Cmd.REQ, 99, b"body", version=3, extension=EXT_HESSIAN | 1)
    asked.send("a", sent)
    assert (await asked.server.packet()).raw[4:] == sent[4:]
    await asked.end()


async def test_the_form_of_2015() -> None:
    asked = Asked(Form.PACKET9)
    asked.send("a", encode9(Cmd.REQ, 0, b"{}"))
    asked.server.answer(await asked.server.packet(), b'{"ec":200}')
    await until(lambda: asked.replies)
    pongs: list[bool] = []
    asked.upstream.ping(pongs.append, asked.losses.append)
    asked.server.send(encode_pong(await asked.server.packet()))
    await until(lambda: pongs)
    assert pongs == [True]
    await asked.end()


async def test_a_late_reply_is_dropped_and_counted() -> None:
    asked = Asked()
    number = asked.send("late")
    first = await asked.server.packet()
    assert asked.upstream.forget(number)
    ping = await asked.server.packet()
    assert ping.cmd is Cmd.PING
    asked.server.answer(first, b"late")
    asked.server.send(encode(Cmd.RESP, 12345, b"nobody asked"))
    asked.server.send(encode_pong(ping))
    asked.send("next")
    asked.server.answer(await asked.server.packet(), b"ok")
    await until(lambda: "next" in asked.replies)
    assert list(asked.replies) == ["next"]
    assert asked.late == 2
    assert not asked.upstream.is_lost
    await asked.end()


async def test_a_server_that_lets_requests_expire_and_says_nothing_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turbo_upstream, "PROBE_TIMEOUT_S", 0.05)
    asked = Asked()
    number = asked.send("expired")
    asked.send("waiting")
    asked.upstream.forget(number)
    await until(lambda: asked.losses)
    assert "does not answer PING" in asked.losses[0]
    assert len(asked.losses) == 1
    assert asked.upstream.is_lost
    await asked.end()


async def test_a_server_that_is_heard_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turbo_upstream, "PROBE_TIMEOUT_S", 0.05)
    asked = Asked()
    number = asked.send("expired")
    asked.send("waiting")
    asked.upstream.forget(number)
    asked.server.send(encode(Cmd.RESP, 0, b"x" * 1000)[:500])
    await until(lambda: asked.upstream.stream.bytes_in == 500)
    await asyncio.sleep(0.1)
    assert asked.losses == []
    await asked.end()


@pytest.mark.parametrize("ending", ["fin", "reset", "garbage", "over the limit"])
async def test_every_bad_end_is_one_loss_for_each_who_waits(ending: str) -> None:
    asked = Asked(max_body=1000)
    asked.send("a")
    asked.send("b")
    await turns()
    if ending == "fin":
        asked.server.sock.shutdown(socket.SHUT_WR)
    elif ending == "reset":
        reset(asked.server.sock)
    elif ending == "garbage":
        asked.server.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    else:
        asked.server.send(encode(Cmd.RESP, 1, b"x" * 1001)[:30])
    await until(lambda: len(asked.losses) == 2)
    await until(lambda: asked.upstream.stream.is_closed)
    assert asked.replies == {}
    assert asked.idle_losses == 0
    asked.server.sock.close()


async def test_an_idle_end_is_told() -> None:
    asked = Asked()
    asked.server.sock.close()
    await until(lambda: asked.idle_losses)
    assert asked.losses == []


async def test_a_server_may_ping_us() -> None:
    asked = Asked()
    ping = encode_ping(5, 1234)
    asked.server.send(ping)
    pong = await asked.server.packet()
    assert (pong.cmd, pong.opaque, pong.body) == (Cmd.PONG, 5, b'{"timestamp":1234}')
    await asked.end()


async def test_a_server_that_reads_nothing_is_congested_and_does_not_hold_us() -> None:
    asked = Asked()
    fill(asked.upstream.stream.sock)
    asked.send("big", encode(Cmd.REQ, 0, b"x" * 500_000))
    assert asked.upstream.is_congested
    await asked.end()


async def test_a_closed_one_calls_nobody() -> None:
    asked = Asked()
    asked.send("a")
    asked.upstream.close()
    await until(lambda: asked.upstream.stream.is_closed)
    assert (asked.replies, asked.losses, asked.idle_losses) == ({}, [], 0)
    asked.server.sock.close()
