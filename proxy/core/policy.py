"""What a service's failover does: the table of docs/ARCHITECTURE.md "Failover", per service."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import translate
from types import MappingProxyType


class Balance(StrEnum):
    """How an instance is chosen; HASH needs the request's property `hashid`, else it is P2C."""

    P2C = "p2c"
    HASH = "hash"


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """When an instance is left out and taken back.

    `failures` in a row eject it, for `backoff_s` that doubles up to `backoff_max_s`; chance
    may take away the share `jitter`. It comes back with `slow_start_share` of its weight,
    which grows evenly for `slow_start_s`. At most the share `max_ejected` of a set is left
    out, and nobody when less than the share `panic` of it is well. A probe without a result
    is given up after `probe_timeout_s`.
    """

    failures: int = 5
    refused_ejects: bool = True
    backoff_s: float = 1.0
    backoff_max_s: float = 60.0
    jitter: float = 0.2
    probe_timeout_s: float = 10.0
    slow_start_s: float = 30.0
    slow_start_share: float = 0.1
    max_ejected: float = 0.5
    panic: float = 0.5
    ping_fall: int = 3
    ping_rise: int = 2


@dataclass(frozen=True, slots=True)
class PingPolicy:
    """The active check of instances without traffic; an interval of 0 switches it off."""

    interval_s: float = 2.0
    timeout_s: float = 0.5


@dataclass(frozen=True, slots=True)
class ServicePolicy:
    """Everything that is configured for one service; times as their names say, shares from 0 to 1.

    `idempotent` are the methods that may run twice, as globs. `timeout_ms` is None where the
    agent's own default counts. A zone is left when less than `zone_spill` of it is well.
    """

    health: HealthPolicy = HealthPolicy()
    ping: PingPolicy = PingPolicy()
    balance: Balance = Balance.P2C
    hash_bound: float = 1.25
    zone_spill: float = 0.5
    idempotent: tuple[str, ...] = ()
    retries: int = 1
    retry_share: float = 0.2
    retry_per_s: float = 10.0
    hedge: bool = False
    max_in_flight: int = 1024
    max_in_flight_instance: int = 1024
    timeout_ms: int | None = None


DEFAULT_POLICY = ServicePolicy()


@dataclass(frozen=True, slots=True)
class Policies:
    """The policy of every service: its own, or the default."""

    default: ServicePolicy = DEFAULT_POLICY
    by_uri: Mapping[str, ServicePolicy] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, uri: str) -> ServicePolicy:
        return self.by_uri.get(uri, self.default)


def method_matcher(globs: tuple[str, ...]) -> re.Pattern[str] | None:
    """Matches the whole name of a method, without case as servers do; None matches nothing."""
    if not globs:
        return None
    return re.compile("|".join(translate(glob) for glob in globs), re.IGNORECASE)


DEFAULT_POLICIES = Policies()
