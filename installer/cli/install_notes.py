"""What an install has not brought about, though it was asked for: told when its steps are done."""

from __future__ import annotations

import time
from collections.abc import Iterator

from installer import node_state
from installer.client import AgentClient, AgentError
from installer.config import DEFAULT_PATH, Config
from installer.node_state import Installed
from interceptor.cgroup import Cgroup
from interceptor.errors import InterceptorError, Refused
from interceptor.node import Node, refuse_dangerous

TO_RESTART = "moactl agent restart"

_ATTACHED_WITHIN_S = 2.5
"""An agent looks for cgroups once a second, and passes a round when the pins are locked."""
_POLL_S = 0.05


def of(config: Config) -> list[str]:
    """Of this machine, whose installed configuration this is."""
    is_stale = _is_stale(config)
    notes = [f"{DEFAULT_PATH}: the agent that runs reads it at: {TO_RESTART}"] if is_stale else []
    return [*notes, *_outside(config, is_stale)]


def _is_stale(config: Config) -> bool:
    """Whether an agent runs that was started before its configuration was written."""
    try:
        status = AgentClient.of(config.agent.runtime_dir).status()
        return bool(
            status.get("config_path") == str(DEFAULT_PATH)
            and DEFAULT_PATH.stat().st_mtime > status["started_unix_s"]
        )
    except (AgentError, OSError, KeyError):
        return False


def _outside(config: Config, is_stale: bool) -> Iterator[str]:
    """The cgroups that are to be in the mesh and are not, and why."""
    node = Node(config.bpf.root)
    own = Cgroup.of(config.agent.cgroup)
    missing = {name: _reason(name, node, own, is_stale) for name in config.scope.cgroups}
    deadline_s = time.monotonic() + _ATTACHED_WITHIN_S
    while missing and (state := _state(node)) is not None:
        missing = {name: why for name, why in missing.items() if not _is_attached(name, state)}
        if all(missing.values()) or time.monotonic() > deadline_s:
            for name, why in missing.items():
                seen = why or "see the agent's log, and moactl doctor scopes"
                yield f"cgroup {name} is not in the mesh: {seen}"
            return
        time.sleep(_POLL_S)


def _state(node: Node) -> Installed | None:
    try:
        return node_state.read(node)
    except (InterceptorError, OSError):
        return None


def _is_attached(name: str, state: Installed) -> bool:
    return any(s.cgroup == name and s.state == "attached" for s in state.scopes)


def _reason(name: str, node: Node, own: Cgroup, is_stale: bool) -> str:
    """Empty when there is none to be seen."""
    cgroup = Cgroup.of(name)
    if cgroup.holds(own):
        return "it holds the agent itself; choose a smaller one, such as a unit's own"
    if node.was_taken_out(cgroup):
        return f"an operator took it out; moactl mesh on --cgroup {name} puts it back"
    if not cgroup.exists():
        return "it does not exist; the agent takes it in when it does"
    try:
        refuse_dangerous(cgroup, by_itself=False)
    except Refused as error:
        return str(error)
    return f"the agent takes it in at: {TO_RESTART}" if is_stale else ""
