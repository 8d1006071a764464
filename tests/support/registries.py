"""Redis registries that run within a test, and what is waited for of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from proxy.core.model import Address, Instance, ServiceKey
from proxy.registry.base import RegistryState
from proxy.registry.endpoint import RedisEndpoint
from proxy.registry.redis import RedisRegistry, RedisTimes
from tests.support.waiting import eventually


@asynccontextmanager
async def running(
    url: str, times: RedisTimes, last_known: Path | None = None
) -> AsyncIterator[RedisRegistry]:
    """A registry that follows its Redis until the end of the block."""
    registry = RedisRegistry(RedisEndpoint.parse(url), last_known, times)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(registry.run())
        try:
            yield registry
        finally:
            task.cancel()
            await registry.aclose()


async def synced(registry: RedisRegistry) -> float:
    return await in_state(registry, RegistryState.SYNCED)


async def in_state(registry: RedisRegistry, state: RegistryState) -> float:
    return await eventually(
        lambda: registry.status().state is state, f"{state}; seen {registry.status()}"
    )


def routes(registry: RedisRegistry, key: ServiceKey) -> set[Address]:
    return {instance.address for instance in registry.table.instances(key)}


async def routed(registry: RedisRegistry, key: ServiceKey, *instances: Instance) -> float:
    wanted = {instance.address for instance in instances}
    return await eventually(lambda: routes(registry, key) == wanted, f"routes {wanted}")
