"""The registry in a TOML file, for a first try and for small sites: followed, never written.

    [[service]]
    uri = "/service/demo"
    group = "*"                                  # may be left out
    instances = ["10.0.0.1:5000?weight=50", "10.0.0.2:5000"]

A member may be marked here, as `mark` does in Redis: `10.0.0.1:5000?mark=drain&mark=mesh`.

A file that cannot be used as a whole is not used at all: the last good table stays and `status`
says DEGRADED and why. A file without any service counts as one that is being written; to empty
a service on purpose, give it `instances = []`.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxy.core.model import ANY_GROUP, Address, Instance, ServiceKey, ServiceTable
from proxy.registry import child, file_worker
from proxy.registry.base import (
    ReadOnlyRegistry,
    RegistryError,
    RegistryState,
    RegistryStatus,
    TableCallback,
)
from proxy.registry.board import Board
from proxy.registry.keys import BadServiceName, check_name
from proxy.registry.marks import BadMark, check_mark, marked
from proxy.registry.member import BadMember, parse_member

POLL_INTERVAL_S = 0.5

_READ_AT_ONCE = 8 * 1024
"""A larger file is read by a child process: a megabyte of TOML takes a fifth of a second."""
_MEMBERS_AT_ONCE = 50
"""Read in one turn of the event loop."""

_Fingerprint = tuple[int, int, int]


class StaticRegistry:
    """See `proxy.registry.base.Registry`; `poll_interval_s` is how often the file is looked at."""

    def __init__(
        self,
        path: Path,
        poll_interval_s: float = POLL_INTERVAL_S,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._poll_interval_s = poll_interval_s
        self._board = Board("static", wall_clock)
        self._applied: _Fingerprint | None = None
        self._seen: _Fingerprint | None = None
        self._was_usable = False

    @property
    def table(self) -> ServiceTable:
        """See `Registry.table`."""
        return self._board.table

    def subscribe(self, callback: TableCallback) -> Callable[[], None]:
        """See `Registry.subscribe`."""
        return self._board.subscribe(callback)

    def status(self) -> RegistryStatus:
        """See `Registry.status`."""
        return self._board.status()

    async def run(self) -> None:
        """Read the file at once, then follow its changes until cancelled."""
        await self._apply()
        while True:
            await asyncio.sleep(self._poll_interval_s)
            await self._poll()

    async def register(self, key: ServiceKey, instance: Instance) -> None:
        """Always raises ReadOnlyRegistry."""
        raise self._read_only(f"register {instance.address} for {key}")

    async def deregister(self, key: ServiceKey, address: Address) -> None:
        """Always raises ReadOnlyRegistry."""
        raise self._read_only(f"deregister {address} for {key}")

    async def heartbeat(self, key: ServiceKey, instance: Instance) -> None:
        """Does nothing: a file does not forget."""

    async def mark(self, key: ServiceKey, address: Address, mark: str, who: str, why: str) -> bool:
        """Always raises ReadOnlyRegistry."""
        raise self._read_only(f"mark {address} of {key} {mark}")

    async def unmark(self, key: ServiceKey, address: Address, mark: str) -> bool:
        """Always raises ReadOnlyRegistry."""
        raise self._read_only(f"clear the mark {mark} of {address} of {key}")

    def _read_only(self, what: str) -> ReadOnlyRegistry:
        return ReadOnlyRegistry(f"{what}: {self._path} is a file that we do not write")

    async def _poll(self) -> None:
        seen = _fingerprint(self._path)
        # Twice the same: a file that is being written in place is not read half-way.
        if seen == self._seen and seen != self._applied:
            await self._apply()
        self._seen = seen

    async def _apply(self) -> None:
        self._applied = self._seen = _fingerprint(self._path)
        try:
            services = await self._load()
            if not services and self.table.uris:
                raise RegistryError(f"{self._path}: no [[service]]; to empty one: instances = []")
        except RegistryError as error:
            meanwhile = "last good table kept" if self._was_usable else "no services yet"
            self._board.set_state(RegistryState.DEGRADED, f"{meanwhile}: {error}")
            return
        self._was_usable = True
        table = ServiceTable.build(services)
        if table != self.table:
            self._board.publish(table)
        self._board.set_state(RegistryState.SYNCED, str(self._path))

    async def _load(self) -> dict[ServiceKey, tuple[Instance, ...]]:
        """What `load` returns or raises, without holding the event loop up."""
        if self._seen is not None and self._seen[1] <= _READ_AT_ONCE:
            return load(self._path)
        try:
            document = json.loads(await child.run("toml", self._path))
            services: dict[ServiceKey, tuple[Instance, ...]] = {}
            for _ in _steps(document, services):
                await asyncio.sleep(0)
        except (child.ChildError, ValueError) as error:
            raise RegistryError(f"{self._path}: {error}") from error
        return services


def load(path: Path) -> dict[ServiceKey, tuple[Instance, ...]]:
    """Read a registry file; raises RegistryError naming the file, the place and the fault."""
    services: dict[ServiceKey, tuple[Instance, ...]] = {}
    try:
        for _ in _steps(json.loads(file_worker.read_toml(path)), services):
            pass
    except OSError as error:
        raise RegistryError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise RegistryError(f"{path}: {error}") from error
    return services


def _steps(
    document: Mapping[str, Any], services: dict[ServiceKey, tuple[Instance, ...]]
) -> Iterator[None]:
    """Fill `services`, in steps of about a millisecond; raises ValueError."""
    _only("at the top", document, {"service"})
    entries = document.get("service", [])
    if not isinstance(entries, list):
        raise ValueError("service: expected [[service]], seen [service]")
    for number, entry in enumerate(entries, start=1):
        place = f"[[service]] number {number}"
        if not isinstance(entry, dict):
            raise ValueError(f"{place}: expected a table, seen {entry!r}")
        _only(place, entry, {"uri", "group", "instances"})
        key, texts = _names(place, entry)
        instances: list[Instance] = []
        for begin in range(0, len(texts), _MEMBERS_AT_ONCE):
            yield
            instances += _instances(place, key, texts[begin : begin + _MEMBERS_AT_ONCE])
        if len({instance.address for instance in instances}) != len(instances):
            raise ValueError(f"{place} ({key.uri}): an address is there twice")
        if key in services:
            raise ValueError(f"{place}: {key} is there twice")
        services[key] = tuple(instances)


def _names(place: str, entry: Mapping[str, Any]) -> tuple[ServiceKey, list[str]]:
    uri, group = entry.get("uri"), entry.get("group", ANY_GROUP)
    if not isinstance(uri, str) or not isinstance(group, str):
        raise ValueError(f"{place}: expected uri = text and group = text")
    texts = entry.get("instances")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{place} ({uri}): expected instances = a list of texts")
    key = ServiceKey(uri, group or ANY_GROUP)
    try:
        check_name(key)
    except BadServiceName as error:
        raise ValueError(f"{place} ({uri}): {error}") from None
    return key, texts


def _instances(place: str, key: ServiceKey, texts: Sequence[str]) -> list[Instance]:
    try:
        return [_instance(text) for text in texts]
    except (BadMember, BadMark) as error:
        raise ValueError(f"{place} ({key.uri}): {error}") from None


def _instance(text: str) -> Instance:
    instance = parse_member(text)
    marks = frozenset(value for name, value in instance.extra if name == "mark")
    for mark in marks:
        check_mark(mark)
    extra = tuple(pair for pair in instance.extra if pair[0] != "mark")
    return marked(replace(instance, extra=extra), marks)


def _only(place: str, table: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(table) - known):
        raise ValueError(f"{place}: unknown key {unknown[0]!r}, expected {sorted(known)}")


def _fingerprint(path: Path) -> _Fingerprint | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
