"""The agent's side of its keeper: the board that both know, and what is worth a name on it."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import structlog

from installer import keeper
from installer.keeper import Keeper
from interceptor.cgroup import Cgroup
from proxy.net.board import Board

log = structlog.get_logger("agent")

_MOST_SLOTS = 1 << 20


def keeper_path(runtime_dir: Path, pid: int) -> Path:
    """Where the keeper of an agent can be asked."""
    return runtime_dir / f"keeper-{pid}.sock"


class Keeping:
    """Of an agent that has a keeper, from its start to its peaceful end."""

    def __init__(self, kept: Keeper, runtime_dir: Path) -> None:
        """From here on the keeper can be asked. Raises OSError."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The keeper has our table but the limit of its birth, and needs a number above ours to
        # hear its heir.
        resource.prlimit(kept.pid, resource.RLIMIT_NOFILE, (soft, hard))
        self.board = Board.create(kept.board, min(soft, _MOST_SLOTS))
        self._kept = kept
        self._names: set[str] = set()
        kept.listen(str(keeper_path(runtime_dir, os.getpid())))

    @classmethod
    def begin(cls, runtime_dir: Path) -> Keeping | None:
        """None: this process was started without a keeper, or there can be no board."""
        kept = keeper.mine()
        if kept is None:
            return None
        try:
            return cls(kept, runtime_dir)
        except (OSError, ValueError) as error:
            log.warning("no board: a crash will lose every connection", error=str(error))
            # It could give nothing to anybody, and would hold our locks after our death.
            os.kill(kept.pid, signal.SIGKILL)
            return None

    def name(self, descriptors: Mapping[str, int]) -> None:
        """Whoever adopts us gets these, and no others that had a name before."""
        for name in self._names - descriptors.keys():
            self.board.name(name, -1)
        for name, descriptor in descriptors.items():
            self.board.name(name, descriptor)
        self._names = set(descriptors)

    def end(self) -> None:
        """The last act of an agent that has nothing to leave to anybody."""
        self.board.end()

    def die(self) -> NoReturn:
        """End as if killed: every connection stays open, for the next agent."""
        os._exit(1)


def join_keeper(cgroup: Cgroup) -> None:
    """Put the keeper where the agent goes: who ends the one's supervisor spares both."""
    kept = keeper.mine()
    if kept is not None:
        cgroup.add(kept.pid)
