"""Changes the registry in Redis: each change is one script, bounded in time and repeatable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ReadOnlyError, RedisError

from proxy.core.model import Address, Instance, ServiceKey
from proxy.registry import keys, scripts
from proxy.registry.base import RegistryError
from proxy.registry.clients import FAULTS, close
from proxy.registry.endpoint import Kind, RedisEndpoint
from proxy.registry.marks import BadMark, check_author, check_mark
from proxy.registry.member import BadMember, format_member

CONNECTIONS = 8


class RedisWriter:
    """The changing half of `Registry`; every method raises RegistryError. One event loop.

    `answer_s` is what one answer of Redis may take.
    """

    def __init__(self, endpoint: RedisEndpoint, answer_s: float) -> None:
        self._endpoint = endpoint
        self._answer_s = answer_s
        self._client = endpoint.client(answer_s, CONNECTIONS)
        # See `clients.cluster`: while slots move, it does one thing at a time.
        self._turns = asyncio.Semaphore(1 if endpoint.kind is Kind.CLUSTER else CONNECTIONS)
        self._change = self._client.register_script(scripts.CHANGE)
        self._mark = self._client.register_script(scripts.MARK)

    async def aclose(self) -> None:
        """Close the connections."""
        await close(self._client)

    async def register(self, key: ServiceKey, instance: Instance) -> None:
        """See `Registry.register`."""
        try:
            member = format_member(instance)
        except BadMember as error:
            raise RegistryError(f"register for {key}: {error}") from None
        with self._told(f"register {instance.address} for {key}"):
            keys.check_name(key)
            async with asyncio.timeout(3 * self._answer_s), self._turns:
                # Another slot than the service's keys, so a step of its own. It comes first
                # and every heartbeat repeats it: a set that has members is always listed.
                await self._at_master(lambda: self._client.sadd(keys.SERVICES, str(key)))
                await self._run(self._change, key, instance.address, member)

    async def deregister(self, key: ServiceKey, address: Address) -> None:
        """See `Registry.deregister`."""
        with self._told(f"deregister {address} for {key}"):
            keys.check_name(key)
            async with asyncio.timeout(2 * self._answer_s), self._turns:
                await self._run(self._change, key, address, "")

    async def mark(self, key: ServiceKey, address: Address, mark: str, who: str, why: str) -> bool:
        """See `Registry.mark`."""
        what = f"mark {address} of {key} {mark}"
        with self._told(what):
            check_author(who, why)
            changed = await self._change_mark(key, address, mark, who, why)
        if changed < 0:
            raise RegistryError(f"{what}: no such instance is registered (moactl service show)")
        return bool(changed)

    async def unmark(self, key: ServiceKey, address: Address, mark: str) -> bool:
        """See `Registry.unmark`."""
        with self._told(f"unmark {address} of {key} {mark}"):
            return bool(await self._change_mark(key, address, mark, "", ""))

    async def _change_mark(
        self, key: ServiceKey, address: Address, mark: str, who: str, why: str
    ) -> int:
        keys.check_name(key)
        check_mark(mark)
        async with asyncio.timeout(2 * self._answer_s), self._turns:
            _, changed = await self._run(self._mark, key, address, mark, who, why)
        return int(changed)

    async def _run(
        self, script: Callable[..., Coroutine[Any, Any, Any]], key: ServiceKey, *args: object
    ) -> Any:
        texts = [str(key), *(str(arg) for arg in args)]
        return await self._at_master(lambda: script(keys=list(keys.script_keys(key)), args=texts))

    async def _at_master(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """Once more, over new connections, when the server has become a replica meanwhile.

        Nothing else is repeated: a change whose answer was lost may have been made.
        """
        try:
            return await command()
        except RedisError as error:
            # To redis-py a former master of sentinels is a connection that ended.
            if not isinstance(error, ReadOnlyError) and not isinstance(
                error.__context__, ReadOnlyError
            ):
                raise
        if isinstance(self._client, Redis):
            await self._client.connection_pool.disconnect(inuse_connections=False)
        return await command()

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except (keys.BadServiceName, BadMark) as error:
            raise RegistryError(f"{what}: {error}") from None
        except FAULTS as error:
            words = str(error) or "no answer in time"
            raise RegistryError(
                f"{what}: {self._endpoint}: {words}; it may be repeated safely"
            ) from error
