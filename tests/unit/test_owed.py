"""Packets that may run twice are on the board, whole, from the first byte served to the reply."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.net.board import Board
from proxy.net.moved import Kind, Moved
from proxy.net.notes import KEEP_MOST, Notes
from proxy.net.served import Direction
from proxy.net.slot_reader import SlotReader
from proxy.net.stream import Stream
from proxy.wire.turbo import Cmd, encode
from tests.unit.net_support import tcp_pair


class WatchedWords:
    """The words of a board; somebody looks at it before and after each store."""

    def __init__(self, words: memoryview, look: Callable[[], None]) -> None:
        self._words, self._look = words, look

    def __getitem__(self, at: Any) -> Any:
        return self._words[at]

    def __setitem__(self, at: int, value: int) -> None:
        self._look()
        self._words[at] = value
        self._look()

    def release(self) -> None:
        self._words.release()


class Connection:
    """Its packets are read whole and are owed a reply until they are settled."""

    def __init__(self) -> None:
        self._far, self._near = tcp_pair()
        self._file = os.memfd_create("board", os.MFD_CLOEXEC)
        self._board = Board.create(self._file, 64 + self._near.fileno())
        self.owed: dict[int, bytes] = {}
        """What has to be found at any moment."""
        self._read = self._number = self.closed_up = self.spilled = 0
        self._notes = Notes(self._board, self._near.fileno())
        stream: Any = SimpleNamespace(notes=None, bytes_in=0, bytes_out=0)
        client: Stream = stream
        self._notes.start(Kind.TURBO, b"", client)
        words: Any = WatchedWords(self._board.words, self._look)
        self._notes.words = self._notes._owed._words = words

    def found(self) -> Moved:
        entry = self._board.entry(self._near.fileno())
        assert entry is not None
        near, descriptors = self._near, {n: n for n in (entry.spill,) if n >= 0}
        reader = SlotReader(self._board, near.fileno(), entry, descriptors, near, None)
        moved = Moved(0, Kind.TURBO, Direction.OUTBOUND, self._near)
        return reader._packets(moved, b"", lambda _: True)

    def _look(self) -> None:
        entry = self._board.entry(self._near.fileno())
        assert entry is not None
        if entry.spill < 0 and self._notes._spill is not None:
            return  # between two memory files: what began there is told, and not sent again
        found = self.found()
        for packet in self.owed.values():
            assert packet in found.unread

    def send(self, size: int) -> None:
        """A packet comes, and begins."""
        self._number += 1
        packet = encode(Cmd.REQ, self._number, os.urandom(size))
        for at in range(0, len(packet), 60_000):
            part = packet[at : at + 60_000]
            self._far.sendall(part)
            end, base = self._read + len(part), self._notes._base
            while self._read < end:
                self._near.setblocking(True)
                self._read += len(self._notes.receive(self._near, self._read))
            self.closed_up += self._notes._base != base and bool(self.owed)
            self.spilled += self._notes._spill is not None
        self._notes.owe(self._number, packet, is_kept=True)
        self.owed[self._number] = packet

    def settle(self, which: int) -> None:
        """One of those that are owed has its reply."""
        if self.owed:
            number = list(self.owed)[which % len(self.owed)]
            del self.owed[number]
            self._notes.settle(number, 0)

    def close(self) -> None:
        for sock in (self._far, self._near):
            sock.close()
        self._notes.words = self._notes._owed._words = self._board.words
        self._notes.closed()
        self._board.close()
        os.close(self._file)


@pytest.fixture
def connection() -> Any:
    made = Connection()
    yield made
    made.close()


SIZES = st.one_of(st.integers(0, 2000), st.integers(0, 60_000))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(SIZES.map(lambda n: ("send", n)), st.integers(0, 9).map(
    lambda n: ("settle", n))), max_size=60))  # fmt: skip
def test_every_packet_that_is_owed_is_found_at_any_moment(steps: list[tuple[str, int]]) -> None:
    connection = Connection()
    try:
        for name, number in steps:
            if name == "settle" or sum(map(len, connection.owed.values())) > KEEP_MOST - 100_000:
                connection.settle(number)
            else:
                connection.send(number)
            found = connection.found()
            for packet in connection.owed.values():
                assert packet in found.unread
    finally:
        connection.close()


def test_the_journal_closes_up(connection: Connection) -> None:
    """One or two packets are always owed, for ever: no memory file, and no more room is taken."""
    connection.send(3000)
    for _ in range(100):
        connection.send(3000)
        connection.settle(0)
    assert connection.closed_up > 10
    assert connection.spilled == 0
    assert connection.found().begun == 1


def test_what_is_owed_beside_too_much_else_is_told_alone(connection: Connection) -> None:
    connection.send(100)
    first = connection.owed.pop(1)
    for _ in range(2 * KEEP_MOST // 50_000):
        connection.send(50_000)
        connection.settle(0)
    found = connection.found()
    assert (found.begun, len(found.lost_packets)) == (0, 1)
    assert first.startswith(found.lost_packets[0][:19])
    connection.send(100)
    assert connection.found().begun == 1
