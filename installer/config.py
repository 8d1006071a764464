"""The configuration of one node: a TOML file, read once, checked whole, and never changed.

Unknown keys are refused, every size and time has bounds, and each problem is one line that
names the file, the key, what was expected and what was seen.
"""

from __future__ import annotations

import stat
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from installer.config_errors import ConfigError, ContradictionError, Problem, problem_lines
from installer.config_example import render_example
from installer.config_failover import MAX_OVERRIDES, Failover, ServiceOverride
from installer.config_ops import Ops
from installer.config_sections import (
    Agent,
    Bpf,
    Inbound,
    Limits,
    Lookup,
    Node,
    Peer,
    Registry,
    Routing,
    Scope,
    Section,
)
from installer.config_watcher import Watcher

__all__ = [
    "DEFAULT_PATH",
    "MAX_FILE_BYTES",
    "Config",
    "ConfigError",
    "default_toml",
    "exposed_password",
    "load",
    "parse",
]

DEFAULT_PATH = Path("/etc/moa/agent.toml")

MAX_FILE_BYTES = 1 << 20


class Config(Section):
    """One node's configuration; every section may be left out."""

    node: Node = Field(default_factory=Node)
    agent: Agent = Field(default_factory=Agent)
    bpf: Bpf = Field(default_factory=Bpf)
    scope: Scope = Field(default_factory=Scope)
    inbound: Inbound = Field(default_factory=Inbound)
    registry: Registry = Field(default_factory=Registry)
    routing: Routing = Field(default_factory=Routing)
    limits: Limits = Field(default_factory=Limits)
    peer: Peer = Field(default_factory=Peer)
    failover: Failover = Field(default_factory=Failover)
    service: Annotated[
        tuple[ServiceOverride, ...], Field(strict=False, max_length=MAX_OVERRIDES)
    ] = Field((), description="A service that differs from [failover]; as many as there are.")
    ops: Ops = Field(default_factory=Ops)
    watcher: Watcher = Field(default_factory=Watcher)
    lookup: Lookup = Field(default_factory=Lookup)

    @property
    def last_known_path(self) -> Path:
        """Where the last known services are kept."""
        return self.registry.last_known or self.agent.state_dir / "registry.json"

    @model_validator(mode="after")
    def _values_stand_together(self) -> Config:
        problems = [
            *_port_problems(self),
            *_time_problems(self),
            *_watcher_problems(self),
            *_scope_problems(self),
        ]
        if self.peer.listen and not self.node.application:
            problems.append(Problem("node.application", "a name, as peer.listen is set"))
        problems += _failover_problems(self)
        if self.registry.kind == "redis" and self.registry.url is None:
            problems.append(Problem("registry.url", 'a value, as registry.kind is "redis"'))
        if problems:
            raise ContradictionError(problems)
        return self


def load(path: Path) -> Config:
    """Read and check the file at `path`; blocks on the disk.

    Raises ConfigError with one line for each problem, also when the file cannot be read.
    """
    return parse(_read(path), path)


def parse(content: bytes, path: Path) -> Config:
    """Check what is, or shall be, the content of the file at `path`; raises ConfigError."""
    document = _read_toml(content, path)
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        # Not chained: the cause carries the values, and one of them may be a password.
        raise ConfigError(problem_lines(error, Config, str(path))) from None


def exposed_password(config: Config, path: Path | None) -> str | None:
    """A sentence when users besides the owner's group can read a password in the file at `path`.

    None when they cannot, or when there is neither password nor file.
    """
    url = config.registry.url
    if path is None or url is None or "@" not in url.get_secret_value():
        return None
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    if not mode & stat.S_IROTH:
        return None
    return f"{path}: registry.url may hold a password, and mode {mode & 0o777:04o} lets all read it"


def default_toml() -> str:
    """A complete example: every key with its meaning, its bounds and its default."""
    return render_example(Config, f"MOA Interceptor, one node's configuration: {DEFAULT_PATH}")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror or error}"]) from None


def _read_toml(content: bytes, path: Path) -> dict[str, Any]:
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError([f"{path}: expected at most {MAX_FILE_BYTES} bytes, saw more"])
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: expected UTF-8, saw another byte at {error.start}"]) from None
    except ValueError as error:  # a TOMLDecodeError, or a number of thousands of digits
        raise ConfigError([f"{path}: not TOML: {error}"]) from None
    except RecursionError:
        raise ConfigError([f"{path}: not usable TOML: nested too deeply"]) from None


