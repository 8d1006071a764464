"""How a noted stream reads, and where it keeps what the kernel does not take."""

from __future__ import annotations

import socket
from typing import Protocol

from proxy.net.board import M40, W_INLET, Board
from proxy.net.spill import Spill


class Owner(Protocol):
    """Whose part it is: the notes of a client's connection."""

    words: memoryview
    far_out: Kept

    def show(self, **changes: int) -> None:
        """Change what the board's directory says."""

    def far_ended(self, descriptor: int) -> None:
        """The connection to the dialled address is about to be closed, or another agent's."""


class Inlet:
    """Reads a socket by way of the board, so that what was read is never in the process alone."""

    __slots__ = ("_inlet", "_key", "_map", "words")

    def __init__(self, board: Board, descriptor: int) -> None:
        self._inlet = board.inlet
        self._map = board.map
        self.words = board.words
        self._key = descriptor << 40

    def receive(self, sock: socket.socket, before: int) -> bytes:
        """As recv; `before` is how much was read of this socket so far."""
        inlet = self._inlet
        self.words[W_INLET] = self._key | before & M40
        size = sock.recv_into(inlet)
        return inlet[:size].tobytes()


class Kept:
    """What the kernel did not take of what was written one way."""

    __slots__ = ("_end_at", "_name", "_notes", "_spill", "_start_at")

    def __init__(self, notes: Owner, name: str, start_at: int, end_at: int) -> None:
        self._notes = notes
        self._name = name
        self._start_at = start_at
        self._end_at = end_at
        self._spill: Spill | None = None

    def keep(self, data: bytes | memoryview, written: int, waiting: int) -> None:
        spill, words = self._spill, self._notes.words
        if spill is None or spill.end != written - len(data):
            self._use(Spill(written - len(data), data))
            return
        spill.append(data)
        words[self._end_at] = spill.end
        if (smaller := spill.rest(written - waiting)) is not None:
            self._use(smaller)

    def _use(self, spill: Spill) -> None:
        self.drop()
        self._spill, words = spill, self._notes.words
        words[self._start_at], words[self._end_at] = spill.start, spill.end
        self._notes.show(**{self._name: spill.descriptor})

    def drop(self) -> None:
        if self._spill is not None:
            self._notes.show(**{self._name: -1})
            self.close()

    def close(self) -> None:
        if self._spill is not None:
            self._spill.close()
            self._spill = None


class FarNotes(Inlet):
    """Of the connection to the dialled address, on the board of its client's notes."""

    __slots__ = ("_descriptor", "_near")

    def __init__(self, near: Owner, board: Board, descriptor: int) -> None:
        super().__init__(board, descriptor)
        self._descriptor = descriptor
        self._near = near

    def writing(self, written: int) -> None:
        """Nothing is noted: what was read of the one side and written to the other says it."""

    def keep(self, data: bytes | memoryview, written: int, waiting: int) -> None:
        self._near.far_out.keep(data, written, waiting)

    def flushed(self) -> None:
        self._near.far_out.drop()

    def closed(self) -> None:
        self._near.far_ended(self._descriptor)
