"""The names of the registry's keys in Redis, and nowhere else.

The `{}` hash tag keeps the keys of a service on one slot of a Redis Cluster, so that one
script may change them; `moa:services` is on a slot of its own (docs/PROTOCOL.md, "Registry on
Redis").
"""

from __future__ import annotations

import re
from functools import lru_cache

from proxy.core.model import ServiceKey

SERVICES = "moa:services"
"""Set of the names of all services; a hint that may name services without members."""

CHANGED = "moa:changed"
"""Channel; a message is `<name> <version>`."""

WATCHERS = "moa:watcher:live"
"""Hash: watcher by `<unix ms when its lease ends> <JSON of what it says of itself>`."""

WATCH_LOG = "moa:watcher:log"
"""Stream of what watchers and operators did to instances, bounded."""

MAX_NAME_BYTES = 512

_CACHED_NAMES = 16_384
"""Names that were read already: every sweep meets all of them, every change one."""

_BAD_CHARACTERS = re.compile(r"[\x00-\x20\x7f{}]")


class BadServiceName(ValueError):
    """A service name that has no keys: which, and what is wrong with it."""


def service_key(key: ServiceKey) -> str:
    """Set of members (`member.py`)."""
    return f"moa:service:{{{key}}}"


def version_key(key: ServiceKey) -> str:
    """String `<incarnation>-<counter>` (`scripts.py`)."""
    return f"moa:version:{{{key}}}"


def heartbeat_key(key: ServiceKey) -> str:
    """Sorted set: member by its last heartbeat in unix milliseconds."""
    return f"moa:heartbeat:{{{key}}}"


def marks_key(key: ServiceKey) -> str:
    """Hash: `<host:port> <mark>` by `<unix ms> <who> <why>` (`marks.py`)."""
    return f"moa:marks:{{{key}}}"


def offline_key(key: ServiceKey) -> str:
    """Hash: `host:port` by the JSON of what a watcher took out."""
    return f"moa:offline:{{{key}}}"


def script_keys(key: ServiceKey) -> tuple[str, str, str, str, str]:
    """The KEYS of every script in `scripts.py`: all on one slot."""
    return service_key(key), version_key(key), heartbeat_key(key), marks_key(key), offline_key(key)


def votes_key(key: ServiceKey) -> str:
    """Sorted set: `<down|up> <host:port> <watcher>` by when the vote ends, unix ms."""
    return f"moa:votes:{{{key}}}"


def watch_keys(key: ServiceKey) -> tuple[str, ...]:
    """The KEYS of the scripts in `watch_scripts.py` that change a service."""
    return (*script_keys(key), votes_key(key))


@lru_cache(maxsize=_CACHED_NAMES)
def parse_name(raw: bytes | str) -> ServiceKey:
    """Read `<uri>` or `<uri>#<group>` as it stands in `moa:services`; raises BadServiceName."""
    try:
        name = raw.decode() if isinstance(raw, bytes) else raw
    except UnicodeDecodeError:
        raise BadServiceName(f"service name {raw[:40]!r} is not UTF-8") from None
    key = ServiceKey.parse(name)
    check_name(key)
    if str(key) != name:
        raise BadServiceName(f"service name {name!r}: write it as {str(key)!r}")
    return key


def check_name(key: ServiceKey) -> None:
    """Refuse what would not survive as a key or in a message; raises BadServiceName."""
    name = str(key)
    if not key.uri or "#" in key.uri or "#" in key.group or not key.group:
        raise BadServiceName(f"service name {name!r}: expected uri or uri#group")
    if _BAD_CHARACTERS.search(name):
        raise BadServiceName(f"service name {name!r}: white space, control characters, {{ or }}")
    if len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise BadServiceName(f"service name {name[:40]!r}...: longer than {MAX_NAME_BYTES} bytes")


def parse_change(message: bytes) -> tuple[ServiceKey, str]:
    """Read a message of `CHANGED` as (service, version); raises BadServiceName."""
    name, _, version = message.rpartition(b" ")
    return parse_name(name), version.decode(errors="replace")
