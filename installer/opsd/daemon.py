"""The supervisor put together, from its configuration to its parts, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from installer import logs
from installer.opsd import settings as configuration
from installer.opsd import systemd
from installer.opsd.control import STORED, Control, listen
from installer.opsd.kernel import withdraw_listeners
from installer.opsd.settings import OpsdSettings, SettingsError
from installer.opsd.supervisor import Supervisor
from installer.opsd.systemd import Notifier
from interceptor.errors import InterceptorError

DEFAULT_PATH = Path("/etc/moa/agent.toml")
LOCK = "opsd.lock"


def run() -> None:
    """`moa-opsd [CONFIG]`; the agent's own configuration."""
    given = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else None
    path = given or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    try:
        settings = configuration.read(path)
        logs.configure(settings.log_level)
        settings.runtime_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        with only_one(settings.runtime_dir):
            asyncio.run(_serve(settings))
    except (SettingsError, InterceptorError, OSError) as error:
        sys.exit(f"moa-opsd: {error}")


@contextmanager
def only_one(runtime_dir: Path) -> Iterator[None]:
    """Hold the supervisor's lock; raises InterceptorError with the other's process id."""
    path = runtime_dir / LOCK
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise InterceptorError(
                f"lock {path}: a supervisor runs already (process {other}); stop that one first"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


async def _serve(settings: OpsdSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stored = systemd.stored()
    notifier = Notifier()
    supervisor = Supervisor(
        settings, notifier, partial(withdraw_listeners, settings.bpf_root), stored
    )
    control = Control(supervisor)
    listener = listen(settings.runtime_dir, stored.pop(STORED, None))
    notifier.store(STORED, listener.fileno())
    async with asyncio.TaskGroup() as group:
        peers = group.create_task(_keep_peers(settings))
        await control.start(listener)
        await supervisor.run(stop)
        control.close()
        peers.cancel()
    notifier.close()
    with suppress(FileNotFoundError):
        os.unlink(settings.runtime_dir / "opsd.sock")


async def _keep_peers(settings: OpsdSettings) -> None:
    if settings.peer.listen:
        # Late: a node without peers is spared it.
        from installer.peering import peer_keeper

        await peer_keeper(settings.peer).run()
