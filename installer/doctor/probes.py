"""Everything that checks look at, so that a test can put another machine in its place."""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from installer import agent_lock, mesh_word, node_state, tcp_table
from installer.client import AgentClient
from installer.config import Config, exposed_password
from installer.doctor import foreign
from installer.doctor.foreign import Foreign
from installer.mesh_word import Word
from installer.node_state import Installed
from installer.plan import manifest
from installer.plan.manifest import Manifest
from installer.tcp_table import LISTEN
from interceptor import libbpf, probe
from interceptor.bpffs import PinTree, mounted_at
from interceptor.node import Node
from interceptor.probe import Features, Support
from proxy.registry import static
from proxy.registry.clients import closing
from proxy.registry.endpoint import RedisEndpoint

REGISTRY_DEADLINE_S = 3.0


@dataclass(frozen=True, slots=True)
class Listener:
    """Who listens on a port of this network namespace; pid None when it cannot be told.

    `pids` are all that have the socket: an agent's keeper and a retired agent have it, too.
    """

    port: int
    pid: int | None
    process: str
    pids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Probes:
    """One machine. Callables may raise InterceptorError, AgentError and OSError."""

    config: Config
    """The built-in defaults when `config_problems` is not empty."""
    config_file: Path | None
    config_problems: tuple[str, ...]
    exposed_password: Callable[[], str | None]
    """What is wrong with the file's mode, when others can read a password in it."""
    tree: PinTree
    mounts: Callable[[], str]
    """The text of /proc/mounts."""
    bpffs_at: Callable[[Path], Path | None]
    capabilities: Callable[[], int]
    """The effective set, as a bit mask."""
    kernel_release: Callable[[], str]
    python_version: Callable[[], tuple[int, int, int]]
    limit: Callable[[int], tuple[int, int]]
    """Soft and hard limit of this process, by a RLIMIT_ number."""
    nofile_of: Callable[[int], tuple[int, int] | None]
    """Soft and hard limit of another process's open files."""
    libbpf_version: Callable[[], str]
    has_library: Callable[[str], bool]
    hooks: Callable[[], Features]
    map_types: Callable[[], tuple[Support, ...]]
    foreign: Callable[[], list[Foreign]]
    listeners: Callable[[], list[Listener]]
    registry: Callable[[], str]
    """What the registry is; raises when it cannot be read within REGISTRY_DEADLINE_S."""
    net_cls_in_use: Callable[[Path], bool]
    installed: Callable[[], Installed | None]
    agent_pid: Callable[[], int | None]
    """Of the process that holds the agent's lock."""
    agent_status: Callable[[], dict[str, Any]]
    manifest: Callable[[], Manifest | None]
    """What `moactl install` wrote; raises ManifestError."""
    word: Callable[[], Word | None]
    """What an operator said of the mesh last, and was kept; raises WordError."""


def of_this_machine(
    config: Config, config_file: Path | None, config_problems: tuple[str, ...], root: Path
) -> Probes:
    """Look at the real machine; what is costly is looked at once."""
    node = Node(root)
    return Probes(
        config=config,
        config_file=config_file,
        config_problems=config_problems,
        exposed_password=partial(exposed_password, config, config_file),
        tree=node.tree,
        mounts=Path("/proc/mounts").read_text,
        bpffs_at=mounted_at,
        capabilities=_effective_capabilities,
        kernel_release=platform.release,
        python_version=lambda: sys.version_info[:3],
        limit=resource.getrlimit,
        nofile_of=_nofile_of,
        libbpf_version=libbpf.version,
        has_library=_has_library,
        hooks=cache(probe.probe_hooks),
        map_types=cache(probe.probe_maps),
        foreign=partial(foreign.find, node, config.scope.cgroups),
        listeners=cache(_listeners),
        registry=partial(_read_registry, config),
        net_cls_in_use=_net_cls_in_use,
        installed=cache(partial(node_state.read, node)),
        agent_pid=partial(agent_lock.holder, config.agent.runtime_dir),
        agent_status=AgentClient.of(config.agent.runtime_dir).status,
        manifest=lambda: Manifest.load(manifest.PATH),
        word=partial(mesh_word.load, mesh_word.path_of(config)),
    )


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _nofile_of(pid: int) -> tuple[int, int] | None:
    with suppress(OSError):
        return resource.prlimit(pid, resource.RLIMIT_NOFILE)
    return None


def _has_library(soname: str) -> bool:
    try:
        ctypes.CDLL(soname)
    except OSError:
        return False
    return True


def _listeners() -> list[Listener]:
    owners: dict[int, list[int]] = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(PermissionError):  # of a process in a sandbox, even for root
            for inode in tcp_table.inodes_of(pid):
                owners.setdefault(inode, []).append(pid)
    found = []
    for sock in tcp_table.of_namespace():
        if sock.state == LISTEN:
            pids = owners.get(sock.inode, [])
            name = tcp_table.process_name(pids[0]) if pids else ""
            found.append(Listener(sock.local.port, next(iter(pids), None), name, frozenset(pids)))
    return found


def _read_registry(config: Config) -> str:
    if config.registry.kind == "static":
        services = static.load(config.registry.file)
        return f"{config.registry.file}: {len(services)} services"
    assert config.registry.url is not None  # Config refuses kind = "redis" without it
    endpoint = RedisEndpoint.parse(config.registry.url.get_secret_value())
    return asyncio.run(_ping(endpoint))


async def _ping(endpoint: RedisEndpoint) -> str:
    async with asyncio.timeout(REGISTRY_DEADLINE_S):
        async with closing(endpoint.client(REGISTRY_DEADLINE_S, connections=1)) as client:
            await client.execute_command("PING")
    return f"{endpoint} answers"


def _net_cls_in_use(mount: Path) -> bool:
    """Whether any cgroup of a v1 net_cls or net_prio hierarchy was given a value."""
    for directory, _, files in os.walk(mount):
        if "net_cls.classid" in files and _text(directory, "net_cls.classid") not in ("", "0"):
            return True
        if "net_prio.ifpriomap" in files:
            lines = _text(directory, "net_prio.ifpriomap").splitlines()
            if any(not line.endswith(" 0") for line in lines):
                return True
    return False


def _text(directory: str, name: str) -> str:
    with suppress(OSError):
        return Path(directory, name).read_text().strip()
    return ""
