"""Reads services from Redis: which there are, which have changed, and what those hold now.

Only known keys are asked for, never KEYS or SCAN. The order within a service is version, then
set and marks: a change in between shows as new content under an old version and is read again,
never as old content under a new version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from proxy.core.model import ServiceKey
from proxy.registry import keys
from proxy.registry.base import RegistryError
from proxy.registry.clients import RedisClient
from proxy.registry.view import ServiceView, expired, merged, rejected

MAX_SERVICES = 100_000
MAX_MEMBERS = 10_000
MAX_MARKS = 40_000
BATCH = 100
"""Services a pipeline asks for: it bounds how long parsing keeps the event loop busy (~10 ms)."""


@dataclass(frozen=True, slots=True)
class _Head:
    version: str | None
    cardinality: int


@dataclass(frozen=True, slots=True)
class _Content:
    members: frozenset[str]
    marks: frozenset[str]


async def service_names(client: RedisClient) -> tuple[set[ServiceKey], list[str]]:
    """All services that Redis names, and the texts of names that cannot be used.

    Raises RegistryError when there are more than MAX_SERVICES, and redis-py's errors.
    """
    count = await client.scard(keys.SERVICES)
    if count > MAX_SERVICES:
        raise RegistryError(f"{keys.SERVICES} has {count} names, at most {MAX_SERVICES} are read")
    found: set[ServiceKey] = set()
    broken: list[str] = []
    for raw in await client.smembers(keys.SERVICES):
        try:
            found.add(keys.parse_name(raw))
        except keys.BadServiceName as error:
            broken.append(str(error))
    return found, sorted(broken)


async def refreshed(
    client: RedisClient,
    services: Iterable[ServiceKey],
    known: Mapping[ServiceKey, ServiceView],
    grace_s: float,
    pipeline_s: float,
) -> dict[ServiceKey, ServiceView]:
    """The views of those services that differ from `known`.

    Each round trip takes at most `pipeline_s`. A service whose keys are of another type is
    rejected alone; every other error of Redis is raised, as is TimeoutError.
    """
    changed: dict[ServiceKey, ServiceView] = {}
    for batch in batches(services):
        async with asyncio.timeout(pipeline_s):
            heads = await _heads(client, batch)
        stale = [key for key in batch if _must_read(known.get(key), heads[key])]
        async with asyncio.timeout(pipeline_s):
            contents = await _contents(client, stale)
        now_s = asyncio.get_running_loop().time()
        for key in batch:
            view = known.get(key)
            changed[key] = _seen(key, view, heads[key], contents.get(key), now_s, grace_s)
    return _differing(changed, known)


async def reread(
    client: RedisClient,
    services: Iterable[ServiceKey],
    known: Mapping[ServiceKey, ServiceView],
    grace_s: float,
    pipeline_s: float,
) -> dict[ServiceKey, ServiceView]:
    """As `refreshed`, for services that are said to have changed: one round trip, and not two."""
    changed: dict[ServiceKey, ServiceView] = {}
    for batch in batches(services):
        async with asyncio.timeout(pipeline_s):
            found = await _wholes(client, batch)
        now_s = asyncio.get_running_loop().time()
        for key, (head, content) in found.items():
            changed[key] = _seen(key, known.get(key), head, content, now_s, grace_s)
    return _differing(changed, known)


def _differing(
    views: Mapping[ServiceKey, ServiceView], known: Mapping[ServiceKey, ServiceView]
) -> dict[ServiceKey, ServiceView]:
    return {
        key: view
        for key, view in views.items()
        if view is not (before := known.get(key)) and view != before
    }


def _must_read(view: ServiceView | None, head: _Head | str) -> bool:
    if isinstance(head, str) or head.cardinality > MAX_MEMBERS:
        return False
    return view is None or (view.version, view.cardinality) != (head.version, head.cardinality)


def _seen(
    key: ServiceKey,
    view: ServiceView | None,
    head: _Head | str,
    content: _Content | str | None,
    now_s: float,
    grace_s: float,
) -> ServiceView:
    if isinstance(head, str):
        return rejected(view, head)
    if head.cardinality > MAX_MEMBERS:
        return rejected(view, f"{key}: {head.cardinality} members, at most {MAX_MEMBERS} are read")
    if isinstance(content, str):
        return rejected(view, content)
    if content is None:
        return expired(view or ServiceView(), now_s)
    return merged(view, head.version, content.members, now_s, grace_s, content.marks)


async def _heads(client: RedisClient, batch: Sequence[ServiceKey]) -> dict[ServiceKey, _Head | str]:
    """Version and size of each; a text says why one has none."""
    versions = [] if isinstance(client, RedisCluster) else await _versions_at_once(client, batch)
    # What is left: services without a version, keys of another type, those of a cluster.
    single = [key for key, version in zip_longest(batch, versions) if version is None]
    async with client.pipeline(transaction=False) as pipe:
        for key in single:
            pipe.get(keys.version_key(key))
        for key in batch:
            pipe.scard(keys.service_key(key))
        answers = await pipe.execute(raise_on_error=False)
    found = dict(zip(batch, versions, strict=False)) | dict(zip(single, answers, strict=False))
    heads: dict[ServiceKey, _Head | str] = {}
    for key, cardinality in zip(batch, answers[len(single) :], strict=True):
        fault = _wrong_type(key, found[key]) or _wrong_type(key, cardinality)
        heads[key] = fault or _Head(_version(found[key]), cardinality)
    return heads


async def _versions_at_once(client: Redis, batch: Sequence[ServiceKey]) -> list[Any]:
    """One command instead of many; None also stands for a key of another type."""
    return list(await client.mget([keys.version_key(key) for key in batch]))


async def _contents(
    client: RedisClient, batch: Sequence[ServiceKey]
) -> dict[ServiceKey, _Content | str]:
    """The members and marks of each as texts; one that is not UTF-8 stays a text that is refused
    later. A text instead says why a service has neither."""
    if not batch:
        return {}
    async with client.pipeline(transaction=False) as pipe:
        for key in batch:
            pipe.smembers(keys.service_key(key))
            pipe.hkeys(keys.marks_key(key))
        answers = iter(await pipe.execute(raise_on_error=False))
    return {key: _content(key, next(answers), next(answers)) for key in batch}


async def _wholes(
    client: RedisClient, batch: Sequence[ServiceKey]
) -> dict[ServiceKey, tuple[_Head | str, _Content | str | None]]:
    """Version and content of each; no more is read of a set than shows that it is too large."""
    async with client.pipeline(transaction=False) as pipe:
        for key in batch:
            pipe.get(keys.version_key(key))
            # Of a smaller set these are all members, each once.
            pipe.srandmember(keys.service_key(key), MAX_MEMBERS + 1)
            pipe.hkeys(keys.marks_key(key))
        answers = iter(await pipe.execute(raise_on_error=False))
    found: dict[ServiceKey, tuple[_Head | str, _Content | str | None]] = {}
    for key in batch:
        version, members, marks = next(answers), next(answers), next(answers)
        fault = _wrong_type(key, version) or _wrong_type(key, members)
        head = fault or _Head(_version(version), len(members))
        found[key] = head, None if fault else _content(key, members, marks)
    return found


def _content(key: ServiceKey, members: Any, marks: Any) -> _Content | str:
    if fault := _wrong_type(key, members) or _wrong_type(key, marks):
        return fault
    if len(marks) > MAX_MARKS:
        return f"{key}: {len(marks)} marks, at most {MAX_MARKS} are read"
    return _Content(_texts(members), _texts(marks))


def _texts(raws: Iterable[bytes]) -> frozenset[str]:
    return frozenset(raw.decode(errors="replace") for raw in raws)


def _wrong_type(key: ServiceKey, answer: object) -> str:
    """Why this service alone cannot be read, or "". Raises any other error that Redis answers."""
    if not isinstance(answer, Exception):
        return ""
    if not str(answer).startswith("WRONGTYPE"):
        raise answer
    return f"{key}: one of its keys holds another type ({answer})"


def _version(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode(errors="replace")


def batches(services: Iterable[ServiceKey]) -> Iterator[Sequence[ServiceKey]]:
    """All services, in the order of their names, `BATCH` at a time."""
    ordered = sorted(services, key=str)
    for start in range(0, len(ordered), BATCH):
        yield ordered[start : start + BATCH]
