"""The values every decision is made of: addresses, instances, and the service table.

All of them are immutable. A registry builds a new `ServiceTable` for each change and
hands it over whole, so that a reader never sees half of a change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

ANY_GROUP = "*"
"""The group of an instance that serves every group (docs/PROTOCOL.md, "Registry")."""

DEFAULT_WEIGHT = 100

MESH = "mesh"
"""The mark, and the protocol, of an instance whose agent speaks the mesh protocol for it."""

DRAIN = "drain"
"""The mark of an instance that gets new requests only when there is no other."""

MAINT = "maint"
"""The mark of an instance that is never chosen and never health-checked."""


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A numeric IP address (IPv4 or IPv6 text, never a name) and a TCP port in host order."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read what `str` writes; raises ValueError."""
        host, _, port = text.rpartition(":")
        return cls(host.strip("[]"), int(port))


@dataclass(frozen=True, slots=True)
class Instance:
    """One process that serves a service: a member of the registry's set.

    `protocols` is in the registry's order, `codec` says how the bodies of binary packets are
    written, `timeout_ms` is the instance's own limit for one request or None, and `extra`
    keeps parameters that this version does not know, so that they survive being written back.
    `marks` are what others say of it (`MESH`, `DRAIN`, `MAINT`; unknown ones are kept and mean
    nothing); they are no part of the member.
    """

    address: Address
    protocols: tuple[str, ...] = ("resp",)
    codec: str = "json"
    weight: int = DEFAULT_WEIGHT
    zone: str = ""
    pre: bool = False
    timeout_ms: int | None = None
    app: str = ""
    version: str = ""
    extra: tuple[tuple[str, str], ...] = ()
    marks: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PeerAgent:
    """An agent of another node of the same application: where it takes callers of other
    nodes, and from whose `address.host` its own node's callers come."""

    address: Address
    app: str = ""
    zone: str = ""


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """A service URI and a group; `ANY_GROUP` is the set that serves every group."""

    uri: str
    group: str = ANY_GROUP

    def __str__(self) -> str:
        return self.uri if self.group == ANY_GROUP else f"{self.uri}#{self.group}"

    @classmethod
    def parse(cls, text: str) -> ServiceKey:
        """Read `uri` or `uri#group`; an empty group means every group."""
        uri, _, group = text.partition("#")
        return cls(uri, group or ANY_GROUP)


@dataclass(frozen=True, slots=True)
class ServiceTable:
    """Everything a registry knows at one moment."""

    instances_by_key: Mapping[ServiceKey, tuple[Instance, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    uris: frozenset[str] = frozenset()
    addresses: frozenset[Address] = frozenset()

    @classmethod
    def build(cls, instances_by_key: Mapping[ServiceKey, Iterable[Instance]]) -> ServiceTable:
        """Freeze a mapping and derive the look-ups that requests need."""
        frozen = {key: tuple(instances) for key, instances in instances_by_key.items()}
        return cls(
            instances_by_key=MappingProxyType(frozen),
            uris=frozenset(key.uri for key, instances in frozen.items() if instances),
            addresses=frozenset(i.address for instances in frozen.values() for i in instances),
        )

    def knows(self, uri: str) -> bool:
        """Whether any group of this service has an instance."""
        return uri in self.uris

    def instances(self, key: ServiceKey) -> tuple[Instance, ...]:
        """The instances registered under exactly this key; empty when there are none."""
        return self.instances_by_key.get(key, ())
