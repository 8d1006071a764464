"""The registry asked and changed by moactl itself, within a deadline; needs no agent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from redis.exceptions import RedisError

from installer.cli.failure import Failure
from installer.config import Config
from proxy.core.model import Address, Instance, ServiceKey
from proxy.registry import reader, static
from proxy.registry.base import ReadOnlyRegistry, RegistryError
from proxy.registry.endpoint import RedisEndpoint
from proxy.registry.redis import RedisRegistry, RedisTimes
from proxy.registry.static import StaticRegistry

DEADLINE_S = 10.0
ANSWER_S = 2.0

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a registry held at one moment; `broken` are the texts of what could not be used."""

    kind: str
    source: str
    instances_by_key: Mapping[ServiceKey, tuple[Instance, ...]]
    broken: tuple[str, ...] = ()


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


def _endpoint(config: Config) -> RedisEndpoint:
    assert config.registry.url is not None  # Config refuses kind = "redis" without it
    try:
        return RedisEndpoint.parse(config.registry.url.get_secret_value())
    except RegistryError as error:
        raise _failure(error) from error


async def _read_redis(endpoint: RedisEndpoint) -> Snapshot:
    async with aclosing(endpoint.client(ANSWER_S, connections=1)) as client:
        names, bad_names = await reader.service_names(client)
        views = await reader.refreshed(client, names, {}, 0.0, DEADLINE_S)
    broken = [text for view in views.values() for text in view.broken]
    services = {key: view.instances for key, view in views.items()}
    return Snapshot("redis", str(endpoint), services, (*bad_names, *broken))


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
    except (RedisError, OSError) as error:
        text = f"registry {source_of(config)}: {str(error) or type(error).__name__}"
        raise Failure(text, "moactl doctor registry") from error
    except ReadOnlyRegistry as error:
        raise Failure(str(error), f"edit {source_of(config)}") from error
    except RegistryError as error:
        raise _failure(error) from error


def _failure(error: RegistryError) -> Failure:
    return Failure(str(error), "moactl doctor registry")
