"""A front that is killed at every step of what it does: its clients see one answer to each."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator

import pytest

from installer import keeper
from proxy.core.model import Address
from proxy.net.adoption import adopt_board
from proxy.net.board import Board
from proxy.wire.resp import ReplyParser, encode_command
from proxy.wire.turbo import Cmd, Form, Packet, PacketParser, encode, encode9
from tests.unit.crash_world import SERVICE, EchoService, Steps, World
from tests.unit.net_support import LIMITS, tcp_pair

Check = Callable[[World], None]


@pytest.fixture
def service() -> Iterator[EchoService]:
    made = EchoService()
    yield made
    made.close()


@pytest.fixture
def plain() -> Iterator[EchoService]:
    made = EchoService(is_raw=True)
    yield made
    made.close()


class _Round:
    """Requests of one world are no other's: a service may be late to count what it was sent."""

    number = 100_000


def body(number: int, method: str, action: str = SERVICE, pad: int = 0) -> bytes:
    params = {"m": method, "args": [number, _Round.number, "x" * pad]}
    return json.dumps({"action": action, "params": params}).encode()


def bodies(methods: list[str], action: str = SERVICE, pad: int = 0) -> list[bytes]:
    return [body(number, method, action, pad) for number, method in enumerate(methods)]


def gets(methods: list[str], action: str = SERVICE, pad: int = 0) -> list[bytes]:
    return [encode_command(b"GET", asked) for asked in bodies(methods, action, pad)]


def cut(data: bytes, *at: int) -> list[bytes]:
    return [data[a:b] for a, b in itertools.pairwise([0, *at, len(data)])]


def kill_everywhere(
    make: Callable[[Steps], World],
    chunks: Callable[[], list[bytes]],
    enough: Callable[[bytes], bool],
    check: Check,
) -> int:
    """Follow the same script once for each step at which it may be cut short; how many.

    What was not sent before the kill is sent after the adoption.
    """
    step = 0
    while True:
        _Round.number += 1
        world, left = make(Steps(step)), chunks()
        count = len(left)

        async def talk(world: World, left: list[bytes] = left) -> None:
            while left:
                world.send(left.pop(0))
                await world.settle()

        async def go_on(world: World, left: list[bytes] = left) -> None:
            await talk(world, left)
            await world.replied(enough)

        was_killed = world.run(talk)
        if world.is_noted:
            world.adopt(go_on)
            check(world)
        else:
            assert len(left) >= count - 1, "a connection is on the board before it is read"
        world.close()
        if not was_killed:
            return step
        step += 1


# Commands


def replies(data: bytes) -> list[bytes]:
    return [reply.raw[reply.begin : reply.end] for reply in ReplyParser().feed(data)]


def check_commands(
    service: EchoService, wanted: list[bytes], world: World, most_failed: int = 1, crashes: int = 1
) -> None:
    """Each request has one answer, in its place; nothing that must not be was executed twice."""
    assert not world.adopted.lost, world.adopted.lost
    assert not world.is_reset
    found = replies(bytes(world.replies))
    assert len(found) == len(wanted)
    failed = 0
    for asked, answer in zip(wanted, found, strict=True):
        is_idempotent = b"getThing" in asked
        if answer == asked:
            assert 1 <= service.executed[asked] <= (1 + crashes if is_idempotent else 1)
        else:
            failed += 1
            told = json.loads(answer)
            assert told["ec"] == 303
            assert "the agent died" in told["em"]
            assert not is_idempotent
            assert service.executed[asked] <= 1
    assert failed <= most_failed
    service.executed.clear()


def kill_commands(
    service: EchoService,
    wanted: Callable[[], list[bytes]],
    chunks: Callable[[], list[bytes]],
    original: Address | None = None,
    most_failed: int = 1,
    **settings: float,
) -> int:
    return kill_everywhere(
        lambda steps: World(steps, service.address, original, **settings),
        chunks,
        lambda data: len(replies(data)) >= len(wanted()),
        lambda world: check_commands(service, wanted(), world, most_failed),
    )


def test_one_command_after_the_other(service: EchoService) -> None:
    methods = ["getThing", "put", "getThing"]
    assert kill_commands(service, lambda: bodies(methods), lambda: gets(methods)) > 20


