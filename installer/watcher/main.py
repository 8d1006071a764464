"""moa-watcher: the process, from its configuration to SIGTERM."""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
from contextlib import aclosing
from pathlib import Path

import structlog
import uvloop

from installer import logs
from installer.config import DEFAULT_PATH, Config, ConfigError, load
from installer.watcher.watcher import Watcher
from proxy.net.pinger import PingSettings
from proxy.registry.base import RegistryError
from proxy.registry.endpoint import RedisEndpoint
from proxy.registry.redis import RedisRegistry, RedisTimes
from proxy.registry.watch import WatchStore

ANSWER_S = 2.0

WANTED_DESCRIPTORS = 65_536
_SPARE_DESCRIPTORS = 1024
_AT_ONCE = 8192

log = structlog.get_logger("watcher")


def main() -> None:
    """`moa-watcher [CONFIG]`: what the unit file starts."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if path is None and DEFAULT_PATH.exists():
        path = DEFAULT_PATH
    try:
        run(load(path) if path else Config())
    except (ConfigError, RegistryError, OSError) as error:
        sys.exit(f"moa-watcher: {error}")


def run(config: Config) -> None:
    """Watch until SIGTERM or SIGINT; raises what makes it impossible."""
    if config.registry.kind != "redis" or config.registry.url is None:
        raise RegistryError('registry.kind: expected "redis"; a file has nothing to be changed')
    logs.configure(config.agent.log_level)
    endpoint = RedisEndpoint.parse(config.registry.url.get_secret_value())
    uvloop.run(_watch(config, endpoint, _ping_settings(config, _raise_descriptors())))


async def _watch(config: Config, endpoint: RedisEndpoint, pings: PingSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = config.watcher
    fresh_ms = (settings.fall + 1) * settings.interval_ms
    # No copy on disk: a watcher that has not heard from the registry does nothing anyway.
    registry = RedisRegistry(endpoint, times=RedisTimes(sweep_interval=config.registry.sweep_s))
    store = WatchStore(endpoint, config.node.name, settings.lease_ms, fresh_ms, ANSWER_S)
    async with aclosing(registry), aclosing(store), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(registry.run())
        watching = tasks.create_task(Watcher(config, registry, store, pings).run())
        log.info("ready", who=config.node.name, registry=str(endpoint), kept=pings.max_kept)
        await stop.wait()
        watching.cancel()
        await asyncio.wait([watching])
        following.cancel()
    log.info("stopped")


def _raise_descriptors() -> int:
    """Raise the limit of descriptors as far as we may and need; what it is at last."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in ((WANTED_DESCRIPTORS, max(hard, WANTED_DESCRIPTORS)), (hard, hard)):
        if wanted[0] <= soft:
            continue
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, wanted)
        except (ValueError, OSError):
            continue  # without CAP_SYS_RESOURCE the hard limit stays
        return wanted[0]
    return soft


def _ping_settings(config: Config, descriptors: int) -> PingSettings:
    """A connection is kept as long as enough descriptors stay free for those that are not."""
    spare = min(_SPARE_DESCRIPTORS, descriptors // 2)
    return PingSettings(
        interval_s=config.watcher.interval_ms / 1000,
        timeout_s=config.watcher.timeout_ms / 1000,
        max_at_once=min(_AT_ONCE, descriptors // 2),
        max_kept=descriptors - spare,
    )


if __name__ == "__main__":
    main()
