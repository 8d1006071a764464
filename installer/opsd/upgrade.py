"""One upgrade, or its way back, as a state machine: what happened goes in, what to do comes out.

Pure: time is an argument, nothing is sent and nothing is started here (`upgrading.py` does
that). Whatever dies at whatever stage, it comes to DONE, as each stage has a deadline; `outcome`,
`why` and `serves` then say how it ended (docs/UPGRADE.md has the table).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from installer.opsd.upgrade_steps import UpgradeSteps
from installer.opsd.upgrade_types import (
    Action,
    Manner,
    Outcome,
    Report,
    Stage,
    Start,
    Tell,
    Who,
)


@dataclass(slots=True)
class Upgrade(UpgradeSteps):
    """Each method is something that happened, and returns what is to be done about it."""

    # What happens

    def begin(self, now_s: float) -> list[Action]:
        return self._enter(Stage.CHECKING, now_s, self.times.check_s, "the new version is checked")

    def resume(self, now_s: float, stage: Stage) -> list[Action]:
        """For a supervisor that comes anew and finds two agents in the middle of it: GIVING,
        RETURNING, or BAKING, which begins once more."""
        self.alive = {Who.OLD, Who.NEW}
        if stage is Stage.BAKING:
            return self._bake(now_s)
        if stage is Stage.RETURNING:
            self.why, self.serves = "it was being rolled back", Who.NEW
        text = f"{stage}, as it was found by a supervisor that came anew"
        return self._enter(stage, now_s, self.times.move_s, text)

    def checked(self, now_s: float, why: str | None) -> list[Action]:
        """The check of the new version has ended; `why` it cannot take over, or None."""
        if self.stage is not Stage.CHECKING:
            return []
        if why is not None:
            return self._finish(Outcome.REFUSED, why)
        self.alive.add(Who.NEW)
        entered = self._enter(Stage.STARTING, now_s, self.times.start_s, "the new agent starts")
        return [*entered, Start()]

    def said(self, now_s: float, who: Who, word: Mapping[str, Any]) -> list[Action]:
        """An agent said something; words that have no place here are passed over."""
        name = word.get("say")
        if name == "beat":
            self._beat(now_s, who, word)
            return []
        handler = _SAID.get(self.stage)
        return handler(self, now_s, who, name, word) if handler else []

    def died(self, now_s: float, who: Who, how: str) -> list[Action]:
        """A process has ended; `how` is a part of a sentence."""
        if who not in self.alive:
            return []
        self.alive.discard(who)
        if self.stage is Stage.DONE:
            return []
        if not self.alive:
            return self._finish(Outcome.BROKEN, f"both agents died, the {who} one last: {how}")
        return self._new_died(now_s, how) if who is Who.NEW else self._old_died(now_s, how)

    def roll_back(self, now_s: float, why: str) -> list[Action]:
        """Somebody wants the old one back; heeded while it bakes."""
        return self._return(now_s, why) if self.stage is Stage.BAKING else []

    def break_off(self, why: str) -> list[Action]:
        """The supervisor itself has failed: who serves, as far as is known, stays alone."""
        if self.stage is Stage.DONE:
            return []
        return self._stay(why) if self.serves is Who.NEW else self._give_up(why)

    @property
    def can_roll_back(self) -> bool:
        return self.stage is Stage.BAKING and Who.OLD in self.alive

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed."""
        if self.stage is Stage.BAKING:
            return self._judge(now_s)
        if self.stage is Stage.DONE or now_s < self._deadline_s:
            return []
        return self._late(now_s)

    def left_s(self, now_s: float) -> float | None:
        """Until this stage is over: by its pace while connections move, to the second while it
        bakes, None where nobody can know."""
        if self.stage is Stage.BAKING:
            return max(0.0, self._deadline_s - now_s)
        moved, total = self.moved.moved, self.moved.total
        if self.stage not in (Stage.GIVING, Stage.RETURNING) or not moved or total is None:
            return None
        return max(0.0, (now_s - self._since_s) * (total - moved) / moved)

    def baked_s(self, now_s: float) -> float | None:
        """For how long it has baked; None while it does not."""
        return round(now_s - self._since_s, 1) if self.stage is Stage.BAKING else None

    # What is said, stage by stage

    def _starting(
        self, now_s: float, who: Who, name: object, word: Mapping[str, Any]
    ) -> list[Action]:
        if name == "refused":
            return self._give_up(f"the {who} agent refused: {_why(word)}")
        if (who, name) == (Who.NEW, "ready"):
            text = "the old agent gives its connections to the new one"
            entered = self._enter(Stage.GIVING, now_s, self.times.move_s, text)
            return [*entered, Tell(Who.OLD, "give")]
        return []

    def _moving(
        self, now_s: float, who: Who, name: object, word: Mapping[str, Any]
    ) -> list[Action]:
        """GIVING and RETURNING, which is the same the other way."""
        giver = Who.OLD if self.stage is Stage.GIVING else Who.NEW
        if who is giver and name == "progress":
            self.moved.progress(word)
            return [Report("progress", "")]
        if who is giver and name == "given":
            self._given = True
            self._was_given = self._was_given or giver is Who.OLD
            self.moved.given(word)
        elif who is not giver and name in ("serving", "taken"):
            self.serves, self._taken = who, self._taken or name == "taken"
        elif name == "refused":
            return self._moving_refused(now_s, who, giver, _why(word))
        if not (self._given and self._taken):
            return []
        if self.stage is Stage.GIVING:
            return self._bake(now_s)
        self.serves = Who.OLD
        return [*self._end(Who.NEW), *self._finish(Outcome.ROLLED_BACK, self.why)]

    def _moving_refused(self, now_s: float, who: Who, giver: Who, why: str) -> list[Action]:
        """It does not happen. What the taker has got already it holds alone: it is killed, and
        the giver fetches that from its keeper."""
        self._refused = self._refused or who is giver
        self.why = f"{self.why}; " if self.why else ""
        self.why += f"the {who} agent refused: {why}"
        taker = Who.NEW if giver is Who.OLD else Who.OLD
        return [] if self._killing else self._kill(now_s, taker)

    def _baking(
        self, now_s: float, who: Who, name: object, word: Mapping[str, Any]
    ) -> list[Action]:
        """The old one serves by itself: it has lost the new one, which may well live. Two that
        serve are one too many, and only one of them can be given back to."""
        if (who, name) != (Who.OLD, "serving") or Who.OLD not in self.alive:
            return []
        self.why = "the old agent serves again by itself"
        entered = self._enter(Stage.RETURNING, now_s, self.times.move_s, self.why)
        self._refused = True
        return [*entered, *self._kill(now_s, Who.NEW)]

    def _waiting(
        self, now_s: float, who: Who, name: object, word: Mapping[str, Any]
    ) -> list[Action]:
        """RESUMING and STAYING: the taker has died, and the giver is to notice."""
        giver = Who.OLD if self.stage is Stage.RESUMING else Who.NEW
        if who is not giver or name not in ("given", "refused"):
            return []
        if name == "given":  # it was on its way when the other one died
            self.moved.given(word)
            self._was_given = True
        return self._fetch(now_s, giver)

    def _taking(
        self, now_s: float, who: Who, name: object, word: Mapping[str, Any]
    ) -> list[Action]:
        """ADOPTING and INHERITING: one of them takes from the dead one's keeper."""
        taker = Who.OLD if self.stage is Stage.ADOPTING else Who.NEW
        if who is not taker:
            return []
        if name == "refused":
            # It has noticed by itself that the other one has gone, and serves without it.
            self._resumed = True
        return self._taken_up(now_s, "") if name == "taken" else []

    # Who died

    def _new_died(self, now_s: float, how: str) -> list[Action]:
        died = f"the new agent died: {how}"
        # The old one may have noticed first.
        self.why = f"{self.why}; {died}" if self.why and self._refused else self.why or died
        if self.stage in (Stage.CHECKING, Stage.STARTING):
            return self._finish(Outcome.REFUSED, self.why)
        if self.stage is Stage.GIVING and not self._given and not self._refused:
            return self._enter(Stage.RESUMING, now_s, self.times.adopt_s, self.why)
        return self._fetch(now_s, Who.OLD)

    def _old_died(self, now_s: float, how: str) -> list[Action]:
        why = f"the old agent died: {how}"
        if self.stage in (Stage.CHECKING, Stage.STARTING):
            self.serves = None
            return [*self._end(Who.NEW, Manner.KILL), *self._finish(Outcome.BROKEN, why)]
        if self.stage is Stage.BAKING:
            warned: list[Action] = [Report("warning", f"{why}; there is no way back now")]
            rest = [Tell(Who.NEW, "adopt", Who.OLD)] if self.moved.left else []
            return [*warned, *rest]
        if self.stage is Stage.RETURNING and not self._given and not self._refused:
            return self._enter(Stage.STAYING, now_s, self.times.adopt_s, why)
        return self._fetch(now_s, Who.NEW, why)


def _why(word: Mapping[str, Any]) -> str:
    return str(word.get("why", "no reason given"))[:500]


_SAID = {
    Stage.STARTING: Upgrade._starting,
    Stage.GIVING: Upgrade._moving,
    Stage.BAKING: Upgrade._baking,
    Stage.RETURNING: Upgrade._moving,
    Stage.RESUMING: Upgrade._waiting,
    Stage.ADOPTING: Upgrade._taking,
    Stage.INHERITING: Upgrade._taking,
    Stage.STAYING: Upgrade._waiting,
}
