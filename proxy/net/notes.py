"""What one connection writes on the board while it is served.

Input is in the journal until it is served and answered; how far that has come is noted before
the reply is handed to the kernel, with the count that the kernel will have then. So whoever
finds the board after a crash compares counts, and knows what was done and what was not.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from proxy.net.board import (
    BASE,
    BEGUN,
    DIRECTORY_AT,
    ENTRY_SIZE,
    FACTS,
    FACTS_AT,
    FACTS_SIZE,
    FAR_END,
    FAR_READ,
    FAR_START,
    JOURNAL_AT,
    JOURNAL_SIZE,
    M32,
    M40,
    M64,
    OUT_END,
    OUT_START,
    OVERFLOW,
    OWED,
    OWED_AT,
    OWED_MOST,
    OWED_SIZE,
    READ,
    SPILL_START,
    TO_CLIENT,
    TO_FAR,
    W_INLET,
    WRITTEN,
    Board,
    Entry,
)
from proxy.net.moved import Kind
from proxy.net.spill import Spill


class Counts(NamedTuple):
    """Of a stream: bytes since its connection was made, as the kernel counts them."""

    read: int
    written: int


class _Inlet:
    """Reads a socket by way of the board, so that what was read is never in the process alone."""

    __slots__ = ("_board", "_key", "words")

    def __init__(self, board: Board, descriptor: int) -> None:
        self._board = board
        self.words = board.words
        self._key = descriptor << 40

    def _receive(self, sock: socket.socket, before: int) -> bytes:
        """As recv; `before` is how much was read of this socket so far."""
        inlet = self._board.inlet
        self.words[W_INLET] = self._key | before & M40
        return inlet[: sock.recv_into(inlet)].tobytes()


class Notes(_Inlet):
    """Of a client's connection, from `start` until its descriptor is about to be closed.

    `done` is how far the input is dealt with: the session adds to it before it writes a reply,
    or, of packets, as soon as what is owed is in the table.
    """

    __slots__ = (
        "_at",
        "_base",
        "_begun",
        "_described",
        "_entry",
        "_free",
        "_journals",
        "_out",
        "_owed",
        "_read",
        "_slot",
        "_spill",
        "_turn",
        "descriptor",
        "done",
        "far_out",
    )

    def __init__(self, board: Board, descriptor: int) -> None:
        super().__init__(board, descriptor)
        self.descriptor = descriptor
        self._slot = board.slot_at(descriptor)
        self._at = self._slot // 8
        self._entry = Entry(Kind.DETECTING, -1, -1, -1, -1)
        self._spill: Spill | None = None
        self._out = _Kept(self, "out", self._at + OUT_START, self._at + OUT_END)
        self.far_out = _Kept(self, "far_out", self._at + FAR_START, self._at + FAR_END)
        self._free: list[int] = []
        self._owed = 0
        self._journals = True
        self._described = b""
        self._turn = 0
        self._read = self._begun = self._base = self.done = 0

    def start(self, kind: Kind, facts: bytes, counts: Counts, unread: bytes = b"") -> None:
        """Begin, with `unread` as the last bytes of what was read; then the board shows it."""
        words, at = self.words, self._at
        self._read = self._begun = self._base = self.done = counts.read - len(unread)
        words[at + READ] = words[at + BEGUN] = words[at + BASE] = self._read
        words[at + OWED] = words[at + OVERFLOW] = 0
        words[at + FACTS] = 0
        self.writing(counts.written)
        self.writing(counts.written)
        self.describe(facts)
        self._entry = self._entry._replace(kind=kind)
        self._journals = kind is not Kind.RAW
        if unread and self._journals:
            self._append(unread)
        self.show(kind=kind)

    def show(self, **changes: object) -> None:
        """Change what the directory says, in two words."""
        self._entry = entry = self._entry._replace(**changes)  # type: ignore[arg-type]
        at = (DIRECTORY_AT + self.descriptor * ENTRY_SIZE) // 8
        first, second = entry.words
        words = self.words
        if words[at + 1] != second:
            words[at + 1] = second
        words[at] = first

    def become(self, kind: Kind) -> None:
        """The first bytes have told what the client speaks."""
        self.show(kind=kind)

    def describe(self, facts: bytes) -> None:
        """Replace what is known of the session; `facts` that are too long are not taken."""
        if facts == self._described or len(facts) > FACTS_SIZE:
            return
        self._described = facts
        area = 1 - (self.words[self._at + FACTS] >> 32)
        begin = self._slot + FACTS_AT + area * FACTS_SIZE
        self._board.map[begin : begin + len(facts)] = facts
        self.words[self._at + FACTS] = area << 32 | len(facts)

    # Input

    def receive(self, sock: socket.socket, before: int) -> bytes:
        """As recv, and what came is in the journal; `before` is how much was read so far."""
        data = self._receive(sock, before)
        if data and self._journals:
            self._append(data)
        return data

    def _append(self, data: bytes) -> None:
        read, begin = self._read, self._read - self._base
        if begin and self.done == read:
            # Nothing waits: from the start of the journal again.
            self._base = self.words[self._at + BASE] = read
            begin = 0
            if self._spill is not None:
                self._end_spill()
        end = begin + len(data)
        if self._spill is None and end <= JOURNAL_SIZE:
            at = self._slot + JOURNAL_AT
            self._board.map[at + begin : at + end] = data
        else:
            self._append_to_spill(data)
        self._read = self.words[self._at + READ] = read + len(data)

    def _append_to_spill(self, data: bytes) -> None:
        spill = self._spill
        if spill is None:
            at = self._slot + JOURNAL_AT - self._base
            waiting = self._board.map[at + self.done : at + self._read]
            self._use_spill(Spill(self.done, waiting + data))
            return
        spill.append(data)
        if (smaller := spill.rest(self.done)) is not None:
            self._end_spill()
            self._use_spill(smaller)

    def _use_spill(self, spill: Spill) -> None:
        self._spill = spill
        self.words[self._at + SPILL_START] = spill.start
        self.show(spill=spill.descriptor)

    def _end_spill(self) -> None:
        if self._spill is not None:
            self.show(spill=-1)
            self._spill.close()
            self._spill = None

    def begin(self, size: int) -> None:
        """So many more bytes of the input are a request that is served from now on."""
        self._begun += size
        self.words[self._at + BEGUN] = self._begun

    # Packets that are owed a reply

    def owe(self, raw: bytes, head: int) -> int:
        """A request of this input is served from now on; the number of its entry, for `settle`."""
        if self._free:
            number = self._free.pop()
        elif self._owed < OWED_MOST:
            number, self._owed = self._owed, self._owed + 1
        else:
            self.words[self._at + OVERFLOW] = 1
            number = -1
        if number >= 0:
            begin = self._slot + OWED_AT + number * OWED_SIZE
            self._board.map[begin + 16 : begin + 16 + head] = raw[:head]
            self.words[begin // 8] = self._begun
            self.words[begin // 8 + 1] = 0
            self.words[self._at + OWED] = self._owed
        # No sooner is it out of the journal.
        self.begin(len(raw))
        self.done = self._begun
        return number

    def settle(self, number: int, written: int) -> None:
        """Its reply is about to be written; `written` is the client's count with it."""
        if number >= 0:
            at = self._at + (OWED_AT + number * OWED_SIZE) // 8
            self.words[at + 1] = written + 1
            self._free.append(number)

    # Output

    def writing(self, written: int) -> None:
        """Bytes are about to be handed to the kernel, and the count is then this."""
        self._turn = turn = 1 - self._turn
        self.words[self._at + WRITTEN + turn] = (written & M32) << 32 | self.done & M32

    def keep(self, data: bytes | memoryview, written: int, waiting: int) -> None:
        """The kernel did not take these, the last of what was written; `waiting` in all."""
        self._out.keep(data, written, waiting)

    def flushed(self) -> None:
        """The kernel has taken all."""
        self._out.drop()

    # The other end

    def far(self, sock: socket.socket) -> FarNotes:
        """Note a connection to the dialled address; what its stream is to note from now on."""
        self.show(far=sock.fileno())
        return FarNotes(self, self._board, sock.fileno())

    def far_settled(self, read: int) -> None:
        """All that was read of the dialled server so far has been dealt with."""
        self.words[self._at + FAR_READ] = read

    def join(self, client: Counts, far: Counts, to_far: int, to_client: int) -> None:
        """From now on bytes pass both ways; so many were read of each and not passed on."""
        self.words[self._at + TO_FAR] = (far.written - client.read + to_far) & M64
        self.words[self._at + TO_CLIENT] = (client.written - far.read + to_client) & M64
        self.show(kind=Kind.RAW)
        self._journals = False

    def far_ended(self, descriptor: int) -> None:
        """It is about to be closed, or belongs to another agent."""
        if self._entry.far == descriptor and self.descriptor >= 0:
            self.far_out.drop()
            self.show(far=-1)

    # The end

    def closed(self) -> None:
        """The descriptor is about to be closed, or belongs to another agent."""
        if self.descriptor < 0:
            return
        at = (DIRECTORY_AT + self.descriptor * ENTRY_SIZE) // 8
        self.words[at] = self.words[at + 1] = 0
        self.descriptor = -1
        if self._spill is not None:
            self._spill.close()
            self._spill = None
        self._out.close()
        self.far_out.close()


class _Kept:
    """What the kernel did not take of what was written one way."""

    __slots__ = ("_end_at", "_name", "_notes", "_spill", "_start_at")

    def __init__(self, notes: Notes, name: str, start_at: int, end_at: int) -> None:
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


class FarNotes(_Inlet):
    """Of the connection to the dialled address, on the board of its client's `Notes`."""

    __slots__ = ("_near", "descriptor")

    def __init__(self, near: Notes, board: Board, descriptor: int) -> None:
        super().__init__(board, descriptor)
        self.descriptor = descriptor
        self._near = near

    def receive(self, sock: socket.socket, before: int) -> bytes:
        return self._receive(sock, before)

    def writing(self, written: int) -> None:
        """Nothing is noted: what was read of the one side and written to the other says it."""

    def keep(self, data: bytes | memoryview, written: int, waiting: int) -> None:
        self._near.far_out.keep(data, written, waiting)

    def flushed(self) -> None:
        self._near.far_out.drop()

    def closed(self) -> None:
        self._near.far_ended(self.descriptor)
