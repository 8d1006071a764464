"""What one connection writes on the board while it is served.

Input is in the journal until it is served and answered; how far that has come is noted before
the reply is handed to the kernel, with the count that the kernel will have then. So whoever
finds the board after a crash compares counts, and knows what was done and what was not.
"""

from __future__ import annotations

import socket

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
from proxy.net.note_parts import FarNotes, Inlet, Kept
from proxy.net.owed import Owed
from proxy.net.spill import Spill
from proxy.net.stream import Stream
from proxy.net.totals import totals

KEEP_MOST = 1024 * 1024
"""Of packets that have begun no more is kept than this, of one connection."""
CLOSE_UP_AT = 4096
"""A journal of packets is not moved for less."""


class Notes(Inlet):
    """Of a client's connection, from `start` until its descriptor is about to be closed.

    `done` is how far the input is dealt with: the session adds to it before it writes a reply,
    or, of packets, as soon as what is owed is in the table.
    """

    __slots__ = (
        "_at",
        "_base",
        "_begun",
        "_board",
        "_described",
        "_entry",
        "_far",
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
        self._board = board
        self.descriptor = descriptor
        self._slot = board.slot_at(descriptor)
        self._at = self._slot // 8
        self._entry = Entry(Kind.DETECTING, -1, -1, -1, -1)
        self._far: Stream | None = None
        """The connection to the dialled address that the board knows of, while it is open."""
        self._spill: Spill | None = None
        self._out = Kept(self, "out", self._at + OUT_START, self._at + OUT_END)
        self.far_out = Kept(self, "far_out", self._at + FAR_START, self._at + FAR_END)
        self._owed = Owed(board, self._slot)
        self._journals = True
        self._described = b""
        self._turn = 0
        self._read = self._begun = self._base = self.done = 0

    def start(self, kind: Kind, facts: bytes, client: Stream, unread: bytes = b"") -> None:
        """Begin, with `unread` as the last bytes of what was read; then the board shows it."""
        client.notes = self
        words, at = self.words, self._at
        # What another agent says it has read may be more than came here.
        self._read = self._begun = self._base = self.done = max(0, client.bytes_in - len(unread))
        words[at + READ] = words[at + BEGUN] = words[at + BASE] = self._read
        words[at + OVERFLOW] = words[at + FACTS] = 0
        self._owed.start()
        self.writing(client.bytes_out)
        self.writing(client.bytes_out)
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
        self._map[begin : begin + len(facts)] = facts
        self.words[self._at + FACTS] = area << 32 | len(facts)

    # Input

    def receive(self, sock: socket.socket, before: int) -> bytes:
        """As recv, and what came is in the journal; `before` is how much was read so far."""
        inlet = self._inlet
        self.words[W_INLET] = self._key | before & M40
        size = sock.recv_into(inlet)
        data = inlet[:size].tobytes()
        if data and self._journals:
            self._append(data)
        return data

    def _append(self, data: bytes) -> None:
        read, needed = self._read, self._needed
        if needed == read != self._base:
            # Nothing waits: from the start of the journal again.
            self._base = self.words[self._at + BASE] = read
            if self._spill is not None:
                self._end_spill()
        elif needed < self.done and self._spill is None:
            self._close_up(needed)
        begin = read - self._base
        end = begin + len(data)
        if self._spill is None and end <= JOURNAL_SIZE:
            at = self._slot + JOURNAL_AT
            self._map[at + begin : at + end] = data
        else:
            self._append_to_spill(data, needed)
        self._read = self.words[self._at + READ] = read + len(data)

    @property
    def _needed(self) -> int:
        """Where the input begins that somebody may still ask for."""
        start = self._spill.start if self._spill is not None else self._base
        needed = self._owed.oldest(start, self.done)
        return needed if self._read - needed <= KEEP_MOST else self.done

    def _close_up(self, needed: int) -> None:
        """Begin the journal with what is needed, once that does not lie upon its new place: a
        reader finds it at the old place until the one word is written, then at the new one."""
        size = self._read - needed
        if CLOSE_UP_AT <= needed - self._base >= size:
            at = self._slot + JOURNAL_AT
            old = at + needed - self._base
            self._map[at : at + size] = self._map[old : old + size]
            self._base = self.words[self._at + BASE] = needed

    def _append_to_spill(self, data: bytes, needed: int) -> None:
        spill = self._spill
        if spill is None:
            at = self._slot + JOURNAL_AT - self._base
            waiting = self._map[at + needed : at + self._read]
            self._use_spill(Spill(needed, waiting + data))
            return
        spill.append(data)
        if (smaller := spill.rest(needed)) is not None:
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

    def lose_track(self) -> None:
        """What is in the journal can no longer be told: nobody can go on with this connection."""
        self.words[self._at + OVERFLOW] = 1

    # Packets that are owed a reply

    def owe(self, opaque: int, raw: bytes, *, is_kept: bool) -> None:
        """This packet, the next of the input, is a request that is served from now on."""
        if not self._owed.add(opaque, raw, self._begun, is_kept=is_kept):
            self.lose_track()
        # No sooner is it out of the journal.
        self.pass_over(len(raw))

    def pass_over(self, size: int) -> None:
        """So much more of the input is dealt with."""
        self.begin(size)
        self.done = self._begun

    def settle(self, opaque: int, written: int) -> None:
        """A reply is about to be written; `written` is the client's count with it."""
        self._owed.settle(opaque, written)

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

    def far_is_idle(self, far: Stream | None) -> None:
        """All that was read of the dialled server so far has been dealt with."""
        if far is None or far.is_closed:
            return
        if far is self._far:
            self.words[self._at + FAR_READ] = far.bytes_in
            return
        descriptor = self._watch(far)
        self.words[self._at + FAR_READ] = far.bytes_in
        if self._entry.far != descriptor:
            self.show(far=descriptor)
        self._far = far

    def _watch(self, far: Stream) -> int:
        """A connection to the dialled address is this session's: it notes here, too."""
        descriptor = far.sock.fileno()
        if far.notes is None:
            now = totals(far.sock, dialled=True)
            far.count_from(now.read, now.written)
            far.notes = FarNotes(self, self._board, descriptor)
        return descriptor

    def join(self, client: Stream, far: Stream, to_far: int, to_client: int) -> None:
        """From now on bytes pass both ways; so many were read of each and not passed on."""
        descriptor = self._watch(far)
        self.words[self._at + TO_FAR] = (far.bytes_out - client.bytes_in + to_far) & M64
        self.words[self._at + TO_CLIENT] = (client.bytes_out - far.bytes_in + to_client) & M64
        self.show(kind=Kind.RAW, far=descriptor)
        self._journals = False

    def far_ended(self, descriptor: int) -> None:
        """It is about to be closed, or belongs to another agent."""
        if self._entry.far == descriptor and self.descriptor >= 0:
            self._far = None
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
