"""Bytes of a connection in a memory file of its own, for when its slot on the board is too small.

The descriptor is named on the board, so that whoever finds the board finds it.
"""

from __future__ import annotations

import os

_REMAKE_BYTES = 8 * 1024 * 1024
"""A file whose beginning nobody needs any more is made anew from here on."""


class Spill:
    """The bytes `start` to `end` of one direction; owns a memory file."""

    __slots__ = ("descriptor", "end", "start")

    def __init__(self, start: int, data: bytes | memoryview) -> None:
        self.descriptor = os.memfd_create("moa-spill", os.MFD_CLOEXEC)
        self.start = self.end = start
        self.append(data)

    def append(self, data: bytes | memoryview) -> None:
        view, at = memoryview(data), self.end - self.start
        while view:
            done = os.pwrite(self.descriptor, view, at)
            view, at = view[done:], at + done
        self.end = self.start + at

    def rest(self, needed: int) -> Spill | None:
        """A new one with what is needed, from there to the end, where this one got too large."""
        if self.end - self.start < _REMAKE_BYTES or needed - self.start < _REMAKE_BYTES // 2:
            return None
        return Spill(needed, read_spill(self.descriptor, self.start, needed, self.end))

    def close(self) -> None:
        os.close(self.descriptor)


def read_spill(descriptor: int, start: int, begin: int, end: int) -> bytes:
    """The bytes `begin` to `end` of a file that begins with the byte `start`."""
    parts, at = [], begin
    while at < end:
        part = os.pread(descriptor, end - at, at - start)
        if not part:
            break
        parts.append(part)
        at += len(part)
    return b"".join(parts)
