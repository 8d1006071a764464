"""Says in the registry which instances have an agent, this one: their `mesh` mark.

Other agents then offer it the mesh protocol (docs/PROTOCOL.md §3). A mark that is wrong, of an
agent that was killed for example, costs them one HELLO without an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import structlog

from proxy.core.model import MESH, Address, ServiceKey, ServiceTable
from proxy.registry.base import Registry, RegistryError

REPEAT_S = 10.0
"""How often what is ours is looked over: addresses of the node change without the registry."""
WITHDRAW_S = 2.0

Served = tuple[ServiceKey, Address]

log = structlog.get_logger("announce")


class MeshAnnouncer:
    """Keeps the marks of what this node serves; `is_served` says what that is, `who` we are."""

    def __init__(self, registry: Registry, is_served: Callable[[Address], bool], who: str) -> None:
        """`who` is one word."""
        self._registry = registry
        self._is_served = is_served
        self._who = who
        self._marked: set[Served] = set()
        self._told_of = ""
        self._is_leaving = False

    async def run(self) -> None:
        """Follow the table until cancelled; an error is logged once and tried again."""
        changed = asyncio.Event()
        unsubscribe = self._registry.subscribe(lambda _table: changed.set())
        try:
            while not self._is_leaving:
                changed.clear()
                await self._update()
                try:
                    async with asyncio.timeout(REPEAT_S):
                        await changed.wait()
                except TimeoutError:
                    continue
        finally:
            unsubscribe()

    async def _update(self) -> None:
        table = self._registry.table
        served = dict(self._served(table))
        try:
            for (key, address), is_marked in served.items():
                if self._is_leaving:
                    return
                if not is_marked:
                    await self._registry.mark(key, address, MESH, self._who, "its agent serves it")
                self._marked.add((key, address))
            for key, address in self._marked - served.keys():
                await self._registry.unmark(key, address, MESH)
                self._marked.discard((key, address))
            self._told_of = ""
        except RegistryError as error:
            self._tell(str(error))

    def _served(self, table: ServiceTable) -> Iterator[tuple[Served, bool]]:
        for key, instances in table.instances_by_key.items():
            for instance in instances:
                if self._is_served(instance.address):
                    yield (key, instance.address), MESH in instance.marks

    def _tell(self, problem: str) -> None:
        if problem != self._told_of:
            self._told_of = problem
            log.warning("instances not marked as served by an agent", error=problem)

    async def withdraw(self) -> None:
        """Take every mark back, within a bounded time, and set none any more."""
        self._is_leaving = True
        try:
            async with asyncio.timeout(WITHDRAW_S):
                while self._marked:
                    await self._registry.unmark(*self._marked.pop(), MESH)
        except (RegistryError, TimeoutError) as error:
            log.warning("marks are left", error=str(error) or f"not within {WITHDRAW_S:g} s")
