"""Clients of redis-py for one server, for the master that sentinels name, and for a cluster.

None of them retries, and none has a limit for an answer that goes through `asyncio.wait_for`;
see `RedisEndpoint.client`. A sentinel or a node of a cluster that is asked where to go has a
limit of its own, so that one that hangs does not stand before those that answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisClusterException, RedisError
from redis.exceptions import TimeoutError as RedisTimeout

Node = tuple[str, int]
"""A host, which may be a name, and a port."""

RedisClient = Redis | RedisCluster

FAULTS = (RedisError, RedisClusterException, OSError, TimeoutError)
"""What a call of a client raises when it is not the caller's fault."""

_DIRECTIONS_SHARE = 0.5
"""Of the time for connecting: who does not say by then where to go is passed over."""

_CLUSTER_CONNECTIONS = 64
"""To one node of a cluster: beyond them redis-py fails a command and does not wait."""


@dataclass(frozen=True, slots=True)
class Access:
    """How the servers of one registry are spoken to; `repr` shows no credentials."""

    connect_timeout_s: float
    db: int = 0
    tls: bool = False
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    def options(self) -> dict[str, Any]:
        """What redis-py's connections take."""
        return {
            "db": self.db, "username": self.username, "password": self.password,
            "socket_timeout": None, "socket_connect_timeout": self.connect_timeout_s,
            "retry": Retry(NoBackoff(), 0), "protocol": 2,
        }  # fmt: skip


class AnsweringConnection(Connection):
    """A connection whose every answer comes within `answer_s`, or which is closed."""

    def __init__(self, *, answer_s: float, **options: Any) -> None:
        super().__init__(**options)
        self._answer_s = answer_s

    async def read_response(
        self, disable_decoding: bool = False, timeout: float | None = None, **options: Any
    ) -> Any:
        """As redis-py's; raises its TimeoutError."""
        try:
            async with asyncio.timeout(self._answer_s if timeout is None else None):
                return await super().read_response(disable_decoding, timeout, **options)
        except TimeoutError:
            text = f"{self.host}:{self.port}: no answer within {self._answer_s:g} s"
            raise RedisTimeout(text) from None


class AnsweringSSLConnection(AnsweringConnection, SSLConnection):
    """The same over TLS."""


def server(at: Node | str, access: Access, connections: int) -> Redis:
    """A client of the server at an address, or at the path of a unix socket."""
    if isinstance(at, str):
        return _pooled(UnixDomainSocketConnection, access, connections, path=at)
    kind: type = SSLConnection if access.tls else Connection
    return _pooled(kind, access, connections, host=at[0], port=at[1], socket_keepalive=True)


def master(sentinels: Sequence[Node], name: str, access: Access, connections: int) -> Redis:
    """A client of the master that the sentinels name whenever it connects."""
    kind: type = SentinelManagedSSLConnection if access.tls else SentinelManagedConnection
    directory = Directory(tuple(sentinels), name, access)
    return _pooled(kind, access, connections, connection_pool=directory, socket_keepalive=True)


def _pooled(kind: type, access: Access, connections: int, **where: Any) -> Redis:
    pool = BlockingConnectionPool(
        max_connections=connections,
        timeout=access.connect_timeout_s,
        connection_class=kind,
        **access.options(),
        **where,
    )
    return Redis.from_pool(pool)


def cluster(nodes: Sequence[Node], access: Access) -> RedisCluster:
    """A client of the cluster that these nodes belong to; follows MOVED and ASK.

    redis-py sends ASKING and what it is for over two connections when it has two free ones: who
    writes while slots move does one thing at a time. A cluster that does not cover every slot
    is used as far as it goes.
    """
    client = RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in nodes],
        username=access.username,
        password=access.password,
        socket_timeout=None,
        socket_connect_timeout=access.connect_timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        ssl=access.tls,
        require_full_coverage=False,
        max_connections=_CLUSTER_CONNECTIONS,
    )
    # The constructor takes no class for connections; nodes that are found later use these, too.
    options = client.connection_kwargs
    options["connection_class"] = AnsweringSSLConnection if access.tls else AnsweringConnection
    options["answer_s"] = _directions_s(access)
    for node in client.startup_nodes:
        node.connection_class = options["connection_class"]
        node.connection_kwargs["answer_s"] = options["answer_s"]
    return client


@asynccontextmanager
async def closing(client: RedisClient) -> AsyncIterator[RedisClient]:
    """Use a client, and close it."""
    try:
        yield client
    finally:
        await close(client)


async def close(client: RedisClient) -> None:
    """Close every connection of a client, also of one that never found its cluster."""
    await client.aclose()
    if isinstance(client, RedisCluster):
        # After an error it takes itself for closed already.
        for node in {*client.get_nodes(), *client.startup_nodes}:
            await node.disconnect()


def _directions_s(access: Access) -> float:
    return _DIRECTIONS_SHARE * access.connect_timeout_s


@dataclass(frozen=True, slots=True)
class Directory:
    """Sentinels that know a master; stands in for the pool of a `SentinelManagedConnection`."""

    sentinels: tuple[Node, ...]
    name: str
    access: Access
    is_master: bool = True
    check_connection: bool = False

    async def get_master_address(self) -> Node:
        """The master that the first sentinel to answer names; all are asked at once.

        Raises MasterNotFoundError with what each of them said instead.
        """
        found: list[Node] = []
        faults: list[str] = []
        tasks: list[asyncio.Task[None]] = []

        async def ask(sentinel: Node) -> None:
            try:
                found.append(await self._ask(sentinel))
            except (RedisError, OSError) as error:
                faults.append(f"sentinel {sentinel[0]}:{sentinel[1]}: {error}")
                return
            for task in tasks:
                if task is not asyncio.current_task():
                    task.cancel()

        async with asyncio.TaskGroup() as group:
            tasks.extend(group.create_task(ask(sentinel)) for sentinel in self.sentinels)
        if not found:
            raise MasterNotFoundError(f"no master {self.name!r}: {'; '.join(sorted(faults))}")
        return found[0]

    async def _ask(self, sentinel: Node) -> Node:
        try:
            return await self._master_by(sentinel, None, None)
        except AuthenticationError:
            # Sentinels without a password refuse one, so it is offered to those that ask.
            if self.access.password is None:
                raise
            return await self._master_by(sentinel, self.access.username, self.access.password)

    async def _master_by(self, sentinel: Node, username: str | None, password: str | None) -> Node:
        options = self.access.options() | {"db": 0, "username": username, "password": password}
        limit_s = _directions_s(self.access)
        options |= {"socket_connect_timeout": limit_s, "answer_s": limit_s}
        kind = AnsweringSSLConnection if self.access.tls else AnsweringConnection
        pool = ConnectionPool(connection_class=kind, host=sentinel[0], port=sentinel[1], **options)
        async with aclosing(Redis.from_pool(pool)) as client:
            state: Any = await client.sentinel_master(self.name)
        if not state["is_master"] or state["is_sdown"] or state["is_odown"]:
            raise MasterNotFoundError(f"{state['ip']}:{state['port']} is down: {state['flags']}")
        return str(state["ip"]), int(state["port"])
