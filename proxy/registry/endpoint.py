"""The address of the Redis that holds the registry: one server, a sentinel's master, a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import unquote

from proxy.registry.base import RegistryError
from proxy.registry.clients import Access, Node, RedisClient, cluster, master, server

DEFAULT_PORT = 6379
SENTINEL_PORT = 26379
MAX_NODES = 64


class Kind(StrEnum):
    """How the server that takes changes is found; the value is the scheme of the URL."""

    SERVER = "redis"
    SOCKET = "unix"
    SENTINEL = "redis+sentinel"
    CLUSTER = "redis+cluster"


_SCHEMES = {
    "redis": (Kind.SERVER, False), "rediss": (Kind.SERVER, True), "unix": (Kind.SOCKET, False),
    "redis+sentinel": (Kind.SENTINEL, False), "rediss+sentinel": (Kind.SENTINEL, True),
    "redis+cluster": (Kind.CLUSTER, False), "rediss+cluster": (Kind.CLUSTER, True),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RedisEndpoint:
    """Where a Redis is. `str()` and `repr()` never show the credentials.

    `nodes` are the server, the sentinels, or some nodes of the cluster; `master` is the name
    that the sentinels know it by.
    """

    kind: Kind
    nodes: tuple[Node, ...] = ()
    master: str = ""
    path: str = ""
    db: int = 0
    tls: bool = False
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> RedisEndpoint:
        """Read one of these (docs/PROTOCOL.md, "Registry on Redis"):

        - `redis://[user:password@]host[:port][/db]`, `unix://[user:password@]/path`
        - `redis+sentinel://[user:password@]host[:port],…/master[/db]`
        - `redis+cluster://[user:password@]host[:port],…`

        `rediss…` is the same over TLS, and `-` may stand for `+`. Options after `?` are refused:
        they could take the time limits away. Raises RegistryError, whose text does not repeat
        the URL because it may hold a password.
        """
        scheme, _, rest = url.partition("://")
        kind, tls = _SCHEMES.get(scheme.lower().replace("-", "+"), (None, False))
        if "?" in rest or "#" in rest:
            raise RegistryError("registry URL: options after ? or # are not supported")
        authority, _, path = rest.partition("/")
        userinfo, _, hosts = authority.rpartition("@")
        username, _, password = userinfo.partition(":")
        user, secret = unquote(username) or None, unquote(password) or None
        if kind is Kind.SOCKET and path:
            return cls(kind, path=unquote(f"/{path}"), username=user, password=secret)
        if kind is None or kind is Kind.SOCKET or not hosts:
            raise RegistryError(
                "registry URL: expected redis://, rediss://, redis+sentinel://, redis+cluster:// "
                "or unix:// and a host"
            )
        nodes = _nodes(hosts, SENTINEL_PORT if kind is Kind.SENTINEL else DEFAULT_PORT)
        name, db = _path(kind, path.rstrip("/"))
        if kind is Kind.SERVER and len(nodes) > 1:
            raise RegistryError("registry URL: several hosts need redis+sentinel or redis+cluster")
        return cls(kind, nodes, name, "", db, tls, user, secret)

    def __str__(self) -> str:
        if self.kind is Kind.SOCKET:
            return f"unix://{self.path}"
        scheme = self.kind.value.replace("redis", "rediss" if self.tls else "redis")
        hosts = ",".join(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in self.nodes)
        if self.kind is Kind.CLUSTER:
            return f"{scheme}://{hosts}"
        return "/".join(filter(None, (f"{scheme}://{hosts}", self.master, str(self.db))))

    def client(self, connect_timeout_s: float, connections: int) -> RedisClient:
        """A client that the caller closes with `clients.close`.

        Connecting has a limit, and so has a free connection; a cluster's client opens as many
        as it needs instead of `connections`. Answers have none: put `asyncio.timeout` around
        each call. (The limit that redis-py has for them goes through `asyncio.wait_for`, and
        that loses a cancellation on Python 3.11.) The client never retries: what to do about an
        error is its user's decision. It asks for RESP2, which every Redis speaks.
        """
        access = self.access(connect_timeout_s)
        if self.kind is Kind.CLUSTER:
            return cluster(self.nodes, access)
        if self.kind is Kind.SENTINEL:
            return master(self.nodes, self.master, access, connections)
        return server(self.path or self.nodes[0], access, connections)

    def access(self, connect_timeout_s: float) -> Access:
        """How any server of this registry is spoken to."""
        return Access(connect_timeout_s, self.db, self.tls, self.username, self.password)


def _nodes(hosts: str, default_port: int) -> tuple[Node, ...]:
    texts = hosts.split(",")
    if len(texts) > MAX_NODES:
        raise RegistryError(f"registry URL: {len(texts)} hosts, expected at most {MAX_NODES}")
    return tuple(dict.fromkeys(_node(text, default_port) for text in texts))


def _node(text: str, default_port: int) -> Node:
    bare, bracket, tail = text.partition("]") if text.startswith("[") else ("", "", text)
    host, colon, port = tail.partition(":")
    if bracket:
        host = "" if host else bare[1:]
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    if not colon:
        number = default_port
    if not host or not 1 <= number <= 65535 or any(c.isspace() for c in host):
        raise RegistryError(
            "registry URL: the host or port cannot be read; percent-encode the password"
        )
    return unquote(host), number


def _path(kind: Kind, path: str) -> tuple[str, int]:
    """The master's name and the database that a URL's path names."""
    name = ""
    if kind is Kind.SENTINEL:
        name, _, path = path.partition("/")
        if not name:
            raise RegistryError("registry URL: expected the master's name after the sentinels")
    if not ((path or "0").isascii() and (path or "0").isdigit()):
        raise RegistryError("registry URL: expected a database number after the host")
    if kind is Kind.CLUSTER and int(path or "0"):
        raise RegistryError("registry URL: a cluster has database 0 only")
    return unquote(name), int(path or "0")
