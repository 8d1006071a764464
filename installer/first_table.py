"""Waits for a registry's first word, within reason: to serve without services is no help."""

from __future__ import annotations

import asyncio

import structlog

from proxy.registry.base import Registry, RegistryState

FIRST_TABLE_S = 3.0
"""How long a start waits for the registry's first answer; then it goes on anyway."""

log = structlog.get_logger("registry")


async def first_table(registry: Registry) -> None:
    """Return once the registry has said something, or has been silent for too long."""
    changed = asyncio.Event()
    unsubscribe = registry.subscribe(lambda _table: changed.set())
    try:
        async with asyncio.timeout(FIRST_TABLE_S):
            while registry.status().state is RegistryState.STARTING:
                changed.clear()
                try:
                    async with asyncio.timeout(0.05):
                        await changed.wait()
                except TimeoutError:
                    continue
    except TimeoutError:
        status = registry.status()
        log.warning("registry is silent", state=status.state.value, detail=status.detail)
    finally:
        unsubscribe()
