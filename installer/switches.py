"""The switches that an agent obeys: its own node's, in a file, and the registry's.

`<state_dir>/switches.json` has what was switched here, and is written by moactl;
`switches-registry.json` what the registry said last, so that off stays off through a restart
without it. Off here or off there is off.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from installer import kept_file
from installer.config import Config
from proxy.core.switches import (
    Statement,
    Statements,
    Target,
    is_node_off,
    off_services,
    parse_all,
)
from proxy.registry import switches_redis
from proxy.registry.endpoint import RedisEndpoint
from proxy.registry.switched import SwitchedRegistry

LOCAL = "switches.json"
REGISTRY = "switches-registry.json"
NAMES = (LOCAL, REGISTRY, "switches.new", "switches-registry.new")
_MAX_SIMILAR = 3

log = structlog.get_logger("switches")


class SwitchesError(Exception):
    """A file of switches cannot be read, or not all of it; the text says which and why."""


def read(path: Path) -> dict[Target, Statement]:
    """What a file says, nothing when it is not there; raises SwitchesError, PermissionError."""
    found, broken = _read(path)
    if broken:
        raise SwitchesError(f"{path}: is damaged: {'; '.join(broken)}")
    return found


def load(path: Path, known: Statements) -> dict[Target, Statement]:
    """What a file says; what of it cannot be read goes on to count as it is `known`."""
    try:
        found, broken = _read(path)
    except (SwitchesError, OSError) as error:
        log.error("switches not read: the last known ones count", error=str(error))
        return dict(known)
    if broken:
        log.error("switches not read: the last known ones count", file=str(path), broken=broken)
        return {**known, **found}
    return found


def _read(path: Path) -> tuple[dict[Target, Statement], list[str]]:
    try:
        document = json.loads(path.read_text())
        return parse_all((key, str(value)) for key, value in document.items())
    except FileNotFoundError:
        return {}, []
    except PermissionError:
        raise
    except OSError as error:
        raise SwitchesError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError, RecursionError) as error:
        raise SwitchesError(f"{path}: is damaged: {error}") from None


def save(path: Path, statements: Statements, *, sync: bool = True) -> None:
    """Replace the file as a whole, on the disk when it returns; raises OSError."""
    document = {str(target): str(said) for target, said in statements.items()}
    kept_file.replace_json(path, document, sync=sync)


@dataclass(slots=True)
class SwitchBoard:
    """What counts now; every change is applied at once, to routing and to the kernel."""

    node: str
    application: str
    state_dir: Path
    registry: SwitchedRegistry
    on_change: Callable[[], None] = lambda: None
    is_off: bool = False
    """Whether this node intercepts nothing."""
    local: dict[Target, Statement] = field(default_factory=dict)
    shared: dict[Target, Statement] = field(default_factory=dict)

    def start(self) -> None:
        """Take up what the files say."""
        self.shared = load(self.state_dir / REGISTRY, self.shared)
        self.reload()

    def reload(self) -> None:
        """The node's own file has changed."""
        self.local = load(self.state_dir / LOCAL, self.local)
        self._apply()

    def on_shared(self, statements: Statements) -> None:
        """The registry was read; what it no longer says goes on to count."""
        merged = self.shared | dict(statements)
        if merged != self.shared:
            self.shared = merged
            self._apply()
            try:
                # The event loop does not wait for the disk: the registry has it as well.
                save(self.state_dir / REGISTRY, merged, sync=False)
            except OSError as error:
                log.warning("switches not kept for a restart", error=str(error))

    def _apply(self) -> None:
        off = off_services(self.local) | off_services(self.shared)
        self.is_off = is_node_off(self.shared, self.node, self.application)
        self.registry.set_off(off, everything=self.is_off)
        self.on_change()
        log.info("switches", node_off=self.is_off, services_off=sorted(off))

    def describe(self) -> list[dict[str, Any]]:
        """What is off of this node, for `moactl status` and `moactl switch list`."""
        return _off(self.local, self.shared)

    def knows(self, service: str) -> dict[str, Any]:
        """Whether the registry has a service of this URI, off or not; else those like it."""
        known, name = self.registry.all_uris, service.rpartition("/")[2]
        similar = sorted(uri for uri in known if uri.rpartition("/")[2] == name)
        is_known = service in known
        return {"known": is_known, "similar": [] if is_known else similar[:_MAX_SIMILAR]}


def kept_off(state_dir: Path) -> list[dict[str, Any]]:
    """What the next agent of this node would find switched off; raises as `read` does."""
    return _off(read(state_dir / LOCAL), read(state_dir / REGISTRY))


def _off(local: Statements, shared: Statements) -> list[dict[str, Any]]:
    return [
        {**described(target, said), "where": where}
        for where, statements in (("node", local), ("registry", shared))
        for target, said in statements.items()
        if not said.on
    ]


async def follow_switches(config: Config, board: SwitchBoard) -> None:
    """Obey the registry's switches until cancelled; a file has none."""
    if config.registry.kind == "redis" and config.registry.url is not None:
        endpoint = RedisEndpoint.parse(config.registry.url.get_secret_value())
        await switches_redis.follow(endpoint, board.on_shared)


def described(target: Target, said: Statement) -> dict[str, Any]:
    """A statement as JSON values."""
    return {
        "what": target.what,
        "name": target.name,
        "on": said.on,
        "at_unix_s": said.at_ms / 1000,
        "who": said.who,
        "why": said.why,
    }
