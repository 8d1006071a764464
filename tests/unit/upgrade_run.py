"""Drives the state machine of an upgrade, for its tests: a clock of its own, no processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from installer.opsd.health import GateLimits, Health
from installer.opsd.upgrade import Upgrade
from installer.opsd.upgrade_types import (
    Action,
    Outcome,
    Report,
    Stage,
    UpgradeTimes,
    Who,
)

OLD, NEW = Who.OLD, Who.NEW
GATE = GateLimits(
    min_requests=50, error_share=0.02, latency_factor=3, latency_ms=20, lag_ms=250, silent_s=5
)
TIMES = UpgradeTimes(check_s=10, start_s=10, move_s=60, adopt_s=10, bake_s=30, gate=GATE)
BEFORE = Health(requests=1000, errors=0, latency_ms=1.0, loop_lag_ms=0.5)

Word = dict[str, Any]


class Run:
    """Drives a machine; `now_s` is its clock."""

    def __init__(self, times: UpgradeTimes = TIMES, before: Health | None = BEFORE) -> None:
        self.machine = Upgrade(times, before)
        self.now_s = 0.0
        self.actions: list[Action] = []
        self.do(self.machine.begin(self.now_s))

    def do(self, actions: Iterable[Action]) -> list[Action]:
        """What is asked for besides reports."""
        told: list[Action] = [action for action in actions if not isinstance(action, Report)]
        self.actions += told
        return told

    def said(self, who: Who, say: str, **more: Any) -> list[Action]:
        return self.do(self.machine.said(self.now_s, who, {"say": say, **more}))

    def died(self, who: Who) -> list[Action]:
        return self.do(self.machine.died(self.now_s, who, "killed by SIGKILL"))

    def wait(self, seconds: float) -> list[Action]:
        self.now_s += seconds
        return self.do(self.machine.tick(self.now_s))

    def beat(self, requests: int, errors: int = 0, **more: Any) -> None:
        beat = {
            "requests": requests, "failed": errors, "transport_errors": 0, "latency_ms": 1.0,
            "loop_lag_ms": 0.5, "connections": 3, "in_flight": 0, **more,
        }  # fmt: skip
        self.now_s += 1
        self.said(NEW, "beat", **beat)

    def to(self, stage: Stage, left: int = 0) -> Run:
        """Go on as if all were well, to the beginning of this stage."""
        steps: list[tuple[Stage, Callable[[], list[Action]]]] = [
            (Stage.CHECKING, list),
            (Stage.STARTING, lambda: self.do(self.machine.checked(self.now_s, None))),
            (Stage.GIVING, lambda: self.said(NEW, "ready")),
            (Stage.BAKING, lambda: self.all_given(OLD, left)),
            (Stage.RETURNING, lambda: self.do(self.machine.roll_back(self.now_s, "by hand"))),
        ]
        for reached, step in steps:
            step()
            if reached is stage:
                break
        assert self.machine.stage is stage
        self.actions.clear()
        return self

    def all_given(self, giver: Who, left: int = 0) -> list[Action]:
        taker = NEW if giver is OLD else OLD
        self.said(taker, "serving")
        self.said(giver, "progress", moved=3, total=7, in_flight=1)
        self.said(giver, "given", moved=7 - left, left=left)
        return self.said(taker, "taken", moved=7 - left)

    @property
    def end(self) -> tuple[Outcome | None, Who | None]:
        assert self.machine.stage is Stage.DONE
        return self.machine.outcome, self.machine.serves
