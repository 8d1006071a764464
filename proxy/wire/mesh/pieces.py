"""A body as the pieces it came in: nothing is joined before somebody needs it whole."""

from __future__ import annotations

from collections.abc import Iterable

Body = bytes | tuple[bytes, ...]
"""A body to be sent: whole, or pieces to be sent one behind the other."""

_COALESCE_BELOW = 4096
"""Smaller pieces are put together: a peer that sends single bytes must not cost an object
for each of them."""


def length_of(body: Body) -> int:
    """Bytes of the body."""
    return len(body) if isinstance(body, bytes) else sum(map(len, body))


def joined(body: Body) -> bytes:
    """The body in one piece; no copy when it is one already."""
    if isinstance(body, bytes):
        return body
    return body[0] if len(body) == 1 else b"".join(body)


class Pieces:
    """Collects pieces without joining large ones."""

    __slots__ = ("_parts", "size")

    def __init__(self, parts: Iterable[bytes] = ()) -> None:
        self._parts: list[bytes | bytearray] = []
        self.size = 0
        for part in parts:
            self.add(part)

    def add(self, piece: bytes) -> None:
        """Put `piece` behind the others; a large one is kept by reference."""
        if not piece:
            return
        self.size += len(piece)
        if len(piece) >= _COALESCE_BELOW:
            self._parts.append(piece)
        elif self._parts and isinstance(self._parts[-1], bytearray):
            self._parts[-1] += piece
        else:
            self._parts.append(bytearray(piece))

    def held(self) -> tuple[bytes, ...]:
        """The pieces so far."""
        return tuple(bytes(part) for part in self._parts)
