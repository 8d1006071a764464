"""What to do with each connection of an agent that was killed, from its board and the kernel.

The kernel's counts say what really happened. What the agent had handed over and what it had
only noted tell which requests were answered, which had begun and which had not. A connection
of which a single byte is lost is reset: nobody can go on with it.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from dataclasses import dataclass, field

from proxy.net.board import M32, W_ARRIVING, Board
from proxy.net.moved import Moved
from proxy.net.slot_reader import IsMoa, Lost, SlotReader
from proxy.net.sockets import set_reset_on_close, socket_of
from proxy.wire.resp import Limits

_SO_COOKIE = 57


@dataclass(slots=True)
class Adopted:
    """What a board gave: connections to go on with, and what became of the others."""

    connections: list[Moved] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Why each of these was reset."""
    over: int = 0
    """Their clients had gone by themselves."""
    arrived: tuple[int, socket.socket] | None = None
    """By which way it came, and one of which nothing was read yet."""


def cookie(sock: socket.socket) -> bytes:
    """The kernel's own number of a socket, whoever has a descriptor of it."""
    return sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)


def adopt_board(
    board: Board,
    descriptors: dict[int, int],
    is_moa: IsMoa,
    limits: Limits,
    ours: Collection[bytes] = (),
) -> Adopted:
    """Every connection of the board; `descriptors` are ours by the numbers that they had.

    Those of connections are taken out: they are in `connections`, or closed. `is_moa` says whether
    the dialled server of a connection is known to speak MOA, so that another connection to it
    will do as well. Those whose cookies are in `ours` are served here already.
    """
    found = Adopted(arrived=_arrived(board, descriptors))
    for number, entry in board.entries():
        if number not in descriptors:
            found.lost.append("its descriptor did not come")
            continue
        client = socket_of(descriptors.pop(number))
        far = socket_of(descriptors.pop(entry.far)) if entry.far in descriptors else None
        if ours and cookie(client) in ours:
            client.close()
            if far is not None:
                far.close()
            continue
        try:
            reader = SlotReader(board, number, entry, descriptors, client, far)
            moved = None if reader.client.is_over else reader.adopt(is_moa, limits)
        except (Lost, OSError) as error:
            found.lost.append(str(error))
            set_reset_on_close(client)
            client.close()
            if far is not None:
                set_reset_on_close(far)
                far.close()
            continue
        if moved is None:
            found.over += 1
            client.close()
        else:
            found.connections.append(moved)
        if far is not None and (moved is None or moved.server is None):
            far.close()
    return found


def _arrived(board: Board, descriptors: dict[int, int]) -> tuple[int, socket.socket] | None:
    """The one connection that may have been accepted and was in no session yet."""
    word = board.words[W_ARRIVING]
    number = (word & M32) - 1
    if number not in descriptors or board.entry(number) is not None:
        return None
    return word >> 32, socket_of(descriptors.pop(number))
