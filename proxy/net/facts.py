"""Who a session's client is and what it has said of itself, as bytes for the board.

The same message as in a hand-over, without what changes with every request.
"""

from __future__ import annotations

import socket
from typing import Protocol

from google.protobuf.message import DecodeError

from proxy.net.handover.codec import from_message, to_message
from proxy.net.moved import Kind, Moved, RedisState
from proxy.net.served import Served
from proxy.wire.handover import HandoverError
from proxy.wire.handover import handover_pb2 as pb


class Described(Served, Protocol):
    """A session that knows whether its client has spoken MOA."""

    spoke_moa: bool


def facts_of(session: Described, number: int, redis: RedisState) -> bytes:
    peer = session.peer
    return to_message(
        Moved(
            number=number,
            kind=Kind.DETECTING,
            direction=peer.direction,
            client=session.client.sock,
            original=peer.original,
            caller=peer.caller,
            spoke_moa=session.spoke_moa,
            service=session.service,
            started_s=session.started_s,
            redis=redis,
        )
    ).SerializeToString()


def moved_of(facts: bytes, client: socket.socket) -> Moved | None:
    """A connection of which only this is known; None when the bytes are no facts."""
    try:
        return from_message(pb.Connection.FromString(facts), [client])
    except (DecodeError, HandoverError):
        return None
