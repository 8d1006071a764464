"""The board: what an agent writes down of its connections, in memory that outlives it.

A memory file that the agent maps and that its keeper holds (docs/UPGRADE.md, docs/adr/0018).
When the agent is killed, the next one reads here, and in the kernel's own counts, how far each
connection was (`proxy/net/adoption.py`). Nothing is written in an order that matters between
two words: a note that must be whole is one aligned word of 8 bytes, in the machine's order.

    0        words: magic, layout, ended, inlet's key, descriptors that fit, who arrives
    512      names: 56 bytes of text and the word descriptor + 1, forty-eight times
    4096     directory: two words for each descriptor, see `Entry`
    inlet    64 KiB: where every read of a connection's socket lands first
    slots    64 KiB for each descriptor, of which what was never used takes no memory

A slot is 128 words, two areas of facts (a `Connection` of the hand-over protocol), the journal
of input that is not served yet, and the table of packets that are owed a reply.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import NamedTuple

from proxy.net.moved import Kind

MAGIC = int.from_bytes(b"MOABOARD", "little")
LAYOUT = 1

W_MAGIC, W_LAYOUT, W_ENDED, W_INLET, W_SLOTS, W_ARRIVING = range(6)
NAMES_AT, NAME_SIZE, NAMES = 512, 64, 48
DIRECTORY_AT, ENTRY_SIZE = 4096, 16
INLET_SIZE = 64 * 1024
SLOT_SIZE = 64 * 1024

# Words of a slot
READ, BEGUN, WRITTEN, _OTHER_WRITTEN, BASE, SPILL_START = range(6)
OUT_START, OUT_END, FAR_START, FAR_END, FAR_READ, TO_FAR, TO_CLIENT = range(6, 13)
FACTS, OWED, OVERFLOW = 13, 14, 15

FACTS_AT, FACTS_SIZE = 128, 448
"""Two areas, one behind the other; the word FACTS says which counts and how long it is."""
JOURNAL_AT, JOURNAL_SIZE = 1024, 48 * 1024
OWED_AT = JOURNAL_AT + JOURNAL_SIZE
OWED_SIZE, OWED_HEAD = 40, 24
OWED_MOST = (SLOT_SIZE - OWED_AT) // OWED_SIZE
"""An entry: where the packet begins in the input, what was written with its reply (0: none
yet), and its head."""

M32 = 0xFFFFFFFF
M40 = (1 << 40) - 1
M64 = (1 << 64) - 1
_M24 = 0xFFFFFF
KINDS = (None, Kind.DETECTING, Kind.RESP, Kind.TURBO, Kind.TURBO9, Kind.RAW)
NUMBER_OF = {kind: number for number, kind in enumerate(KINDS)}


class Entry(NamedTuple):
    """What the directory says of one descriptor; -1 where there is none.

    Words: `kind u8 · far + 1 u24 · spill + 1 u24` and `out + 1 u24 · far_out + 1 u24`.
    """

    kind: Kind
    far: int
    """The other end of a splice, or the session's connection to the dialled address."""
    spill: int
    """A memory file that takes the journal's place, while that is too small."""
    out: int
    """A memory file with what the kernel did not take of what was written to the client."""
    far_out: int

    @classmethod
    def of(cls, first: int, second: int) -> Entry | None:
        kind = KINDS[first & 0xFF] if first & 0xFF < len(KINDS) else None
        if kind is None:
            return None
        numbers = (first >> 8, first >> 32, second, second >> 24)
        return cls(kind, *((number & _M24) - 1 for number in numbers))

    @property
    def words(self) -> tuple[int, int]:
        first = NUMBER_OF[self.kind] | (self.far + 1) << 8 | (self.spill + 1) << 32
        return first, (self.out + 1) | (self.far_out + 1) << 24


def _inlet_at(slots: int) -> int:
    end = DIRECTORY_AT + slots * ENTRY_SIZE
    return (end + INLET_SIZE - 1) // INLET_SIZE * INLET_SIZE


