"""moa-opsd: from its configuration to its parts, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from installer import logs
from installer.config import DEFAULT_PATH, Config, ConfigError, load
from installer.opsd.peers import PeerKeeper
from installer.peering import peer_keeper
from interceptor.errors import InterceptorError


def main() -> None:
    """`moa-opsd [CONFIG]`; the agent's own configuration."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_PATH
    try:
        config = load(path) if len(sys.argv) > 1 or path.exists() else Config()
        logs.configure(config.agent.log_level)
        if not config.peer.listen:
            sys.exit("moa-opsd: peer.listen is empty: there is nothing to supervise")
        asyncio.run(_serve(peer_keeper(config)))
    except (ConfigError, InterceptorError, OSError) as error:
        sys.exit(f"moa-opsd: {error}")


async def _serve(keeper: PeerKeeper) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(keeper.run())
        await stop.wait()
        task.cancel()
