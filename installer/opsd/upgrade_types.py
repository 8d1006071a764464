"""The words of an upgrade: its stages, what it asks for, and how it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from installer.opsd.health import GateLimits


class Who(StrEnum):
    OLD = "old"
    NEW = "new"


class Stage(StrEnum):
    """Where an upgrade is; each but the last has a deadline."""

    CHECKING = "checking"
    """The new version's own check of the configuration; nothing has been started."""
    STARTING = "starting"
    GIVING = "giving"
    """The old one gives to the new one."""
    INHERITING = "inheriting"
    """The old one died while giving; the new one takes the rest from its keeper."""
    BAKING = "baking"
    RESUMING = "resuming"
    """The new one has gone before it had everything; the old one goes on."""
    RETURNING = "returning"
    """The new one gives back to the old one."""
    ADOPTING = "adopting"
    """The new one died; the old one takes everything from its keeper."""
    STAYING = "staying"
    """The old one died while it was given back to; the new one goes on."""
    DONE = "done"


class Outcome(StrEnum):
    UPGRADED = "upgraded"
    REFUSED = "refused"
    """Nothing has changed: the old one serves."""
    ROLLED_BACK = "rolled back"
    UNWELL = "unwell"
    """The new one serves, does not pass, and there is nothing to go back to."""
    BROKEN = "broken"
    """Neither serves: the supervisor starts one anew."""


class Manner(StrEnum):
    """How one is ended."""

    LEAVE = "leave"
    """It holds nothing."""
    STOP = "stop"
    """It still has connections, which may end first."""
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class Start:
    """Start the new agent, as the successor of the old one."""


@dataclass(frozen=True, slots=True)
class Tell:
    """Say something to an agent; `estate_of` adds the path of a dead one's keeper."""

    who: Who
    do: str
    estate_of: Who | None = None


@dataclass(frozen=True, slots=True)
class End:
    who: Who
    manner: Manner


@dataclass(frozen=True, slots=True)
class Report:
    """`event` is `stage`, `progress`, `warning` or `done`."""

    event: str
    text: str


Action = Start | Tell | End | Report


@dataclass(frozen=True, slots=True)
class UpgradeTimes:
    """In seconds: how long each stage may take."""

    check_s: float
    start_s: float
    move_s: float
    adopt_s: float
    bake_s: float
    gate: GateLimits


@dataclass(slots=True)
class Moved:
    """Connections on their way; `left` stay where they were until they end."""

    moved: int = 0
    total: int | None = None
    in_flight: int = 0
    left: int = 0

    def progress(self, word: Mapping[str, Any]) -> None:
        """From a giver's `progress`; what is no number counts as 0."""
        self.moved, self.total, self.in_flight = (
            _number(word, name) for name in ("moved", "total", "in_flight")
        )

    def given(self, word: Mapping[str, Any]) -> None:
        """From a giver's `given`."""
        self.moved, self.left = _number(word, "moved"), _number(word, "left")
        self.total, self.in_flight = self.moved + self.left, 0


def _number(word: Mapping[str, Any], name: str) -> int:
    value = word.get(name)
    return value if isinstance(value, int) and value >= 0 else 0
