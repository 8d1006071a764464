"""The whole state of a connection as plain values, for a hand-over to another process."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.wire.mesh.calls import CallsState
from proxy.wire.mesh.guard import GuardState
from proxy.wire.mesh.inbox import InboxState
from proxy.wire.mesh.outbox import OutboxState
from proxy.wire.mesh.owed import OwedState
from proxy.wire.mesh.pulse import PulseState
from proxy.wire.mesh.settings import Hello, Settings


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """A connection at one moment; numbers, text, bytes, tuples and sets all the way down.

    `side` is CallsState for a client and OwedState for a server. `unread` is half a frame,
    `unsent` what `data_to_send` gave out and no socket took. Times are seconds on the
    monotonic clock, which processes of one boot share.
    """

    settings: Settings
    peer: Hello | None
    side: CallsState | OwedState
    unread: bytes
    unsent: bytes
    outbox: OutboxState
    inbox: InboxState
    guard: GuardState
    pulse: PulseState
    said_goaway: bool
    got_goaway: bool
    failed: bool
