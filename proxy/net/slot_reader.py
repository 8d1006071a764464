"""Reads one slot of a dead agent's board, beside what the kernel says of its sockets."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from proxy.core.packets import head_size, size_of
from proxy.net.board import (
    BASE,
    BEGUN,
    FACTS,
    FACTS_AT,
    FACTS_SIZE,
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
    OWED_HEAD,
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
from proxy.net.facts import moved_of
from proxy.net.moved import Kind, Moved
from proxy.net.spill import read_spill
from proxy.net.totals import totals
from proxy.wire.resp import Limits, ProtocolError, RequestParser
from proxy.wire.turbo import Form


class Lost(Exception):
    """The connection cannot go on; the text says what is missing."""


IsMoa = Callable[[Moved], bool]


class SlotReader:
    """One connection; `adopt` says how it can go on."""

    def __init__(
        self,
        board: Board,
        number: int,
        entry: Entry,
        descriptors: Mapping[int, int],
        client: socket.socket,
        far: socket.socket | None,
    ) -> None:
        self._board = board
        self._number = number
        self._entry = entry
        self._descriptors = descriptors
        self._sock, self._far_sock = client, far
        self._at = board.slot_at(number)
        self._words = board.words[self._at // 8 : self._at // 8 + FACTS_AT // 8]
        self.client = totals(client, dialled=False)
        self._far = totals(far, dialled=True) if far is not None else None

    def adopt(self, is_moa: IsMoa, limits: Limits) -> Moved:
        """The connection as it can go on. Raises Lost."""
        if self._words[OVERFLOW]:
            raise Lost("it was more than its slot takes")
        moved = self._described()
        if self._entry.kind is Kind.RAW:
            return self._spliced(moved)
        done, to_client = self._written()
        if self._entry.kind in (Kind.TURBO, Kind.TURBO9):
            return self._packets(moved, to_client, is_moa)
        return self._commands(moved, done, to_client, is_moa, limits)

    def _described(self) -> Moved:
        area, size = self._words[FACTS] >> 32, self._words[FACTS] & M32
        begin = self._at + FACTS_AT + area * FACTS_SIZE
        moved = moved_of(self._board.map[begin : begin + size], self._sock)
        if moved is None:
            raise Lost("nothing says whose connection it was")
        return replace(moved, kind=self._entry.kind)

    # What was written to the client

    def _written(self) -> tuple[int, bytes]:
        """How far the input was answered, and what is still to be sent of the answers."""
        count, out = self.client.written, self._out
        reach = max(count, out[1]) if out is not None and out[0] <= count else count
        found = []
        for word in (self._words[WRITTEN], self._words[WRITTEN + 1]):
            written = _near(word >> 32, count)
            if written <= reach:
                found.append((written, word & M32))
        if not found:
            raise Lost("less was written to its client than it had noted")
        written, done = max(found)
        if written < count:
            raise Lost("a reply had left in part")
        read = self._words[READ]
        return read - ((read - done) & M32), self._read_out(count, written)

    @property
    def _out(self) -> tuple[int, int] | None:
        if self._entry.out not in self._descriptors:
            return None
        return self._words[OUT_START], self._words[OUT_END]

    def _read_out(self, begin: int, end: int) -> bytes:
        if begin == end:
            return b""
        descriptor = self._descriptors[self._entry.out]
        return _exactly(read_spill(descriptor, self._words[OUT_START], begin, end), end - begin)

    # What was read of the client

    def _input(self, begin: int) -> bytes:
        """Everything that was read from there on."""
        read = self._words[READ]
        if not begin <= read <= self.client.read:
            raise Lost("its counts do not fit")
        return self._journal(begin, read) + self._inlet(self._number, self.client.read - read)

    def _journal(self, begin: int, end: int) -> bytes:
        if begin == end:
            return b""
        if self._entry.spill in self._descriptors:
            start = self._words[SPILL_START]
            if begin < start:
                raise Lost("its journal begins too late")
            descriptor = self._descriptors[self._entry.spill]
            return _exactly(read_spill(descriptor, start, begin, end), end - begin)
        base = self._words[BASE]
        if begin < base or end - base > JOURNAL_SIZE:
            raise Lost("its journal is somewhere else")
        at = self._at + JOURNAL_AT - base
        return self._board.map[at + begin : at + end]

    def _inlet(self, descriptor: int, size: int) -> bytes:
        """The last bytes that were read of a socket: perhaps nobody had come to note them."""
        if not size:
            return b""
        key = self._board.words[W_INLET]
        count = self.client if descriptor == self._number else self._far
        came = (count.read - key) & M40 if count is not None else 0
        if key >> 40 != descriptor or not size <= came <= len(self._board.inlet):
            raise Lost("bytes that it had read are gone")
        return self._board.inlet[came - size : came].tobytes()

    # Commands

    def _commands(
        self, moved: Moved, done: int, to_client: bytes, is_moa: IsMoa, limits: Limits
    ) -> Moved:
        unread = self._input(done)
        begun = _count(unread[: max(0, self._words[BEGUN] - done)], limits)
        server = self._lane(moved, is_busy=begun > 0, is_moa=is_moa)
        requests = int(self._words[BEGUN] > 0)
        return replace(
            moved,
            unread=unread,
            to_client=to_client,
            begun=begun,
            server=server,
            requests=requests,
        )

    def _lane(self, moved: Moved, *, is_busy: bool, is_moa: IsMoa) -> socket.socket | None:
        """The connection to the dialled server, if it can be gone on with."""
        if self._far is None or self._far_sock is None:
            return None
        if not is_busy and self._far.read == self._words[FAR_READ] and not self._far.is_over:
            return self._far_sock
        if is_moa(moved):
            return None
        raise Lost("what its server was saying is gone")

    # Packets

    def _packets(self, moved: Moved, to_client: bytes, is_moa: IsMoa) -> Moved:
        begun = self._words[BEGUN]
        owed = self._owed(begun, self.client.written + len(to_client))
        whole = [self._whole(begin, head) for begin, head in owed]
        if owed and self._far is None and not is_moa(moved):
            raise Lost("what its server was asked is gone")
        server = self._lane(moved, is_busy=bool(owed), is_moa=is_moa)
        return replace(
            moved,
            unread=b"".join(whole) + self._input(begun),
            to_client=to_client,
            begun=sum(map(bool, whole)),
            lost_packets=tuple(
                head for (_, head), packet in zip(owed, whole, strict=True) if not packet
            ),
            server=server,
            requests=int(begun > 0),
        )

    def _owed(self, begun: int, written: int) -> list[tuple[int, bytes]]:
        """Where the packets that have begun, and whose replies are not among those bytes, are in
        the input; and their heads."""
        found = []
        for number in range(min(self._words[OWED], OWED_MOST)):
            at = self._at + OWED_AT + number * OWED_SIZE
            begin, settled = self._board.words[at // 8], self._board.words[at // 8 + 1]
            if begin < begun and not 0 < settled <= written + 1:
                found.append((begin, self._board.map[at + 16 : at + 16 + OWED_HEAD]))
        return sorted(found)

    def _whole(self, begin: int, head: bytes) -> bytes:
        """A packet that has begun, if the journal still has it."""
        form = Form.PACKET19 if self._entry.kind is Kind.TURBO else Form.PACKET9
        is_spilled, end = self._entry.spill >= 0, begin + size_of(head, form)
        start = self._words[SPILL_START] if is_spilled else self._words[BASE]
        is_there = not is_spilled or self._entry.spill in self._descriptors
        if not (is_there and start <= begin < end <= self._words[BEGUN]):
            return b""
        with suppress(Lost):
            packet = self._journal(begin, end)
            if packet.startswith(head[: head_size(form)]):
                return packet
        return b""

    # Bytes that pass both ways

    def _spliced(self, moved: Moved) -> Moved:
        if self._far is None:
            raise Lost("its other end is gone")
        if self._far.is_over:
            raise Lost("its other end has ended")
        to_server = self._passed(
            self._entry.far_out,
            FAR_START,
            self._far.written,
            (self.client.read + self._words[TO_FAR]) & M64,
            self._from_client,
        )
        far = self._entry.far
        to_client = self._passed(
            self._entry.out,
            OUT_START,
            self.client.written,
            (self._far.read + self._words[TO_CLIENT]) & M64,
            lambda size: self._inlet(far, size),
        )
        return replace(moved, server=self._far_sock, to_server=to_server, to_client=to_client)

    def _passed(
        self, spill: int, start_at: int, written: int, due: int, rest: Callable[[int], bytes]
    ) -> bytes:
        """What one end still has to get: `due` bytes in all."""
        kept, reach = b"", written
        if spill in self._descriptors:
            start, end = self._words[start_at], self._words[start_at + 1]
            if start <= written < end:
                kept = read_spill(self._descriptors[spill], start, written, end)
                kept, reach = _exactly(kept, end - written), end
        if reach > due:
            raise Lost("more was passed on than was read")
        return kept + rest(due - reach)

    def _from_client(self, size: int) -> bytes:
        """The last bytes of the client, which may have come before the two were joined."""
        read = self._words[READ]
        if self.client.read == read and size:
            return self._journal(read - size, read)
        return self._inlet(self._number, size)


def _near(low: int, count: int) -> int:
    """The number with these 32 low bits that is next to `count`."""
    difference = (low - count) & M32
    return count + (difference - (1 << 32) if difference >= 1 << 31 else difference)


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise Lost("a memory file is shorter than it should be")
    return data


def _count(begun: bytes, limits: Limits) -> int:
    """How many commands these bytes are."""
    with suppress(ProtocolError):
        return len(RequestParser(limits).feed(begun))
    return 0
