"""moa-agent: its command line, and what must be there before its event loop turns.

Order of the start: locks, own cgroup, programs (which change nothing while no agent beats),
then `agent_process`. A successor has its locks from the agent before it (docs/UPGRADE.md).
Whatever fails in between ends the process, and the kernel lets traffic pass.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog
import uvloop

from installer import handover, logs, mesh_word
from installer.agent_lock import AgentLocks
from installer.agent_process import NEEDED, AgentProcess, Start
from installer.app_settings import app_settings, kernel_settings
from installer.config import DEFAULT_PATH, Config, ConfigError, load
from installer.estate import Estate, EstateError, fetch
from installer.keeping import join_keeper
from interceptor.cgroup import Cgroup
from interceptor.errors import InterceptorError
from interceptor.node import Node
from proxy.app import AppSettings
from proxy.registry.base import RegistryError

_SPARE_DESCRIPTORS = 1024

log = structlog.get_logger("agent")


def main() -> None:
    """`moa-agent [CONFIG]`: what the supervisor and the unit file start."""
    parser = argparse.ArgumentParser(prog="moa-agent", allow_abbrev=False)
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG")
    parser.add_argument("--check", action="store_true", help="check CONFIG, and say what this is")
    parser.add_argument("--supervised", action="store_true", help="moa-opsd started it")
    before = parser.add_mutually_exclusive_group()
    before.add_argument("--take-over", type=Path, metavar="SOCKET", help="succeed this agent")
    before.add_argument("--adopt", type=Path, metavar="SOCKET", help="succeed a dead agent")
    given = parser.parse_args()
    path = given.config
    if path is None and DEFAULT_PATH.exists():
        path = DEFAULT_PATH
    try:
        config = load(path) if path else Config()
        if given.check:
            print(json.dumps(handover.facts()))  # noqa: T201
            return
        run(config, path, Start(given.supervised, given.take_over, given.adopt))
    except (ConfigError, InterceptorError, RegistryError, OSError) as e:
        sys.exit(f"moa-agent: {e}")


def run(config: Config, config_path: Path | None, start: Start | None = None) -> None:
    """Serve until SIGTERM or SIGINT; raises what makes it impossible."""
    start = start or Start()
    logs.configure(config.agent.log_level)
    _make_directories(config)
    node = Node(config.bpf.root)
    locks = AgentLocks(config.agent.runtime_dir, node)
    # Before the first descriptor of another agent comes.
    max_connections = _connections_that_fit(config.agent.max_connections)
    estate = None if start.adopt is None else _fetch(start.adopt)
    if start.take_over is None and estate is None:
        locks.acquire()
    settings = replace(app_settings(config), max_connections=max_connections)
    try:
        _run(config, config_path, start, node, locks, settings, estate)
    finally:
        locks.release()
        if estate is not None:
            # What was not taken is to be had again.
            estate.close()


def _fetch(path: Path) -> Estate | None:
    """What a dead agent has left, its locks among it; None when it is not worth having."""
    try:
        estate = fetch(path)
    except EstateError as error:
        raise InterceptorError(str(error)) from None
    if estate is not None and not set(estate.names) >= NEEDED:
        # It had not come far: there is nothing to go on with.
        estate.done()
        return None
    return estate


def _run(
    config: Config,
    config_path: Path | None,
    start: Start,
    node: Node,
    locks: AgentLocks,
    settings: AppSettings,
    estate: Estate | None,
) -> None:
    cgroup = Cgroup.of(config.agent.cgroup)
    is_successor = start.take_over is not None and node.is_installed() and cgroup.exists()
    if not is_successor:
        _install(node, config)
        mesh_word.bring_back(node, mesh_word.path_of(config))
    # Before the first socket: sockets keep the cgroup that they were created in.
    cgroup.add(os.getpid())
    join_keeper(cgroup)
    with node.maps() as maps:
        process = AgentProcess(config, config_path, settings, node, maps, locks, start, estate)
        process.has_installed = not is_successor
        try:
            uvloop.run(process.run())
        except ExceptionGroup as group:
            # What made the start impossible is told as itself, not as a task's trouble.
            if len(group.exceptions) > 1:
                raise
            raise group.exceptions[0] from None
        finally:
            _leave_cgroup(node, cgroup)


def _install(node: Node, config: Config) -> None:
    report = node.install(kernel_settings(config))
    log.info(
        "installed",
        root=str(config.bpf.root),
        fresh=report.fresh,
        changed=list(report.changed_programs),
        missing_hooks=list(report.missing_hooks),
    )


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
        join_keeper(Cgroup.of(cgroup.path.parent))
        cgroup.remove()


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


if __name__ == "__main__":
    main()