def _port_problems(config: Config) -> Iterator[Problem]:
    agent = config.agent
    if agent.inbound_port == agent.outbound_port:
        expected = "another port than agent.outbound_port"
        yield Problem("agent.inbound_port", expected, agent.inbound_port)
    for port, count in Counter(config.inbound.ports).items():
        if count > 1:
            yield Problem("inbound.ports", "each port once", port)
        if port in (agent.inbound_port, agent.outbound_port):
            yield Problem("inbound.ports", "no port of the agent's own", port)


def _time_problems(config: Config) -> Iterator[Problem]:
    heartbeat_ms, limits, routing = config.agent.heartbeat_ms, config.limits, config.routing
    if config.bpf.heartbeat_max_age_ms < 2 * heartbeat_ms:
        # One late beat on a busy node must not turn the mesh off.
        yield Problem(
            "bpf.heartbeat_max_age_ms",
            f"at least twice agent.heartbeat_ms ({heartbeat_ms})",
            config.bpf.heartbeat_max_age_ms,
        )
    if routing.connect_timeout_ms > routing.timeout_ms:
        yield Problem(
            "routing.connect_timeout_ms",
            f"at most routing.timeout_ms ({routing.timeout_ms})",
            routing.connect_timeout_ms,
        )
    if config.ops.restart_ms > config.ops.restart_max_ms:
        yield Problem(
            "ops.restart_ms",
            f"at most ops.restart_max_ms ({config.ops.restart_max_ms})",
            config.ops.restart_ms,
        )
    if config.ops.silent_s * 1000 <= config.bpf.heartbeat_max_age_ms:
        # Who is late is passed by first, and killed only when that does not end.
        expected = f"more than bpf.heartbeat_max_age_ms ({config.bpf.heartbeat_max_age_ms})"
        yield Problem("ops.silent_s", expected, config.ops.silent_s)
    if config.ops.move_s <= config.agent.handover_timeout_s:
        # Else it is taken back while the agents still try.
        expected = f"more than agent.handover_timeout_s ({config.agent.handover_timeout_s})"
        yield Problem("ops.move_s", expected, config.ops.move_s)
    if limits.idle_ping_s >= limits.idle_close_s:
        yield Problem(
            "limits.idle_ping_s",
            f"less than limits.idle_close_s ({limits.idle_close_s})",
            limits.idle_ping_s,
        )


def _watcher_problems(config: Config) -> Iterator[Problem]:
    watcher = config.watcher
    if watcher.timeout_ms >= watcher.interval_ms:
        expected = f"less than watcher.interval_ms ({watcher.interval_ms})"
        yield Problem("watcher.timeout_ms", expected, watcher.timeout_ms)
    if watcher.lease_ms < 2 * watcher.interval_ms:
        # The lease is renewed twice a round; one late renewal must not end it.
        expected = f"at least twice watcher.interval_ms ({watcher.interval_ms})"
        yield Problem("watcher.lease_ms", expected, watcher.lease_ms)


def _scope_problems(config: Config) -> Iterator[Problem]:
    if config.agent.cgroup == "/":
        yield Problem("agent.cgroup", "a cgroup of the agent's own, not the root", "/")
    own = PurePosixPath(config.agent.cgroup)
    for index, cgroup in enumerate(config.scope.cgroups):
        if cgroup != "/" and PurePosixPath(cgroup).is_relative_to(own):
            yield Problem(f"scope.cgroups[{index}]", "nothing of agent.cgroup", cgroup)


def _failover_problems(config: Config) -> Iterator[Problem]:
    named = [("failover", config.failover)]
    named += [(f"service[{n}]", override) for n, override in enumerate(config.service)]
    for name, table in named:
        if table.backoff_ms > table.backoff_max_ms:
            expected = f"at most {name}.backoff_max_ms ({table.backoff_max_ms})"
            yield Problem(f"{name}.backoff_ms", expected, table.backoff_ms)
        if 0 < table.ping_interval_ms < table.ping_timeout_ms:
            expected = f"at least {name}.ping_timeout_ms ({table.ping_timeout_ms}), or 0"
            yield Problem(f"{name}.ping_interval_ms", expected, table.ping_interval_ms)
    uris = [override.uri for override in config.service]
    for uri, count in Counter(uris).items():
        if count > 1:
            yield Problem(f"service[{uris.index(uri)}].uri", "each service once", uri)
