"""Switches of services, applications and nodes in the registry's Redis.

`moa:switches` is a Hash: `<what> <name>` by `<on|off> <unix ms> <who> <why>`. It is read every
second: it is small, and a switch that is off is meant to be off now.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from redis.exceptions import RedisError

from proxy.core.switches import MAX_STATEMENTS, Statement, Statements, Target, parse_all
from proxy.registry.base import RegistryError
from proxy.registry.clients import close
from proxy.registry.endpoint import RedisEndpoint

SWITCHES = "moa:switches"
INTERVAL_S = 1.0

_ANSWER_S = 2.0

log = structlog.get_logger("switches")


async def follow(endpoint: RedisEndpoint, on_read: Callable[[Statements], None]) -> None:
    """Hand over all statements whenever they were read, until cancelled."""
    client = endpoint.client(_ANSWER_S, connections=1)
    trouble = ""
    try:
        while True:
            seen = ""
            try:
                async with asyncio.timeout(_ANSWER_S):
                    raw = await client.hgetall(SWITCHES)
                statements, broken = parse_all(_texts(raw)[:MAX_STATEMENTS])
                on_read(statements)
                seen = "; ".join(broken[:3])
            except (RedisError, RegistryError, OSError, TimeoutError) as error:
                seen = str(error) or "no answer in time"
            if seen and seen != trouble:
                log.warning("switches not read", redis=str(endpoint), error=seen)
            trouble = seen
            await asyncio.sleep(INTERVAL_S)
    finally:
        await close(client)


async def read(endpoint: RedisEndpoint) -> Statements:
    """All statements now; raises RegistryError, RedisError, OSError and TimeoutError."""
    client = endpoint.client(_ANSWER_S, connections=1)
    try:
        async with asyncio.timeout(2 * _ANSWER_S):
            return parse_all(_texts(await client.hgetall(SWITCHES)))[0]
    finally:
        await close(client)


async def write(endpoint: RedisEndpoint, target: Target, *, on: bool, who: str, why: str) -> None:
    """Say it; raises as `read` does. Nothing is ever deleted: `on` is said as well."""
    client = endpoint.client(_ANSWER_S, connections=1)
    said = Statement(on, int(time.time() * 1000), who, " ".join(why.split()))
    try:
        async with asyncio.timeout(2 * _ANSWER_S):
            await client.hset(SWITCHES, str(target), str(said))
    finally:
        await close(client)


def _texts(raw: Mapping[Any, Any]) -> list[tuple[str, str]]:
    return [(k.decode(errors="replace"), v.decode(errors="replace")) for k, v in raw.items()]