class Board:
    """The file, mapped; `map`, `words` and `inlet` are three views of the same memory."""

    def __init__(self, descriptor: int, slots: int) -> None:
        self.descriptor = descriptor
        self.slots = slots
        self._inlet_at = _inlet_at(slots)
        size = self._inlet_at + INLET_SIZE + slots * SLOT_SIZE
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
        self.map = mmap.mmap(descriptor, size)
        self._view = memoryview(self.map)
        self.words = self._view.cast("Q")
        self.inlet = self._view[self._inlet_at : self._inlet_at + INLET_SIZE]

    @classmethod
    def create(cls, descriptor: int, slots: int) -> Board:
        """Make an empty memory file the board of this process, for descriptors below `slots`."""
        board = cls(descriptor, slots)
        board.words[W_LAYOUT], board.words[W_SLOTS] = LAYOUT, slots
        board.words[W_MAGIC] = MAGIC
        return board

    @classmethod
    def read(cls, descriptor: int) -> Board | None:
        """The board of another process; None when it has none, or one of another layout."""
        head = os.pread(descriptor, 40, 0)
        if len(head) < 40:
            return None
        magic, layout, _ended, _inlet, slots = memoryview(head).cast("Q")
        if magic != MAGIC or layout != LAYOUT:
            return None
        return cls(descriptor, slots)

    def close(self) -> None:
        """Unmap it; the file stays its owner's."""
        for view in (self.inlet, self.words, self._view):
            view.release()
        self.map.close()

    def slot_at(self, descriptor: int) -> int:
        """Where the slot of a descriptor begins, in bytes."""
        return self._inlet_at + INLET_SIZE + descriptor * SLOT_SIZE

    def fits(self, descriptor: int) -> bool:
        return 0 <= descriptor < self.slots

    # Names

    def name(self, name: str, descriptor: int) -> None:
        """Write down that this descriptor is more than a connection; -1: it no longer is."""
        encoded = name.encode().ljust(NAME_SIZE - 8, b"\0")
        if len(encoded) != NAME_SIZE - 8:
            raise ValueError(f"a name on the board has at most 56 bytes, got {name!r}")
        free = -1
        for at in range(NAMES_AT, NAMES_AT + NAMES * NAME_SIZE, NAME_SIZE):
            held, number = self.map[at : at + NAME_SIZE - 8], self.words[(at + NAME_SIZE - 8) // 8]
            if held == encoded:
                self.words[(at + NAME_SIZE - 8) // 8] = descriptor + 1
                return
            if not number and free < 0:
                free = at
        if descriptor >= 0:
            if free < 0:
                raise ValueError(f"more than {NAMES} names on the board")
            self.map[free : free + NAME_SIZE - 8] = encoded
            self.words[(free + NAME_SIZE - 8) // 8] = descriptor + 1

    def named(self) -> dict[str, int]:
        """Every named descriptor."""
        found = {}
        for at in range(NAMES_AT, NAMES_AT + NAMES * NAME_SIZE, NAME_SIZE):
            number = self.words[(at + NAME_SIZE - 8) // 8]
            if number:
                found[self.map[at : at + NAME_SIZE - 8].rstrip(b"\0").decode()] = number - 1
        return found

    def end(self) -> None:
        """The agent's last act: nothing is left that anybody would want."""
        self.words[W_ENDED] = 1

    def arriving(self, descriptor: int, way: int) -> None:
        """Accepted, and in no session yet: descriptor + 1, and by which way it came."""
        self.words[W_ARRIVING] = descriptor + 1 | way << 32

    def arrived(self) -> None:
        """It is in a session, or gone."""
        self.words[W_ARRIVING] = 0

    # Directory

    def entry(self, descriptor: int) -> Entry | None:
        at = (DIRECTORY_AT + descriptor * ENTRY_SIZE) // 8
        return Entry.of(self.words[at], self.words[at + 1])

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """Every connection, by its client's descriptor; pages that nobody wrote are not made."""
        step = 4096
        end = DIRECTORY_AT + self.slots * ENTRY_SIZE
        for at in range(DIRECTORY_AT, end, step):
            page = os.pread(self.descriptor, min(step, end - at), at)
            if page.count(0) == len(page):
                continue
            words = memoryview(page).cast("Q")
            for number in range(len(page) // ENTRY_SIZE):
                found = Entry.of(words[2 * number], words[2 * number + 1])
                if found is not None:
                    yield (at - DIRECTORY_AT) // ENTRY_SIZE + number, found
