"""What every registry promises to the rest of the agent, wherever it reads from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from proxy.core.model import Address, Instance, ServiceKey, ServiceTable

TableCallback = Callable[[ServiceTable], None]


class RegistryError(Exception):
    """The registry could not be read or changed; the text says which, why, and what next."""


class ReadOnlyRegistry(RegistryError):
    """This kind of registry cannot be changed through the agent."""


class RegistryState(StrEnum):
    """How far the table can be trusted."""

    STARTING = "STARTING"
    """Nothing has been read yet: the table is empty."""
    SYNCED = "SYNCED"
    """The table is what the registry says."""
    STALE = "STALE"
    """The registry does not answer: the table is the last known one."""
    DEGRADED = "DEGRADED"
    """The registry answers, but part of the table is kept from before; `detail` says why."""


@dataclass(frozen=True, slots=True)
class RegistryStatus:
    """What `moactl registry status` shows; `since_unix_s` is when `state` began."""

    kind: str
    state: RegistryState
    since_unix_s: float
    services: int
    instances: int
    detail: str
    broken_members: int
    broken_examples: tuple[str, ...]


class Registry(Protocol):
    """A service table that follows its source, and the way to change the source."""

    @property
    def table(self) -> ServiceTable:
        """The newest table; never blocks, never goes back to empty by itself."""

    def subscribe(self, callback: TableCallback) -> Callable[[], None]:
        """Call `callback` in the event loop with each new table; returns the unsubscription.

        It is not called for the table that is there already, and must not block.
        """

    def status(self) -> RegistryStatus:
        """How fresh the table is and what is wrong with its source; never blocks."""

    async def run(self) -> None:
        """Follow the source until cancelled; errors of the source end up in `status`."""

    async def register(self, key: ServiceKey, instance: Instance) -> None:
        """Enter an instance in place of any other with its address; raises RegistryError."""

    async def deregister(self, key: ServiceKey, address: Address) -> None:
        """Take an instance out; no error when it is not there. Raises RegistryError."""

    async def heartbeat(self, key: ServiceKey, instance: Instance) -> None:
        """Say that an instance lives; enters it again when the registry has lost it.

        Raises RegistryError; the caller repeats it every 5 to 60 s.
        """

    async def mark(self, key: ServiceKey, address: Address, mark: str, who: str, why: str) -> bool:
        """Say something of an instance (`Instance.marks`); whether it was not said before.

        `who` is a word that names the author, `why` is for people. Repeating it changes nothing
        but these two. Raises RegistryError, also when there is no such instance.
        """

    async def unmark(self, key: ServiceKey, address: Address, mark: str) -> bool:
        """Take a mark back, whoever set it; whether it was there. Raises RegistryError."""
