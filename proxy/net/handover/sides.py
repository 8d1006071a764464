"""What giver and taker need of the agent that they work for."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from proxy.core.message import Wire
from proxy.core.model import Address
from proxy.net.moved import Moved
from proxy.net.served import Served


@dataclass(frozen=True, slots=True)
class IdleUpstream:
    """A connection that no request is on: `drop` it when it is taken, `keep` it when not."""

    address: Address
    wire: Wire
    is_local: bool
    sock: socket.socket
    last_number: int
    drop: Callable[[], None]
    keep: Callable[[], None]


class GivingSide(Protocol):
    """An agent that serves."""

    @property
    def sessions(self) -> Mapping[int, Served]:
        """Every connection, by its number."""

    def shared(self) -> dict[str, int]:
        """Descriptors of the whole agent by name: listeners, locks; they stay its own."""

    @property
    def next_number(self) -> int:
        """From here on the taker numbers its sessions."""

    def step_back(self) -> None:
        """The other agent serves now: accept nothing, tell the kernel nothing."""

    def step_forward(self) -> None:
        """Serve again, with all that is still here."""

    def state(self, *, is_last: bool, with_table: bool) -> dict[str, bytes]:
        """What is known (not the last time), and what was counted since this was called.

        `with_table`: and what the registry says, which takes its time.
        """

    def stay(self) -> None:
        """The other agent was told of `shared`, and does not serve: all is as it was."""

    def idle_upstreams(self, *, is_last: bool) -> list[IdleUpstream]:
        """Connections to instances that may go along: half of them, and the last time all."""


class TakingSide(Protocol):
    """An agent that is about to serve."""

    @property
    def sessions(self) -> Mapping[int, Served]:
        """Every connection, by its number."""

    @property
    def needs_table(self) -> bool:
        """Whether it knows nothing of the registry yet."""

    def take_shared(self, shared: Mapping[str, int], next_number: int) -> None:
        """Make ready to serve with these descriptors, which are ours from now on.

        Raises OSError or ValueError, and then nothing is ours.
        """

    def serve(self) -> None:
        """Accept, and have the kernel turn traffic here."""

    def take_state(self, parts: Mapping[str, bytes]) -> None:
        """Know and count what the other agent did."""

    def adopt(self, moved: Moved) -> None:
        """Make a session that waits for `begin`. Raises ValueError when it cannot be gone on
        with, and then its sockets are still the caller's."""

    def begin(self, number: int) -> None:
        """It is ours alone."""

    def drop(self, number: int) -> None:
        """It stays the other agent's."""

    def take_upstream(
        self,
        address: Address,
        wire: Wire,
        sock: socket.socket,
        last_number: int,
        *,
        is_local: bool,
    ) -> None:
        """A connection to an instance that no request is on; ours, to use or to close."""
