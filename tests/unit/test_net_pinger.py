"""Pings over real sockets: what counts as an answer, and which connections are kept."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from proxy.core.model import Address
from proxy.net import ping_target
from proxy.net.ping_wire import CONNECT, LONGEST, PingWire, wire_of
from proxy.net.pinger import Pinger, PingSettings
from proxy.wire.turbo import Cmd, encode, encode9
from tests.support.waiting import eventually

RESP, TURBO, TURBO9 = (wire_of([name]) for name in ("resp", "turbo", "turbo9"))
SETTINGS = PingSettings(interval_s=0.1, timeout_s=0.09)


@dataclass(slots=True)
class Peer:
    """A server: what it answers, and what has come. `served` is pings for a connection."""

    answer: bytes = b"+PONG\r\n"
    served: int = 1_000_000
    connections: int = 0
    pings: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        left = self.served
        while left and await reader.read(4096):
            self.pings += 1
            left -= 1
            writer.write(self.answer)
        writer.close()


@dataclass(slots=True)
class Results:
    by_address: dict[Address, list[str]] = field(default_factory=dict)

    def note(self, address: Address, why: str) -> None:
        self.by_address.setdefault(address, []).append(why)

    def count(self, address: Address) -> int:
        return len(self.by_address.get(address, []))


@asynccontextmanager
async def listening(peer: Peer) -> AsyncIterator[Address]:
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for writer in peer.writers:
            writer.close()


@asynccontextmanager
async def pinging(
    wires: dict[Address, PingWire], settings: PingSettings = SETTINGS
) -> AsyncIterator[tuple[Pinger, Results]]:
    results = Results()
    pinger = Pinger(asyncio.get_running_loop(), settings, results.note)
    pinger.follow(wires)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(pinger.run())
        yield pinger, results
        running.cancel()


async def some(results: Results, address: Address, count: int = 4) -> list[str]:
    await eventually(lambda: results.count(address) >= count, f"{count} results")
    return results.by_address[address]


async def test_one_connection_is_kept_for_all_pings() -> None:
    peer = Peer()
    async with listening(peer) as address, pinging({address: RESP}) as (_, results):
        assert set(await some(results, address)) == {""}
        assert peer.connections == 1


async def test_without_room_to_keep_each_ping_connects() -> None:
    peer = Peer()
    settings = PingSettings(SETTINGS.interval_s, SETTINGS.timeout_s, max_kept=0)
    async with listening(peer) as address, pinging({address: RESP}, settings) as (_, results):
        assert set(await some(results, address)) == {""}
        assert peer.connections >= 4


async def test_a_connection_closed_between_pings_is_no_failure() -> None:
    peer = Peer(served=1)
    async with listening(peer) as address, pinging({address: RESP}) as (_, results):
        assert set(await some(results, address)) == {""}


async def test_a_refused_connection_a_refusal_and_silence_are_failures() -> None:
    refusing, silent = Peer(answer=b"-NOAUTH\r\n"), Peer(answer=b"")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        dead = Address("127.0.0.1", taken.getsockname()[1])
    async with (
        listening(refusing) as a,
        listening(silent) as b,
        pinging({a: RESP, b: RESP, dead: RESP}) as (pinger, results),
    ):
        assert all("NOAUTH" in why for why in await some(results, a))
        assert set(await some(results, b)) == {"no answer in time"}
        assert set(await some(results, dead)) == {"Connection refused"}
        assert pinger.counters.failed >= 12


async def test_who_speaks_nothing_that_we_ping_is_asked_for_a_connection() -> None:
    peer = Peer()
    assert wire_of(["mesh"]) is CONNECT
    async with listening(peer) as address, pinging({address: CONNECT}) as (_, results):
        assert set(await some(results, address)) == {""}
        assert peer.pings == 0


async def test_what_is_not_followed_any_more_is_left_alone() -> None:
    one, two = Peer(), Peer()
    async with (
        listening(one) as a,
        listening(two) as b,
        pinging({a: RESP, b: RESP}) as (pinger, results),
    ):
        await some(results, a)
        pinger.follow({b: RESP})
        seen = results.count(a)
        await some(results, b, results.count(b) + 4)
        assert results.count(a) == seen
        assert len(pinger) == 1


async def test_no_more_than_allowed_are_under_way_and_all_have_their_turn() -> None:
    peers = [Peer(answer=b"") for _ in range(6)]
    settings = PingSettings(interval_s=0.1, timeout_s=0.05, max_at_once=2)
    async with listening(peers[0]) as first:
        wires = {Address(f"127.0.0.{n}", first.port): RESP for n in range(2, 6)}
        async with pinging({first: RESP, **wires}, settings) as (_, results):
            await some(results, first, 3)
            for address in wires:
                await some(results, address, 1)


async def test_a_fault_of_this_machine_says_nothing_of_the_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_address: Address) -> socket.socket:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(ping_target, "open_client", full)
    address = Address("127.0.0.1", 9)
    async with pinging({address: RESP}) as (pinger, results):
        await eventually(lambda: pinger.counters.local_faults > 3, "faults")
        assert results.count(address) == 0


@pytest.mark.parametrize(
    ("wire", "answer"),
    [
        (RESP, b"+PONG\r\n"),
        (RESP, b"$4\r\nPONG\r\n"),
        (TURBO, encode(Cmd.PONG, 1, b'{"timestamp":0}')),
        (TURBO9, encode9(Cmd.PONG, 1, b"")),
    ],
)
def test_an_answer_counts_when_it_is_complete(wire: PingWire, answer: bytes) -> None:
    assert [wire.judge(answer[:n]) for n in range(1, len(answer))] == [None] * (len(answer) - 1)
    assert wire.judge(answer) is True


@pytest.mark.parametrize(
    ("wire", "answer"),
    [
        (RESP, b"-ERR\r\n"),
        (RESP, b"HTTP/1.1 400"),
        (RESP, b"+" + b"x" * LONGEST),
        (TURBO, encode(Cmd.RESP, 1, b"")),
        (TURBO, encode(Cmd.PONG, 1, b"x" * 100_000)[:LONGEST]),
        (TURBO9, encode9(Cmd.PING, 1, b"")),
    ],
)
def test_anything_else_is_none(wire: PingWire, answer: bytes) -> None:
    assert wire.judge(answer) is False


def test_the_cheapest_protocol_is_chosen() -> None:
    assert wire_of(["mesh", "turbo", "resp"]) is RESP
    assert wire_of(["mesh", "turbo9", "turbo"]) is TURBO
