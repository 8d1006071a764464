"""The board: what the agent writes is what the keeper and the next agent read."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer import keeper
from proxy.net import board as layout
from proxy.net.board import Board, Entry
from proxy.net.moved import Kind

SLOTS = 3000
NUMBERS = st.integers(-1, (1 << 24) - 2)


@pytest.fixture
def board() -> Iterator[Board]:
    descriptor = os.memfd_create("board", os.MFD_CLOEXEC)
    made = Board.create(descriptor, SLOTS)
    yield made
    made.close()
    os.close(descriptor)


def watch(board: Board) -> keeper._Watch:
    near, far = socket.socketpair()
    near.close()
    far.close()
    return keeper._Watch(os.getpid(), board.descriptor, far)


def put(board: Board, number: int, entry: Entry) -> None:
    at = (layout.DIRECTORY_AT + number * layout.ENTRY_SIZE) // 8
    board.words[at], board.words[at + 1] = entry.words


def test_keeper_and_board_agree_on_the_layout() -> None:
    for name in (
        "MAGIC", "LAYOUT", "NAMES_AT", "NAME_SIZE", "NAMES", "DIRECTORY_AT", "ENTRY_SIZE"
    ):  # fmt: skip
        assert getattr(keeper, name) == getattr(layout, name), name
    assert layout.NAMES_AT + layout.NAMES * layout.NAME_SIZE <= layout.DIRECTORY_AT
    assert layout.FACTS_AT + 2 * layout.FACTS_SIZE <= layout.JOURNAL_AT
    assert layout.OWED_AT + layout.OWED_MOST * layout.OWED_SIZE <= layout.SLOT_SIZE
    assert layout.OVERFLOW < layout.FACTS_AT // 8


@given(st.sampled_from(layout.KINDS[1:]), NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_an_entry_is_two_words(kind: Kind, far: int, spill: int, out: int, far_out: int) -> None:
    entry = Entry(kind, far, spill, out, far_out)
    first, second = entry.words
    assert max(first, second) < 1 << 64
    assert Entry.of(first, second) == entry


def test_no_entry_and_one_of_another_version() -> None:
    assert Entry.of(0, 0) is None
    assert Entry.of(200, 5) is None


def test_the_keeper_gives_what_the_board_names(board: Board) -> None:
    put(board, 5, Entry(Kind.RESP, -1, -1, -1, -1))
    put(board, 700, Entry(Kind.RAW, 701, 702, 703, 704))
    put(board, SLOTS - 1, Entry(Kind.TURBO, -1, 9, -1, -1))
    with socket.socket() as named:
        board.name("outbound4", named.fileno())
        board.name("gone", 2999)
        reader = watch(board)
        assert reader._connections() == {5, 700, 701, 702, 703, 704, SLOTS - 1, 9}
        assert reader._named() == {"outbound4": named.fileno()}
    found = dict(board.entries())
    assert list(found) == [5, 700, SLOTS - 1]
    assert found[700] == board.entry(700) == Entry(Kind.RAW, 701, 702, 703, 704)


def test_names_come_and_go(board: Board) -> None:
    board.name("agent.lock", 3)
    board.name("door [fd77::1]:15099", 4)
    board.name("agent.lock", 7)
    assert board.named() == {"agent.lock": 7, "door [fd77::1]:15099": 4}
    board.name("agent.lock", -1)
    board.name("never", -1)
    board.name("pins", 0)
    assert board.named() == {"door [fd77::1]:15099": 4, "pins": 0}
    with pytest.raises(ValueError, match="at most 56 bytes"):
        board.name("x" * 57, 1)
    for number in range(layout.NAMES - 2):
        board.name(f"n{number}", number)
    with pytest.raises(ValueError, match="more than 48 names"):
        board.name("one too many", 1)


def test_peace_is_seen_by_the_keeper(board: Board) -> None:
    reader = watch(board)
    assert not reader._has_ended_in_peace()
    board.end()
    assert reader._has_ended_in_peace()


def test_a_file_that_is_no_board(board: Board) -> None:
    descriptor = os.memfd_create("other", os.MFD_CLOEXEC)
    try:
        assert Board.read(descriptor) is None
        os.pwrite(descriptor, bytes(4096), 0)
        assert Board.read(descriptor) is None
        other = Board.create(descriptor, 10)
        other.words[layout.W_LAYOUT] = layout.LAYOUT + 1
        assert Board.read(descriptor) is None
        reader = watch(other)
        assert reader._connections() == set()
        assert reader._named() == {}
        other.close()
    finally:
        os.close(descriptor)


def test_an_empty_board_takes_no_memory(board: Board) -> None:
    """Its size is that of every slot; pages are made when they are written."""
    found = os.fstat(board.descriptor)
    assert found.st_size > SLOTS * layout.SLOT_SIZE
    assert list(board.entries()) == []
    assert watch(board)._connections() == set()
    assert os.fstat(board.descriptor).st_blocks * 512 <= 8192