def test_a_second_kill(service: EchoService) -> None:
    """What was adopted can be adopted, wherever the first and the second were killed."""
    methods = ["getThing", "put"]
    kills = 0
    for first, second in itertools.product(range(12, 32), range(32)):
        _Round.number += 1
        world, left = World(Steps(first), service.address), gets(methods)

        async def talk(world: World, left: list[bytes] = left) -> None:
            while left:
                world.send(left.pop(0))
                await world.settle(0.003)
            await world.settle(0.003)

        async def go_on(world: World, left: list[bytes] = left) -> None:
            await talk(world, left)
            await world.replied(lambda r: len(replies(r)) >= len(methods))

        if world.run(talk) and world.is_noted:
            if world.adopt(go_on, Steps(second, has_begun=False)):
                kills += 1
                world.adopt(go_on)
            check_commands(service, bodies(methods), world, crashes=2)
        world.close()
    assert kills > 50


def test_half_a_command_before_and_the_rest_after(service: EchoService) -> None:
    methods = ["put", "getThing", "put"]

    def chunks() -> list[bytes]:
        return cut(b"".join(gets(methods)), 2, 30, 100, 150, 200, 201)

    assert kill_commands(service, lambda: bodies(methods), chunks) > 20


@pytest.mark.parametrize("depth", [1, 8])
def test_pipelined_commands(service: EchoService, depth: int) -> None:
    """With depth, all of them are under way at once."""
    methods = ["put", "getThing", "put", "getThing", "put"]
    steps = kill_commands(
        service,
        lambda: bodies(methods),
        lambda: [b"".join(gets(methods))],
        pipeline_depth=depth,
        most_failed=1 if depth == 1 else 3,
    )
    assert steps > 15


def test_commands_for_the_dialled_instance(service: EchoService) -> None:
    """Of a service that is not in the registry: over a connection of this client's own."""
    methods = ["put", "getThing", "put"]
    other = "/service/unlisted"
    steps = kill_commands(
        service, lambda: bodies(methods, other), lambda: gets(methods, other), service.address
    )
    assert steps > 20


def test_a_command_that_is_larger_than_a_slot(service: EchoService) -> None:
    methods = ["put", "getThing", "put"]

    def chunks() -> list[bytes]:
        return cut(b"".join(gets(methods, pad=80_000)), 40_000, 100_000, 180_000)

    assert kill_commands(service, lambda: bodies(methods, pad=80_000), chunks) > 20


def test_replies_that_the_client_does_not_read(service: EchoService) -> None:
    """What the kernel has not taken is not lost with the process that kept it."""
    methods = ["getThing"] * 4
    lost: list[str] = []

    def check(world: World) -> None:
        if world.adopted.lost:
            # Between the moment in which the kernel took a part and the note of the rest.
            assert world.adopted.lost == ["a reply had left in part"]
            lost.append(world.adopted.lost[0])
        else:
            check_commands(service, bodies(methods, pad=150_000), world)
        service.executed.clear()

    steps = kill_everywhere(
        lambda steps: World(steps, service.address, buffer=65536),
        lambda: gets(methods, pad=150_000),
        lambda data: len(replies(data)) >= len(methods),
        check,
    )
    assert steps > 20
    assert len(lost) < steps / 8, f"{len(lost)} of {steps}"


# Packets


def packet(form: Form, number: int, method: str, pad: int = 0) -> bytes:
    make = encode if form is Form.PACKET19 else encode9
    return make(Cmd.REQ, 7 * number, body(number, method, pad=pad))


