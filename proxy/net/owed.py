"""The table of one connection's packets that are owed a reply, on the board.

What is in it may have been executed. A packet that may run twice is kept in the journal until
it has its reply, so that it can be sent again after a crash; of another its head is enough, to
tell its caller.
"""

from __future__ import annotations

from proxy.net.board import OWED, OWED_AT, OWED_HEAD, OWED_MOST, OWED_SIZE, Board


class Owed:
    """`slot` is where the connection's slot begins, in bytes."""

    __slots__ = ("_count", "_count_at", "_entries", "_free", "_kept", "_map", "_table_at", "_words")

    def __init__(self, board: Board, slot: int) -> None:
        self._map, self._words = board.map, board.words
        self._table_at = slot + OWED_AT
        self._count_at = slot // 8 + OWED
        self._entries: dict[int, int] = {}
        """By the packets' numbers."""
        self._kept: dict[int, int] = {}
        """Where those begin that are wanted whole, the oldest first."""
        self._free: list[int] = []
        self._count = 0

    def start(self) -> None:
        self._words[self._count_at] = 0

    def add(self, opaque: int, raw: bytes, begin: int, *, is_kept: bool) -> bool:
        """A packet that begins there; False when nobody could tell what becomes of it."""
        if opaque in self._entries:
            return False
        number = self._free.pop() if self._free else self._count
        if number == OWED_MOST:
            return False
        self._count = max(self._count, number + 1)
        self._entries[opaque] = number
        if is_kept:
            self._kept[opaque] = begin
        at = self._table_at + number * OWED_SIZE
        self._map[at + 16 : at + 16 + OWED_HEAD] = raw[:OWED_HEAD].ljust(OWED_HEAD)
        self._words[at // 8] = begin
        self._words[at // 8 + 1] = 0
        self._words[self._count_at] = self._count
        return True

    def settle(self, opaque: int, written: int) -> None:
        """A reply is about to be written; `written` is the client's count with it."""
        number = self._entries.pop(opaque, -1)
        if number >= 0:
            self._kept.pop(opaque, None)
            self._words[(self._table_at + number * OWED_SIZE) // 8 + 1] = written + 1
            self._free.append(number)

    def oldest(self, since: int, otherwise: int) -> int:
        """Where the first begins, from there on, that is wanted whole."""
        for begin in self._kept.values():
            if begin >= since:
                return begin
        return otherwise
