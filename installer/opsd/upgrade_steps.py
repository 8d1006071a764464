"""The state of an upgrade, and the steps from one stage to the next (`upgrade.py` says when)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from installer.opsd.health import Beat, Health, Pulse, unwell
from installer.opsd.upgrade_types import (
    Action,
    End,
    Manner,
    Moved,
    Outcome,
    Report,
    Stage,
    Tell,
    UpgradeTimes,
    Who,
)

_KILL_S = 10.0
"""How long a killed process may take to be gone."""


@dataclass(slots=True)
class UpgradeSteps:
    """`before` is the old agent's health, None when it never said how it is."""

    times: UpgradeTimes
    before: Health | None
    stage: Stage = Stage.CHECKING
    moved: Moved = field(default_factory=Moved)
    outcome: Outcome | None = None
    why: str | None = None
    serves: Who | None = Who.OLD
    """Who serves, as far as is known; None: nobody."""
    alive: set[Who] = field(default_factory=lambda: {Who.OLD})
    pulse: Pulse = field(default_factory=Pulse)
    """The new one's, since it serves."""
    _given: bool = False
    _taken: bool = False
    _refused: bool = False
    """The giver has."""
    _resumed: bool = False
    """Who is left serves, as it showed by itself."""
    _was_given: bool = False
    _killing: bool = False
    _since_s: float = 0.0
    _deadline_s: float = 0.0

    def _enter(self, stage: Stage, now_s: float, within_s: float, text: str) -> list[Action]:
        self.stage, self._since_s, self._deadline_s = stage, now_s, now_s + within_s
        self._given = self._taken = self._refused = self._killing = self._resumed = False
        return [Report("stage", text)]

    def _bake(self, now_s: float) -> list[Action]:
        self.serves = Who.NEW
        if self.why is not None:  # it was to be given back, and the old one died over it
            return self._stay("there is nothing to go back to")
        self.pulse.beats.clear()
        text = "the new agent serves; the old one can take everything back"
        if Who.OLD not in self.alive:
            text = "the new agent serves; the old one has died"
        return self._enter(Stage.BAKING, now_s, self.times.bake_s, text)

    def _judge(self, now_s: float) -> list[Action]:
        bad = unwell(self.before, self.pulse, self._since_s, now_s, self.times.gate)
        if bad is not None:
            return self._return(now_s, f"the new agent does not pass: {bad}")
        if now_s < self._deadline_s:
            return []
        manner = Manner.STOP if self.moved.left else Manner.LEAVE
        return [*self._end(Who.OLD, manner), *self._finish(Outcome.UPGRADED, None)]

    def _return(self, now_s: float, why: str) -> list[Action]:
        self.why = why
        if Who.OLD not in self.alive:
            return self._finish(Outcome.UNWELL, f"{why}; the old agent has died")
        last_s = max(self._since_s, self.pulse.last.at_s if self.pulse.last else 0.0)
        self.moved = Moved()
        entered = self._enter(Stage.RETURNING, now_s, self.times.move_s, why)
        if now_s - last_s > self.times.gate.silent_s:  # who says nothing will give nothing
            return [*entered, *self._kill(now_s, Who.NEW)]
        return [*entered, Tell(Who.NEW, "give")]

    def _fetch(self, now_s: float, who: Who, text: str = "") -> list[Action]:
        """This one is left, and fetches what the dead one had from its keeper."""
        stage, dead = (Stage.ADOPTING, Who.NEW) if who is Who.OLD else (Stage.INHERITING, Who.OLD)
        entered = self._enter(stage, now_s, self.times.adopt_s, text or self.why or "")
        return [*entered, Tell(who, "adopt", dead)]

    def _taken_up(self, now_s: float, but: str) -> list[Action]:
        """Who was left has what the dead one had, `but` for something."""
        if self.stage is Stage.INHERITING:
            warned: list[Action] = [Report("warning", but)] if but else []
            return [*warned, *self._bake(now_s)]
        self.serves = Who.OLD
        outcome = Outcome.ROLLED_BACK if self._was_given else Outcome.REFUSED
        return self._finish(outcome, f"{self.why}; {but}" if but else self.why)

    def _stay(self, text: str) -> list[Action]:
        why = f"{self.why}; {text}" if self.why else text
        self.serves = Who.NEW
        return [*self._end(Who.OLD), *self._finish(Outcome.UNWELL, why)]

    def _give_up(self, why: str | None) -> list[Action]:
        self.serves = Who.OLD
        return [*self._end(Who.NEW), *self._finish(Outcome.REFUSED, why)]

    def _late(self, now_s: float) -> list[Action]:
        """The stage's deadline has passed."""
        late = f"not {self.stage} within {self._deadline_s - self._since_s:g} s"
        self.why = self.why or f"the new agent was {late}" if self._is_new_late else self.why
        if self.stage is Stage.CHECKING:
            return self._finish(Outcome.REFUSED, late)
        if self._resumed and self.stage in (Stage.ADOPTING, Stage.INHERITING):
            return self._taken_up(now_s, "what the dead agent had was not adopted in time")
        if self._resumed:
            return self._fetch(now_s, Who.OLD if self.stage is Stage.RESUMING else Who.NEW)
        if self.stage in (Stage.RESUMING, Stage.ADOPTING):
            return self._kill(now_s, Who.OLD)
        return self._kill(now_s, Who.NEW)

    @property
    def _is_new_late(self) -> bool:
        return self.stage in (Stage.STARTING, Stage.GIVING)

    def _kill(self, now_s: float, who: Who) -> list[Action]:
        """Its death will tell how to go on; one that cannot even be killed ends it here."""
        if self._killing:
            return self._finish(Outcome.BROKEN, f"the {who} agent cannot be ended")
        self._killing, self._deadline_s = True, now_s + _KILL_S
        return [End(who, Manner.KILL)]

    def _end(self, who: Who, manner: Manner = Manner.LEAVE) -> list[Action]:
        return [End(who, manner)] if who in self.alive else []

    def _finish(self, outcome: Outcome, why: str | None) -> list[Action]:
        self.stage, self.outcome, self.why = Stage.DONE, outcome, why
        if outcome is Outcome.BROKEN:
            self.serves = None
        return [Report("done", why or "")]

    def _beat(self, now_s: float, who: Who, word: Mapping[str, Any]) -> None:
        if self.stage in (Stage.RESUMING, Stage.ADOPTING):
            self._resumed = self._resumed or who is Who.OLD
        elif self.stage in (Stage.INHERITING, Stage.STAYING):
            self._resumed = self._resumed or who is Who.NEW
        elif who is Who.NEW and self.stage is Stage.BAKING:
            try:
                self.pulse.add(Beat.of(word, now_s))
            except ValueError:
                return  # of a version that counts other things: silence is judged then