def packets(form: Form, data: bytes) -> list[Packet]:
    return PacketParser(form=form).feed(data) if data else []


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize(
    ("pad", "at"), [(0, ()), (0, (5,)), (0, (100, 130, 250)), (30_000, (40_000, 70_000))]
)
def test_packets(service: EchoService, form: Form, pad: int, at: tuple[int, ...]) -> None:
    """Those that may run twice are sent again."""
    methods = ["put", "getThing", "put", "getThing"]

    def chunks() -> list[bytes]:
        return cut(b"".join(packet(form, n, m, pad) for n, m in enumerate(methods)), *at)

    def found(data: bytes) -> list[Packet]:
        return packets(form, data)

    def check(world: World) -> None:
        assert not world.adopted.lost, world.adopted.lost
        answers = found(bytes(world.replies))
        assert sorted(a.opaque for a in answers) == [7 * n for n in range(len(methods))]
        for answer in answers:
            number = answer.opaque // 7
            asked = body(number, methods[number], pad=pad)
            is_idempotent = b"getThing" in asked
            assert service.executed[asked] <= (2 if is_idempotent else 1)
            if answer.body != asked:
                assert not is_idempotent
                told = json.loads(answer.body)
                assert told["ec"] == 303
                assert "the agent died" in told["em"]
        service.executed.clear()

    steps = kill_everywhere(
        lambda steps: World(steps, service.address),
        chunks,
        lambda data: len(found(data)) >= len(methods),
        check,
    )
    assert steps > 20


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize(
    ("pad", "others", "is_answered"),
    [
        (0, [0], True),
        (0, [1000] * 30, True),  # the journal closes up
        (30_000, [1000] * 40, True),  # it cannot: a memory file takes its place
        (200_000, [1000], True),
        (0, [150_000] * 10, False),  # more than is kept
    ],
)
def test_packet_that_waits_while_others_pass(
    service: EchoService, form: Form, pad: int, others: list[int], *, is_answered: bool
) -> None:
    """It is kept until it has its reply, whatever else is read, up to a bound."""
    sent = [packet(form, 0, "getHeld", pad)]
    sent += [packet(form, n + 1, "put", size) for n, size in enumerate(others)]
    world = World(Steps(), service.address)

    def has(count: int) -> Callable[[bytes], bool]:
        return lambda data: len(packets(form, data)) >= count

    async def talk(world: World) -> None:
        world.send(sent[0])
        for number, data in enumerate(sent[1:]):
            world.send(data)
            await world.replied(has(number + 1))

    async def go_on(world: World) -> None:
        await world.replied(has(len(sent)))

    world.run(talk)
    world.adopt(go_on)
    assert not world.adopted.lost, world.adopted.lost
    last = packets(form, bytes(world.replies))[-1]
    asked = body(0, "getHeld", pad=pad)
    assert last.opaque == 0
    assert (last.body == asked) == is_answered, last.body[:200]
    assert service.executed[asked] == (2 if is_answered else 1)
    world.close()


# Bytes


def test_bytes_that_are_passed_on_as_they_are(service: EchoService, plain: EchoService) -> None:
    sent = [b"\0\xff no protocol of ours", bytes(range(256)) * 300, b"end"]
    whole = b"".join(sent)

    def check(world: World) -> None:
        assert not world.adopted.lost, world.adopted.lost
        assert bytes(world.replies) == whole

    steps = kill_everywhere(
        lambda steps: World(steps, service.address, plain.address),
        lambda: list(sent),
        lambda data: len(data) >= len(whole),
        check,
    )
    assert steps > 15


def test_a_server_that_is_not_moa(service: EchoService, plain: EchoService) -> None:
    """What it said, or was about to, is not ours to make up: exact, or reset."""
    sent = [encode_command(b"PING"), encode_command(b"PING"), encode_command(b"SET", b"a", b"b")]
    lost: list[str] = []

    def check(world: World) -> None:
        lost.extend(world.adopted.lost)
        if not world.adopted.lost:
            assert replies(bytes(world.replies)) == [b"PING", b"PING", b"b"]

    steps = kill_everywhere(
        lambda steps: World(steps, plain.address, service.address),
        lambda: list(sent),
        lambda data: len(replies(data)) >= len(sent),
        check,
    )
    assert steps > 20
    assert set(lost) <= {"what its server was saying is gone"}
    assert len(lost) < steps / 2


# Who has just come


@pytest.mark.parametrize("way", [0, 1])
def test_a_connection_that_was_in_no_session_yet(way: int) -> None:
    client, near = tcp_pair()
    descriptor = os.memfd_create("board", os.MFD_CLOEXEC)
    board = Board.create(descriptor, 1024)
    board.arriving(near.fileno(), way)
    reader = keeper._Watch(os.getpid(), descriptor, near)
    assert reader._connections() == {near.fileno()}
    client.send(b"first words")
    adopted = adopt_board(
        board, {near.fileno(): os.dup(near.fileno())}, lambda _moved: True, LIMITS
    )
    assert adopted.arrived is not None
    assert adopted.arrived[0] == way
    with adopted.arrived[1] as sock, client, near:
        assert sock.recv(100) == b"first words"
    board.arrived()
    assert adopt_board(board, {}, lambda _moved: True, LIMITS).arrived is None
    board.close()
    os.close(descriptor)
