"""moa-lookup: the registry as a MOA service, from start to drain (docs/LOOKUP.md).

Order of the start: registry, listener, registration of its own. Order of the end: taken out of
the registry, no new connections, what was asked is answered.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress
from pathlib import Path

import structlog
import uvloop

from installer import logs
from installer.app_settings import app_settings, open_registry
from installer.config import DEFAULT_PATH, Config, ConfigError, load
from installer.config_sections import listen_address
from installer.first_table import first_table
from installer.lookup.backend import LookupBackend
from installer.lookup.server import LookupServer
from proxy.core.model import Address, Instance, ServiceKey
from proxy.net.sockets import open_listener
from proxy.registry.base import Registry, RegistryError
from proxy.registry.lookup import ADMIN, LOOKUP
from proxy.registry.member import parse_address
from proxy.registry.redis import RedisRegistry

LEAVE_S = 3.0
SPREAD_S = 0.3
"""How long callers are given to hear that it has left."""

log = structlog.get_logger("lookup")


def main() -> None:
    """`moa-lookup [CONFIG]`: what a unit file starts."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if path is None and DEFAULT_PATH.exists():
        path = DEFAULT_PATH
    try:
        config = load(path) if path else Config()
        logs.configure(config.agent.log_level)
        uvloop.run(serve(config))
    except (ConfigError, RegistryError, OSError) as e:
        sys.exit(f"moa-lookup: {e}")


async def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; raises what makes it impossible."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    settings = app_settings(config)
    sock = open_listener(Address(*listen_address(config.lookup.listen)))
    with suppress(OSError):  # without it only a start without the registry knows less
        config.agent.state_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
    registry = open_registry(config, config.last_known_path.with_name("lookup.json"))
    async with asyncio.TaskGroup() as group:
        follow = group.create_task(registry.run())
        await first_table(registry)
        backend = LookupBackend(loop, settings.forward, registry, group.create_task)
        server = LookupServer(sock, config.lookup.max_connections, settings.session, backend)
        server.start()
        state = registry.status().state.value
        log.info("ready", listen=str(server.address), registry=state)
        beat = group.create_task(_keep_registered(config, registry))
        await stop.wait()
        log.info("draining", connections=len(server.front.sessions))
        beat.cancel()
        await _leave(config, registry)
        await server.drain(config.lookup.drain_timeout_s)
        backend.close()
        follow.cancel()
    if isinstance(registry, RedisRegistry):
        await registry.aclose()
    log.info("stopped")


def _own(config: Config) -> tuple[Instance, list[ServiceKey]] | None:
    """What to register: one address that speaks everything, under both services."""
    if config.lookup.advertise is None:
        return None
    address = parse_address(config.lookup.advertise)
    instance = Instance(address, protocols=("resp", "turbo"), zone=config.node.zone)
    return instance, [ServiceKey(LOOKUP), ServiceKey(ADMIN)]


async def _keep_registered(config: Config, registry: Registry) -> None:
    own = _own(config)
    while own is not None:
        instance, keys = own
        for key in keys:
            try:
                await registry.heartbeat(key, instance)
            except RegistryError as error:
                log.warning("not registered", service=str(key), reason=str(error))
        await asyncio.sleep(config.lookup.heartbeat_s)


async def _leave(config: Config, registry: Registry) -> None:
    own = _own(config)
    if own is None:
        return
    try:
        async with asyncio.timeout(LEAVE_S):
            for key in own[1]:
                await registry.deregister(key, own[0].address)
    except (RegistryError, TimeoutError) as error:
        log.warning("still registered", reason=str(error) or "no answer in time")
        return
    await asyncio.sleep(SPREAD_S)


if __name__ == "__main__":
    main()
