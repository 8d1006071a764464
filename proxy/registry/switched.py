"""A registry without the services that are switched off: to whoever reads it they are unknown,
and what is unknown goes to the address that was dialled."""

from __future__ import annotations

from collections.abc import Callable

from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.registry.base import Registry, RegistryStatus, TableCallback


class SwitchedRegistry:
    """Implements `Registry` over another one; used in the event loop only."""

    def __init__(self, inner: Registry) -> None:
        self._inner = inner
        self._off: frozenset[str] = frozenset()
        self._everything = False
        self._callbacks: list[TableCallback] = []
        self.table = inner.table
        self.hidden: frozenset[Address] = frozenset()
        """Addresses of services that are off, and of no service that is on."""
        inner.subscribe(self._on_table)

    def set_off(self, uris: frozenset[str], *, everything: bool) -> None:
        """Hide exactly these services, or all; tells whoever subscribed when that is new."""
        if (uris, everything) != (self._off, self._everything):
            self._off, self._everything = uris, everything
            self._on_table(self._inner.table)

    def _on_table(self, table: ServiceTable) -> None:
        if self._everything:
            self.table = ServiceTable()
        elif self._off & table.uris:
            left = {k: i for k, i in table.instances_by_key.items() if k.uri not in self._off}
            self.table = ServiceTable.build(left)
        else:
            self.table = table
        self.hidden = table.addresses - self.table.addresses
        for callback in list(self._callbacks):
            callback(self.table)

    @property
    def all_uris(self) -> frozenset[str]:
        """What the registry knows, hidden or not."""
        return self._inner.table.uris

    def subscribe(self, callback: TableCallback) -> Callable[[], None]:
        """See `Registry.subscribe`."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def status(self) -> RegistryStatus:
        """See `Registry.status`: of what the registry holds, hidden or not."""
        return self._inner.status()

    async def run(self) -> None:
        """See `Registry.run`."""
        await self._inner.run()

    async def register(self, key: ServiceKey, instance: Instance) -> None:
        """See `Registry.register`."""
        await self._inner.register(key, instance)

    async def deregister(self, key: ServiceKey, address: Address) -> None:
        """See `Registry.deregister`."""
        await self._inner.deregister(key, address)

    async def heartbeat(self, key: ServiceKey, instance: Instance) -> None:
        """See `Registry.heartbeat`."""
        await self._inner.heartbeat(key, instance)

    async def mark(self, key: ServiceKey, address: Address, mark: str, who: str, why: str) -> bool:
        """See `Registry.mark`."""
        return await self._inner.mark(key, address, mark, who, why)

    async def unmark(self, key: ServiceKey, address: Address, mark: str) -> bool:
        """See `Registry.unmark`."""
        return await self._inner.unmark(key, address, mark)
