"""Bodies of very many values: another process reads them, and the event loop turns meanwhile.

The loop's turns are counted, not timed: work that is done at once leaves a handful.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable

import pytest

from proxy.core.heavy import Done, Job, translation
from proxy.core.message import Codec, Failure, MoaReply, MoaRequest, Outcome, Speech, Wire
from proxy.core.model import Instance, ServiceKey, ServiceTable
from proxy.net.worker import Worker
from proxy.wire import hessian
from proxy.wire.moa import Route
from proxy.wire.resp import encode_command
from proxy.wire.turbo import EXT_HESSIAN, Cmd, encode
from tests.unit.net_support import (
    PacketConnection,
    Server,
    forwarder_of,
    until,
)
from tests.unit.test_net_packet_session import Client as PacketClient

URI = "/service/demo"
ROUTE = Route(URI, "", "echo", {})
MANY_TURNS = 100
NUMBERS = list(range(50_000))
LIMIT = 2 * 1024 * 1024


def request_json(args: object) -> bytes:
    return json.dumps({"action": URI, "params": {"m": "echo", "args": args}}).encode()


def to_hessian(body: bytes) -> bytes:
    return hessian.json_to_hessian(body)


async def turns_until(done: Callable[[], object]) -> int:
    loop, turns = asyncio.get_running_loop(), 0
    deadline_s = loop.time() + 20
    while not done():
        assert loop.time() < deadline_s
        turns += 1
        await asyncio.sleep(0)
    return turns


async def test_jobs_are_done_in_order_while_the_loop_turns() -> None:
    used, results = Worker(asyncio.get_running_loop()), list[Done]()
    body = request_json(NUMBERS)
    for job in (
        Job(b"h", body, LIMIT),
        Job(b"j", to_hessian(body), LIMIT),
        Job(b"r", to_hessian(body), LIMIT),
        Job(b"j", b"\x41", LIMIT),
    ):
        used.ask(job, results.append)
    assert await turns_until(lambda: len(results) == 4) > MANY_TURNS
    there, back, route, broken = results
    assert there.data == to_hessian(body)
    assert json.loads(back.data) == json.loads(body)
    assert json.loads(route.data) == {"route": [URI, "", "echo", {}]}
    assert "hessian2 to json" in broken.failure
    used.close()


async def test_a_worker_that_dies_fails_its_jobs_and_another_takes_the_next() -> None:
    used, results = Worker(asyncio.get_running_loop()), list[Done]()
    used.ask(Job(b"h", request_json(NUMBERS), LIMIT), results.append)
    first = used.pid
    assert first is not None
    os.kill(first, 9)
    await until(lambda: results, "the failure")
    assert results[0].failure == "the process for large bodies has ended"
    used.ask(Job(b"h", b"[1]", LIMIT), results.append)
    await turns_until(lambda: len(results) == 2)
    assert results[1].data == b"\x79\x91"
    assert used.pid != first
    used.close()


async def test_a_worker_without_work_ends() -> None:
    used, results = Worker(asyncio.get_running_loop(), idle_s=0.01), list[Done]()
    used.ask(Job(b"h", b"[1]", LIMIT), results.append)
    await turns_until(lambda: results)
    await until(lambda: used.pid is None, "the end of an idle worker")


async def test_more_than_the_queue_holds_is_refused_at_once() -> None:
    used, results = Worker(asyncio.get_running_loop()), list[Done]()
    for _ in range(40):
        used.ask(Job(b"h", b"[1]", LIMIT), results.append)
    await turns_until(lambda: len(results) == 40)
    refused = [done for done in results if done.failure]
    assert len(refused) == 8
    assert "too many large bodies" in refused[0].failure
    used.close()


@pytest.mark.parametrize(
    ("codec", "body", "is_long"),
    [
        (Codec.JSON, request_json(NUMBERS), True),
        (Codec.JSON, request_json(["x" * 100_000]), False),
        (Codec.HESSIAN2, to_hessian(request_json(NUMBERS)), True),
        (Codec.HESSIAN2, to_hessian(request_json(["x" * 100_000])), False),
        (Codec.HESSIAN2, to_hessian(request_json([1])), False),
        (Codec.HESSIAN2, b"\x57" + b"\x51\x91" * 5000, False),  # no Hessian
    ],
)
def test_what_is_long(codec: Codec, body: bytes, is_long: bool) -> None:
    message = MoaReply(body, Speech(Wire.TURBO, codec), b"raw")
    other = Codec.JSON if codec is Codec.HESSIAN2 else Codec.HESSIAN2
    assert (translation(message, other, LIMIT) is not None) == is_long
    assert translation(message, codec, LIMIT) is None


def test_references_are_long_whatever_the_size() -> None:
    shared = hessian.HessianList([1])
    body = hessian.encode(hessian.HessianList([shared, shared, "x" * 5000]))
    assert translation(MoaReply(body, Speech(Wire.TURBO, Codec.HESSIAN2), b""), Codec.JSON, LIMIT)


def of_hessian(server: Server) -> ServiceTable:
    listed = Instance(server.address, protocols=("turbo",), codec="hessian2")
    return ServiceTable.build({ServiceKey(URI): [listed]})


async def test_a_long_call_is_translated_both_ways_while_the_loop_turns() -> None:
    server = await Server.start()
    forwarder = forwarder_of(of_hessian(server), timeout_s=20)
    body, outcomes = request_json(NUMBERS), list[Outcome]()
    request = MoaRequest(ROUTE, body, Speech(Wire.RESP, Codec.JSON), encode_command(b"GET", body))
    forwarder.prepare(request, outcomes.append).start()
    turns = await turns_until(lambda: len(server.connections) and _readable(server))
    far = PacketConnection(server.connections[0].sock)
    packet = await far.packet()
    assert packet.body == to_hessian(body)
    assert turns > MANY_TURNS
    reply = {"ec": 200, "em": "", "result": NUMBERS}
    whole = encode(
        Cmd.RESP, packet.opaque, to_hessian(json.dumps(reply).encode()), extension=EXT_HESSIAN
    )
    await asyncio.get_running_loop().sock_sendall(far.sock, whole)
    assert await turns_until(lambda: outcomes) > MANY_TURNS
    assert isinstance(outcomes[0], MoaReply)
    assert json.loads(outcomes[0].body or b"") == reply
    assert outcomes[0].speech == Speech(Wire.TURBO, Codec.JSON)
    forwarder.close()
    server.close()


def _readable(server: Server) -> bool:
    return server.connections[0].has_more()


async def test_a_long_body_without_a_counterpart_is_refused_and_not_sent() -> None:
    server = await Server.start()
    forwarder = forwarder_of(of_hessian(server), timeout_s=20)
    body, outcomes = request_json([*NUMBERS, 2**70]), list[Outcome]()
    request = MoaRequest(ROUTE, body, Speech(Wire.RESP, Codec.JSON), encode_command(b"GET", body))
    forwarder.prepare(request, outcomes.append).start()
    await turns_until(lambda: outcomes)
    (failure,) = outcomes
    assert isinstance(failure, Failure)
    assert failure.ec == 302
    assert "$.params.args[50000]" in failure.em
    assert "not sent" in failure.em
    assert not server.connections[0].has_more()
    forwarder.close()
    server.close()


async def test_who_is_cancelled_during_a_translation_hears_nothing_more() -> None:
    server = await Server.start()
    forwarder = forwarder_of(of_hessian(server), timeout_s=20)
    body, outcomes = request_json(NUMBERS), list[Outcome]()
    request = MoaRequest(ROUTE, body, Speech(Wire.RESP, Codec.JSON), encode_command(b"GET", body))
    exchange = forwarder.prepare(request, outcomes.append)
    exchange.start()
    await until(lambda: forwarder.worker.pid, "the worker")
    exchange.cancel()
    results: list[Done] = []
    forwarder.worker.ask(Job(b"h", b"[1]", LIMIT), results.append)
    await turns_until(lambda: results)
    assert not outcomes
    assert forwarder.metrics.in_flight == 0
    forwarder.close()
    server.close()


async def test_a_packet_whose_route_takes_long_is_served_and_those_behind_it() -> None:
    server = await Server.start()
    forwarder = forwarder_of(of_hessian(server), timeout_s=20)
    client = PacketClient(forwarder, server.address)
    # The route stands behind the arguments, so nothing shortens the way to it.
    long = hessian.encode(
        hessian.HessianMap(
            [
                ("args", hessian.HessianList(list(NUMBERS))),
                ("action", URI),
                ("params", hessian.HessianMap([("m", "echo"), ("args", hessian.HessianList([]))])),
            ]
        )
    )
    short = to_hessian(request_json([1]))
    bodies = {1: long, 2: short}
    raws = {n: encode(Cmd.REQ, n, body, extension=EXT_HESSIAN) for n, body in bodies.items()}
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client.sock, raws[1] + raws[2])
    turns = await turns_until(lambda: len(server.connections) and _readable(server))
    assert turns > MANY_TURNS
    far = PacketConnection(server.connections[0].sock)
    for number in (1, 2):
        packet = await far.packet()
        assert packet.body == bodies[number], "the bytes as they came"
        far.answer(packet, b"\x90", EXT_HESSIAN)
        replied = await client.far.packet()
        assert (replied.opaque, replied.body) == (number, b"\x90")
    forwarder.close()
    client.sock.close()
    await until(lambda: client.ends, "the end")
    server.close()
