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

import structlog

from installer import logs
from installer.opsd import settings as configuration
from installer.opsd import systemd, versions
from installer.opsd.control import NAME, STORED, Control, listen
from installer.opsd.kernel import withdraw_listeners
from installer.opsd.settings import OpsdSettings, SettingsError
from installer.opsd.supervisor import Supervisor
from installer.opsd.systemd import Notifier
from interceptor.errors import InterceptorError

DEFAULT_PATH = Path("/etc/moa/agent.toml")
LOCK = "opsd.lock"
_PEERS_AGAIN_S = 5.0

log = structlog.get_logger("opsd")


def run() -> None:
    """`moa-opsd [CONFIG]`; the agent's own configuration."""
    given = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else None
    path = given or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    try:
        settings = configuration.read(path)
        logs.configure(settings.log_level)
        settings.runtime_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        with only_one(settings.runtime_dir):
            again = asyncio.run(_serve(settings))
        if again:
            _begin_anew(settings)
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


def _begin_anew(settings: OpsdSettings) -> None:
    """The same process, with the program of the current version and the configuration as it is
    now; agents live on and are found again. Returns only by an error."""
    current = versions.load(settings.state_dir).current
    command = Path(current, "bin", "moa-opsd") if current else None
    argv = [sys.executable, "-I", "-m", "installer.opsd"]
    if command is not None and os.access(command, os.X_OK):
        argv = [str(command)]
    os.execv(argv[0], [*argv, *sys.argv[1:]])


async def _serve(settings: OpsdSettings) -> bool:
    """Whether to begin anew afterwards."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stored = systemd.stored()
    notifier = Notifier()
    supervisor = Supervisor(
        settings, notifier, partial(withdraw_listeners, settings.bpf_root), stored
    )
    loop.add_signal_handler(signal.SIGHUP, _on_hangup, supervisor, stop)
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
        os.unlink(settings.runtime_dir / NAME)
    return supervisor.leaves_agents


def _on_hangup(supervisor: Supervisor, stop: asyncio.Event) -> None:
    if supervisor.upgrading is not None:
        log.warning("SIGHUP ignored: an upgrade is under way")
        return
    log.info("SIGHUP: begins anew")
    supervisor.leaves_agents = True
    stop.set()


async def _keep_peers(settings: OpsdSettings) -> None:
    """Whatever goes wrong with peers is no reason to leave the agent alone."""
    if not settings.peer.listen:
        return
    # Late: a node without peers is spared it.
    from installer.peering import peer_keeper

    while True:
        try:
            await peer_keeper(settings.peer).run()
            return
        except Exception:
            log.exception("peers are not kept", again_in_s=_PEERS_AGAIN_S)
        await asyncio.sleep(_PEERS_AGAIN_S)
