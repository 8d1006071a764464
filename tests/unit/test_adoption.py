"""A front that is killed at every step of what it does: its clients see one answer to each."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from proxy.wire.resp import ReplyParser, encode_command
from tests.unit.crash_world import SERVICE, EchoService, Steps, World


@pytest.fixture
def service() -> Iterator[EchoService]:
    made = EchoService()
    yield made
    made.close()


def request(number: int, method: str) -> bytes:
    body = {"action": SERVICE, "params": {"m": method, "args": [number]}}
    return encode_command(b"GET", json.dumps(body).encode())


def answers(replies: bytes) -> list[dict[str, object]]:
    return [json.loads(reply.raw[reply.begin : reply.end]) for reply in ReplyParser().feed(replies)]


def cut(data: bytes, *at: int) -> list[bytes]:
    edges = [0, *at, len(data)]
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def check_commands(service: EchoService, world: World, methods: list[str]) -> None:
    """Each request has one answer, in its place; nothing that must not be was executed twice."""
    assert not world.adopted.lost, world.adopted.lost
    assert not world.is_reset
    found = answers(bytes(world.replies))
    assert len(found) == len(methods)
    failed = 0
    for number, (method, answer) in enumerate(zip(methods, found, strict=True)):
        key = json.dumps({"action": SERVICE, "params": {"m": method, "args": [number]}}).encode()
        if answer.get("ec") == 303:
            failed += 1
            assert "the agent died" in str(answer["em"])
            assert method != "getThing"
            assert service.executed[key] <= 1
        else:
            assert answer["params"] == {"m": method, "args": [number]}
            assert 1 <= service.executed[key] <= (2 if method == "getThing" else 1)
    assert failed <= 1
    service.executed.clear()


def commands(methods: list[str]) -> bytes:
    return b"".join(request(number, method) for number, method in enumerate(methods))


def kill_everywhere(
    service: EchoService, methods: list[str], chunks: list[bytes], **settings: float
) -> int:
    """Follow the same script once for each step at which it may be cut short; how many."""
    step = 0
    while True:
        world = World(Steps(step), service.address, **settings)
        left = list(chunks)

        async def talk(world: World, left: list[bytes] = left) -> None:
            while left:
                world.send(left.pop(0))
                await world.settle()

        async def go_on(world: World, left: list[bytes] = left) -> None:
            await talk(world, left)
            await world.replied(lambda r: len(ReplyParser().feed(r)) >= len(methods))

        was_killed = world.run(talk)
        if world.is_noted:
            world.adopt(go_on)
            check_commands(service, world, methods)
        else:
            assert len(left) >= len(chunks) - 1, "a connection is on the board before it is read"
        world.close()
        if not was_killed:
            return step
        step += 1


def test_one_command_after_the_other(service: EchoService) -> None:
    methods = ["getThing", "put", "getThing"]
    chunks = [request(number, method) for number, method in enumerate(methods)]
    assert kill_everywhere(service, methods, chunks) > 20


def test_half_a_command_before_and_the_rest_after(service: EchoService) -> None:
    methods = ["put", "getThing", "put"]
    data = commands(methods)
    assert kill_everywhere(service, methods, cut(data, 2, 30, 100, 150, 200, 201)) > 20
