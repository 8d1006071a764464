"""The registry asked and changed by moactl itself, within a deadline; needs no agent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from installer.cli.failure import Failure
from installer.config import Config
from proxy.core.model import Address, Instance, ServiceKey
from proxy.registry import link, reader, static
from proxy.registry import watch_log as log_stream
from proxy.registry.base import ReadOnlyRegistry, RegistryError
from proxy.registry.clients import FAULTS, closing
from proxy.registry.endpoint import RedisEndpoint
from proxy.registry.redis import RedisRegistry, RedisTimes
from proxy.registry.static import StaticRegistry
from proxy.registry.watch import Offline, live_watchers, offline
from proxy.registry.watch_log import Entry
from proxy.registry.writer import RedisWriter

DEADLINE_S = 10.0
ANSWER_S = 2.0

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a registry held at one moment; `broken` are the texts of what could not be used.

    `complaint` says why it refuses changes, if it does.
    """

    kind: str
    source: str
    instances_by_key: Mapping[ServiceKey, tuple[Instance, ...]]
    broken: tuple[str, ...] = ()
    complaint: str = ""


def source_of(config: Config) -> str:
    """Where the registry is, without credentials."""
    if config.registry.kind == "static":
        return str(config.registry.file)
    return str(_endpoint(config))


def read(config: Config) -> Snapshot:
    """Read all of it once; raises `Failure`."""
    if config.registry.kind == "static":
        try:
            services = static.load(config.registry.file)
        except RegistryError as error:
            raise _failure(error) from error
        return Snapshot("static", source_of(config), services)
    return _wait(config, _read_redis(_endpoint(config)))


def register(config: Config, key: ServiceKey, instance: Instance) -> None:
    """Enter an instance in place of any other with its address; raises `Failure`."""
    _wait(config, _register(config, key, instance))


def deregister(config: Config, key: ServiceKey, address: Address) -> None:
    """Take an instance out; no error when it is not there. Raises `Failure`."""
    _wait(config, _deregister(config, key, address))


def mark(
    config: Config, key: ServiceKey, address: Address, set_: Sequence[str], clear: Sequence[str],
    entry: Entry,
) -> bool:  # fmt: skip
    """Set and clear marks of an instance, and write `entry` to the audit trail when that changed
    anything; whether it did. Raises `Failure`."""
    return _wait(config, _mark(config, key, address, set_, clear, entry))


def watch_log(config: Config, count: int, service: str) -> list[Entry]:
    """The newest entries of the audit trail, the oldest of them first; raises `Failure`."""
    return _wait(config, _watch_log(_watched(config), count, service))


def watchers(config: Config) -> tuple[dict[str, dict[str, Any]], int, list[Offline]]:
    """The watchers by what they say, Redis's unix ms, and what is offline; raises `Failure`."""
    return _wait(config, _watchers(_watched(config)))


def _watched(config: Config) -> RedisEndpoint:
    if config.registry.kind == "static":
        raise Failure("registry.kind is static: a file is not watched", "moactl config show")
    return _endpoint(config)


def _endpoint(config: Config) -> RedisEndpoint:
    assert config.registry.url is not None  # Config refuses kind = "redis" without it
    try:
        return RedisEndpoint.parse(config.registry.url.get_secret_value())
    except RegistryError as error:
        raise _failure(error) from error


async def _read_redis(endpoint: RedisEndpoint) -> Snapshot:
    async with closing(endpoint.client(ANSWER_S, connections=1)) as client:
        names, bad_names = await reader.service_names(client)
        views = await reader.refreshed(client, names, {}, 0.0, DEADLINE_S)
        complaint = await link.complaint(client)
    broken = [text for view in views.values() for text in view.broken]
    services = {key: view.instances for key, view in views.items()}
    return Snapshot("redis", str(endpoint), services, (*bad_names, *broken), complaint)


async def _register(config: Config, key: ServiceKey, instance: Instance) -> None:
    if config.registry.kind == "static":
        await StaticRegistry(config.registry.file).register(key, instance)
        return
    async with aclosing(RedisRegistry(_endpoint(config), times=_TIMES)) as registry:
        await registry.register(key, instance)


async def _deregister(config: Config, key: ServiceKey, address: Address) -> None:
    if config.registry.kind == "static":
        await StaticRegistry(config.registry.file).deregister(key, address)
        return
    async with aclosing(RedisRegistry(_endpoint(config), times=_TIMES)) as registry:
        await registry.deregister(key, address)


async def _mark(
    config: Config, key: ServiceKey, address: Address, set_: Sequence[str], clear: Sequence[str],
    entry: Entry,
) -> bool:  # fmt: skip
    if config.registry.kind == "static":
        await StaticRegistry(config.registry.file).mark(key, address, entry.what, "", "")
    endpoint, changed = _endpoint(config), False
    async with aclosing(RedisWriter(endpoint, ANSWER_S)) as writer:
        for name in set_:
            changed |= await writer.mark(key, address, name, entry.who, entry.why)
        for name in clear:
            changed |= await writer.unmark(key, address, name)
    if changed:
        async with closing(endpoint.client(ANSWER_S, connections=1)) as client:
            await log_stream.write(client, [entry])
    return changed


async def _watch_log(endpoint: RedisEndpoint, count: int, service: str) -> list[Entry]:
    async with closing(endpoint.client(ANSWER_S, connections=1)) as client:
        return await log_stream.read(client, count, service)


async def _watchers(
    endpoint: RedisEndpoint,
) -> tuple[dict[str, dict[str, Any]], int, list[Offline]]:
    async with closing(endpoint.client(ANSWER_S, connections=1)) as client:
        names, _ = await reader.service_names(client)
        live, now_ms = await live_watchers(client)
        return live, now_ms, await offline(client, names, ANSWER_S)


_TIMES = RedisTimes(answer=ANSWER_S)


def _wait(config: Config, work: Awaitable[_Value]) -> _Value:
    async def bounded() -> _Value:
        async with asyncio.timeout(DEADLINE_S):
            return await work

    try:
        return asyncio.run(bounded())
    except TimeoutError as error:
        text = f"registry {source_of(config)}: no answer within {DEADLINE_S:g} s"
        raise Failure(text, "moactl doctor registry") from error
    except FAULTS as error:
        text = f"registry {source_of(config)}: {str(error) or type(error).__name__}"
        raise Failure(text, "moactl doctor registry") from error
    except ReadOnlyRegistry as error:
        raise Failure(str(error), f"edit {source_of(config)}") from error
    except RegistryError as error:
        raise _failure(error) from error


def _failure(error: RegistryError) -> Failure:
    return Failure(str(error), "moactl doctor registry")
