"""What a registry shows: its table, its status, and who hears of changes."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from proxy.core.model import ServiceTable
from proxy.registry.base import RegistryState, RegistryStatus, TableCallback

_log = structlog.get_logger("registry")

EXAMPLES = 5
"""How many broken members a status names; the rest are only counted."""


class Board:
    """The showing half of a registry; used in the event loop only. `wall_clock` is unix seconds."""

    def __init__(self, kind: str, wall_clock: Callable[[], float] = time.time) -> None:
        self._kind = kind
        self._wall_clock = wall_clock
        self._callbacks: dict[int, TableCallback] = {}
        self._next_id = 0
        self._state = RegistryState.STARTING
        self._since_unix_s = wall_clock()
        self._detail = "nothing read yet"
        self._broken = 0
        self._examples: tuple[str, ...] = ()
        self.table = ServiceTable()

    @property
    def state(self) -> RegistryState:
        """The state that was set last."""
        return self._state

    def subscribe(self, callback: TableCallback) -> Callable[[], None]:
        """See `Registry.subscribe`."""
        self._next_id += 1
        number = self._next_id
        self._callbacks[number] = callback

        def unsubscribe() -> None:
            self._callbacks.pop(number, None)

        return unsubscribe

    def publish(self, table: ServiceTable) -> None:
        """Show a new table; a subscriber that raises is logged and does not stop the others."""
        self.table = table
        for callback in list(self._callbacks.values()):
            try:
                callback(table)
            except Exception:
                _log.exception("subscriber of the service table failed", registry=self._kind)

    def set_state(self, state: RegistryState, detail: str = "") -> None:
        """Change the state; a change is logged once, however often it is repeated.

        So is each reason why nothing could be read yet.
        """
        waits = state is RegistryState.STARTING and detail != self._detail
        if state != self._state:
            self._since_unix_s = self._wall_clock()
        if state != self._state or waits:
            log = _log.info if state is RegistryState.SYNCED else _log.warning
            log("registry state", registry=self._kind, state=state.value, detail=detail)
        self._state, self._detail = state, detail

    def set_broken(self, texts: list[str]) -> None:
        """Say which members of the source cannot be used."""
        if len(texts) > self._broken:
            _log.warning("broken members", registry=self._kind, count=len(texts), first=texts[0])
        self._broken, self._examples = len(texts), tuple(texts[:EXAMPLES])

    def status(self) -> RegistryStatus:
        """See `Registry.status`."""
        return RegistryStatus(
            kind=self._kind,
            state=self._state,
            since_unix_s=self._since_unix_s,
            services=len(self.table.uris),
            instances=sum(len(i) for i in self.table.instances_by_key.values()),
            detail=self._detail,
            broken_members=self._broken,
            broken_examples=self._examples,
        )
