"""One session with the registry's Redis: commands, the subscription, and what ails it.

Whatever the kind of registry, messages come over one connection to one server: the master
itself, or any node of a cluster, because each of them hears what is published on the others.
"""

from __future__ import annotations

import random
from contextlib import AsyncExitStack

from redis.asyncio.client import PubSub, Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from proxy.registry import keys
from proxy.registry.base import RegistryError
from proxy.registry.clients import Directory, RedisClient, close, server
from proxy.registry.endpoint import Kind, RedisEndpoint

WRITE_PROBE = "#!lua\nreturn 1"
"""Changes nothing. Redis 7 refuses it, as a script that might write, when it refuses writes;
older ones refuse its first line, which says nothing."""

_REFUSALS = ("NOREPLICAS", "MISCONF", "READONLY", "OOM")
_CONNECTIONS = 2


class Link:
    """Owns the connections of one session; `open` first, `aclose` also when that failed.

    Its methods may wait for ever: the caller limits them. They raise RegistryError and redis-py's
    errors.
    """

    def __init__(self, endpoint: RedisEndpoint, connect_timeout_s: float) -> None:
        self._endpoint = endpoint
        self._access = endpoint.access(connect_timeout_s)
        self.commands: RedisClient = endpoint.client(connect_timeout_s, _CONNECTIONS)
        self._listener: Redis | None = None
        self._pubsub: PubSub | None = None

    @property
    def pubsub(self) -> PubSub:
        """The subscription to `keys.CHANGED`, once it is open."""
        assert self._pubsub is not None
        return self._pubsub

    async def open(self, answer_s: float, rand: random.Random) -> None:
        """Connect and subscribe; a node of a cluster is drawn, so a bad one is not for ever."""
        commands = self.commands
        if isinstance(commands, RedisCluster):
            await commands.initialize()
            node = rand.choice(commands.get_nodes())
            self._listener = commands = server((node.host, int(node.port)), self._access, 1)
        self._pubsub = commands.pubsub()
        await self._pubsub.subscribe(keys.CHANGED)
        first = await self._pubsub.get_message(timeout=answer_s)
        if first is None or first["type"] != "subscribe":
            raise RegistryError(f"SUBSCRIBE {keys.CHANGED}: answered by {first}")

    async def complaint(self) -> str:
        """Why the registry is worse off than it answers, or "".

        Raises RegistryError when another server has become the master.
        """
        found = ""
        if self._endpoint.kind is Kind.SENTINEL:
            found = await self._sentinels_complaint()
        return found or await complaint(self.commands)

    async def _sentinels_complaint(self) -> str:
        directory = Directory(self._endpoint.nodes, self._endpoint.master, self._access)
        try:
            named = await directory.get_master_address()
        except RedisError as error:
            return f"nobody can tell whether this is the master: {error}"
        connection = self.pubsub.connection
        followed = (getattr(connection, "host", ""), getattr(connection, "port", 0))
        if named != followed:
            raise RegistryError(f"{named[0]}:{named[1]} is the master now, {followed} was followed")
        return ""

    async def aclose(self) -> None:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(close, self.commands)
            if self._listener is not None:
                stack.push_async_callback(close, self._listener)
            if self._pubsub is not None:
                stack.push_async_callback(self._pubsub.aclose)


async def complaint(client: RedisClient) -> str:
    """Why the registry refuses changes, or ""; who may not run scripts hears nothing."""
    if not isinstance(client, RedisCluster):
        return _refusal("Redis", await _probe(client, {}))
    for node in client.get_primaries():
        if found := _refusal(node.name, await _probe(client, {"target_nodes": node})):
            return found
    return ""


async def _probe(client: RedisClient, options: dict[str, object]) -> str:
    try:
        await client.execute_command("EVAL", WRITE_PROBE, 0, **options)
    except (ReadOnlyError, OutOfMemoryError) as error:
        return str(error)
    except ResponseError as error:
        return str(error) if str(error).startswith(_REFUSALS) else ""
    return ""


def _refusal(who: str, why: str) -> str:
    return f"{who} refuses changes, so services cannot register: {why}" if why else ""
