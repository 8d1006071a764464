"""moa-agent: the kernel side and the proxy wired together, from start to drain.

Order of the start: lock, own cgroup, programs (which change nothing while no agent beats),
registry, listeners, and only then the gate. Order of the end: gate shut, connections
drained. Whatever fails in between ends the process, and the kernel lets traffic pass.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import structlog
import uvloop

from installer import logs
from installer.admin import Admin, AgentFacts
from installer.app_settings import app_settings, kernel_settings, open_registry
from installer.config import DEFAULT_PATH, Config, ConfigError, load
from installer.first_table import first_table
from installer.kernel_gate import KernelGate
from installer.peer_settings import peer_settings
from installer.peering import follower, open_directory
from installer.switches import SwitchBoard, follow_switches
from interceptor.cgroup import Cgroup
from interceptor.errors import Busy, InterceptorError
from interceptor.maps import Maps
from interceptor.node import Node
from proxy.app import AppSettings, ProxyApp
from proxy.core.known import KnownInstances
from proxy.registry.announce import MeshAnnouncer
from proxy.registry.base import RegistryError
from proxy.registry.switched import SwitchedRegistry

RECONCILE_S = 1.0
_SPARE_DESCRIPTORS = 1024

log = structlog.get_logger("agent")


def main() -> None:
    """`moa-agent [CONFIG]`: what the unit file starts."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if path is None and DEFAULT_PATH.exists():
        path = DEFAULT_PATH
    try:
        run(load(path) if path else Config(), path)
    except (ConfigError, InterceptorError, RegistryError, OSError) as e:
        sys.exit(f"moa-agent: {e}")


def run(config: Config, config_path: Path | None) -> None:
    """Serve until SIGTERM or SIGINT; raises what makes it impossible."""
    logs.configure(config.agent.log_level)
    _make_directories(config)
    node = Node(config.bpf.root)
    with _only_one(config.agent.runtime_dir), node.agent_lock():
        max_connections = _connections_that_fit(config.agent.max_connections)
        cgroup = Cgroup.of(config.agent.cgroup)
        report = node.install(kernel_settings(config))
        # Before the first socket: sockets keep the cgroup that they were created in.
        cgroup.add(os.getpid())
        log.info(
            "installed",
            root=str(config.bpf.root),
            fresh=report.fresh,
            changed=list(report.changed_programs),
            missing_hooks=list(report.missing_hooks),
        )
        with node.maps() as maps:
            settings = replace(app_settings(config), max_connections=max_connections)
            try:
                uvloop.run(_serve(config, config_path, settings, node, maps))
            except ExceptionGroup as group:
                # What made the start impossible is told as itself, not as a task's trouble.
                if len(group.exceptions) > 1:
                    raise
                raise group.exceptions[0] from None
            finally:
                _leave_cgroup(node, cgroup)


def _make_directories(config: Config) -> None:
    """The runtime directory is needed; without the state directory we only forget sooner."""
    runtime, state = config.agent.runtime_dir, config.agent.state_dir
    try:
        runtime.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as e:
        raise InterceptorError(
            f"agent.runtime_dir {runtime}: {e.strerror}; expected a directory that can be made "
            "and written, such as /run/moa"
        ) from e
    try:
        state.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as e:
        log.warning(
            "no state directory: a restart without the registry will know no services",
            state_dir=str(state),
            error=e.strerror,
        )


def _leave_cgroup(node: Node, cgroup: Cgroup) -> None:
    """Remove our cgroup when an uninstall could not, because we were still in it."""
    if node.is_installed():
        return
    with suppress(OSError):
        Cgroup.of(cgroup.path.parent).add(os.getpid())
        cgroup.remove()


@contextmanager
def _only_one(runtime_dir: Path) -> Iterator[None]:
    """Hold the agent's lock; raises `Busy` with the other's process id."""
    path = runtime_dir / "agent.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise Busy(
                f"lock {path}: an agent runs already (process {other}); stop that one first"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _connections_that_fit(wanted: int) -> int:
    """Raise the limit of descriptors for `wanted` connections; how many it allows at last.

    A connection takes up to two descriptors: the client's and an upstream's.
    """
    needed = 2 * wanted + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed:
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(hard, needed)))
    except (ValueError, OSError):
        # Without CAP_SYS_RESOURCE the hard limit stays.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        fit = max(1, (hard - _SPARE_DESCRIPTORS) // 2)
        if fit < wanted:
            log.warning("fewer connections fit", wanted=wanted, fit=fit, descriptors=hard)
        return min(wanted, fit)
    return wanted


async def _serve(
    config: Config, config_path: Path | None, settings: AppSettings, node: Node, maps: Maps
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(
        signal.SIGHUP, log.warning, "SIGHUP ignored: a configuration is read once, at the start"
    )
    known = KnownInstances()
    gate = KernelGate(node, maps, config, known)
    registry = SwitchedRegistry(open_registry(config))
    board = SwitchBoard(config.node.name, config.node.application, config.agent.state_dir, registry)
    gate.is_off, gate.hidden = lambda: board.is_off, lambda: registry.hidden
    facts = AgentFacts(config, config_path, gate.generation, time.time())
    peering = peer_settings(config)
    agents = open_directory(peering)
    app = ProxyApp(settings, registry, gate, gate.is_local, known, caller_of=agents.caller)
    admin = Admin(app, facts, board)
    async with asyncio.TaskGroup() as group:
        background = [group.create_task(registry.run())]
        if config.peer.listen:
            follow = follower(peering, agents, announce=False)
            background.append(group.create_task(follow()))
        await first_table(registry)
        gate.reconcile()
        board.start()
        app.start()
        board.on_change = gate.follow
        background.append(group.create_task(follow_switches(config, board)))
        background.append(group.create_task(_beat(gate, facts, config.agent.heartbeat_ms / 1000)))
        background.append(group.create_task(_reconcile(gate)))
        announcer = MeshAnnouncer(registry, gate.is_local, f"agent:{config.node.name}")
        if config.registry.kind == "redis":
            background.append(group.create_task(announcer.run()))
        await admin.start()
        # Start-up garbage is done with; what is left lives as long as the agent.
        gc.collect()
        gc.freeze()
        log.info("ready", generation=gate.generation, registry=registry.status().state.value)
        await stop.wait()
        log.info("draining", connections=len(app.sessions))
        withdrawal = group.create_task(announcer.withdraw())
        await app.drain(config.agent.drain_timeout_s)
        await withdrawal
        await admin.close()
        for task in background:
            task.cancel()
    log.info("stopped")


async def _beat(gate: KernelGate, facts: AgentFacts, interval_s: float) -> None:
    """Tell the kernel that the event loop turns; what is late shows how busy it is."""
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    while True:
        gate.beat()
        facts.loop_lag_ms = max(0.0, (loop.time() - due_s) * 1000)
        due_s = loop.time() + interval_s
        await asyncio.sleep(interval_s)


async def _reconcile(gate: KernelGate) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(RECONCILE_S)
        gate.reconcile()
        gate.tick(loop.time())


if __name__ == "__main__":
    main()
