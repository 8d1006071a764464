"""The address of the Redis that holds the registry, and clients for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from proxy.registry.base import RegistryError

DEFAULT_PORT = 6379


@dataclass(frozen=True, slots=True)
class RedisEndpoint:
    """Where a Redis is. `str()` and `repr()` never show the credentials."""

    scheme: str
    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> RedisEndpoint:
        """Read `redis://[user:password@]host[:port][/db]`, `rediss://…` or `unix://[…@]/path`.

        Options after `?` are refused: they could take the time limits away. Raises
        RegistryError, whose text does not repeat the URL because it may hold a password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or DEFAULT_PORT
        except ValueError:
            raise RegistryError(
                "registry URL: the host or port cannot be read; percent-encode the password"
            ) from None
        username = unquote(parts.username) if parts.username else None
        password = unquote(parts.password) if parts.password else None
        if parts.query or parts.fragment:
            raise RegistryError("registry URL: options after ? or # are not supported")
        if parts.scheme == "unix" and parts.path:
            path = unquote(parts.path)
            return cls("unix", path=path, username=username, password=password)
        if parts.scheme not in ("redis", "rediss") or not parts.hostname:
            raise RegistryError("registry URL: expected redis://, rediss:// or unix:// and a host")
        db = parts.path.strip("/") or "0"
        if not (db.isascii() and db.isdigit()):
            raise RegistryError("registry URL: expected a database number after the host")
        return cls(parts.scheme, parts.hostname, port, "", int(db), username, password)

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}/{self.db}"

    def client(self, connect_timeout_s: float, connections: int) -> Redis:
        """A client that the caller closes; connecting and a free connection have a limit.

        Answers have none: put `asyncio.timeout` around each call. The limit that redis-py has
        for them goes through `asyncio.wait_for`, and that loses a cancellation on Python 3.11.
        The client never retries: what to do about an error is its user's decision. It asks for
        RESP2, which every Redis speaks.
        """
        options: dict[str, Any] = {
            "db": self.db, "username": self.username, "password": self.password,
            "socket_timeout": None, "socket_connect_timeout": connect_timeout_s,
            "retry": Retry(NoBackoff(), 0), "protocol": 2,
        }  # fmt: skip
        if self.scheme == "unix":
            kind: type = UnixDomainSocketConnection
            options["path"] = self.path
        else:
            kind = SSLConnection if self.scheme == "rediss" else Connection
            options |= {"host": self.host, "port": self.port, "socket_keepalive": True}
        pool = BlockingConnectionPool(
            max_connections=connections, timeout=connect_timeout_s, connection_class=kind, **options
        )
        return Redis.from_pool(pool)
