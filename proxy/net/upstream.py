"""What a pool and an exchange need of one connection to an instance, whatever it speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from proxy.core.mesh_calls import MeshCall
from proxy.core.message import Answer, Unsent
from proxy.core.model import Address
from proxy.net.stream import Stream

Outgoing = bytes | MeshCall
"""A request as its wire takes it."""
AnswerCallback = Callable[[Answer | Unsent], None]
LossCallback = Callable[[str], None]


class Upstream(Protocol):
    """Owns a connected socket.

    `on_idle_loss` tells that it ended while nothing was on it, `on_room` that it was congested
    and takes requests again. `used_s` and `heard_s` are its pool's.
    """

    address: Address
    used_s: float
    heard_s: float
    on_idle_loss: Callable[[], None]
    on_room: Callable[[], None]

    @property
    def stream(self) -> Stream:
        """Its socket and what is read and written there."""

    @property
    def last_number(self) -> int:
        """The highest number that a request had; 0 where requests have none."""

    def number_after(self, last_number: int) -> None:
        """Give requests numbers above this one: late replies to those before find nobody."""

    @property
    def capacity(self) -> int:
        """Requests that may be on it at once."""

    @property
    def is_congested(self) -> bool:
        """Whether its server takes what was sent more slowly than it comes."""

    @property
    def is_lost(self) -> bool: ...

    def looks_alive(self) -> bool:
        """Whether the kernel knows of no end: the loop may not have told us of a FIN yet."""

    def send(self, request: Outgoing, on_reply: AnswerCallback, on_loss: LossCallback) -> int:
        """Write one request; its number, for `forget`.

        Exactly one of the two is called, unless `forget` or `close` comes first. `on_reply`
        may send the next request at once; it gets Unsent when the request was certainly not
        processed, `on_loss` when it may have been.
        """

    def forget(self, number: int) -> bool:
        """Nobody waits for this reply any more; whether the connection can still be used."""

    def ping(self, on_answer: Callable[[bool], None], on_loss: LossCallback) -> None:
        """Ask whether the server is there; `on_answer` gets whether it said yes."""

    def close(self) -> None:
        """End the connection; nothing is called back."""
