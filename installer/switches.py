"""The switches that an agent obeys: its own node's, in a file, and the registry's.

`<state_dir>/switches.json` has what was switched here, and is written by moactl;
`switches-registry.json` what the registry said last, so that off stays off through a restart
without it. Off here or off there is off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

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
NAMES = (LOCAL, REGISTRY)

log = structlog.get_logger("switches")


def load(path: Path) -> dict[Target, Statement]:
    """What a file says; nothing when it is not there or cannot be read."""
    try:
        document = json.loads(path.read_text())
        return parse_all(document.items())[0]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        log.warning("switches not read", file=str(path), error=str(error))
        return {}


def save(path: Path, statements: Statements) -> None:
    """Replace the file as a whole; raises OSError."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    staging = path.with_suffix(".new")
    staging.write_text(json.dumps({str(t): str(s) for t, s in statements.items()}, indent=1))
    os.rename(staging, path)


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
        self.shared = load(self.state_dir / REGISTRY)
        self.reload()

    def reload(self) -> None:
        """The node's own file has changed."""
        self.local = load(self.state_dir / LOCAL)
        self._apply()

    def on_shared(self, statements: Statements) -> None:
        """The registry was read; what it no longer says goes on to count."""
        merged = self.shared | dict(statements)
        if merged != self.shared:
            self.shared = merged
            self._apply()
            try:
                save(self.state_dir / REGISTRY, merged)
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
        return [
            {**described(target, said), "where": where}
            for where, statements in (("node", self.local), ("registry", self.shared))
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
