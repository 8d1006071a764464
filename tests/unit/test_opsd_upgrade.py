"""The state machine of an upgrade: each death at each stage, gates, deadlines. No processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from installer.opsd.health import GateLimits, Health
from installer.opsd.upgrade import Upgrade
from installer.opsd.upgrade_types import (
    Action,
    End,
    Manner,
    Outcome,
    Report,
    Stage,
    Start,
    Tell,
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


def test_all_is_well() -> None:
    run = Run()
    assert run.do(run.machine.checked(0, None)) == [Start()]
    assert run.said(NEW, "ready") == [Tell(OLD, "give")]
    assert run.all_given(OLD) == []
    assert run.machine.stage is Stage.BAKING
    assert run.machine.moved.moved == 7
    for second in range(29):
        run.beat(100 * (second + 1))
        assert run.wait(0) == []
    run.beat(3000)
    assert run.wait(0) == [End(OLD, Manner.LEAVE)]
    assert run.end == (Outcome.UPGRADED, NEW)


def test_connections_that_stayed_may_end_first() -> None:
    run = Run().to(Stage.BAKING, left=2)
    for second in range(30):
        run.beat(second)
    assert run.wait(1) == [End(OLD, Manner.STOP)]
    assert run.end == (Outcome.UPGRADED, NEW)


def test_check_that_fails_starts_nothing() -> None:
    run = Run()
    assert run.do(run.machine.checked(0, "registry.url: expected a URL")) == []
    assert run.end == (Outcome.REFUSED, OLD)
    assert run.machine.why == "registry.url: expected a URL"


@pytest.mark.parametrize(("who", "say"), [(NEW, "refused"), (OLD, "refused")])
def test_refused_before_anything_moved(who: Who, say: str) -> None:
    run = Run().to(Stage.STARTING)
    assert run.said(who, say, why="because") == [End(NEW, Manner.LEAVE)]
    assert run.end == (Outcome.REFUSED, OLD)


# Who dies, and when


@pytest.mark.parametrize("stage", [Stage.STARTING])
def test_new_dies_before_it_is_given_anything(stage: Stage) -> None:
    run = Run().to(stage)
    assert run.died(NEW) == []
    assert run.end == (Outcome.REFUSED, OLD)


def test_new_dies_while_it_is_given_to() -> None:
    """The old one notices, and then fetches what the dead one had already."""
    run = Run().to(Stage.GIVING)
    assert run.died(NEW) == []
    assert run.machine.stage is Stage.RESUMING
    assert run.said(OLD, "refused", why="it hung up") == [Tell(OLD, "adopt", NEW)]
    run.said(OLD, "taken", moved=3)
    assert run.end == (Outcome.REFUSED, OLD)


def test_new_dies_as_the_last_has_moved() -> None:
    """`given` was on its way."""
    run = Run().to(Stage.GIVING)
    run.died(NEW)
    assert run.said(OLD, "given", moved=7, left=0) == [Tell(OLD, "adopt", NEW)]
    run.said(OLD, "refused", why="it has stepped forward by itself")
    run.said(OLD, "taken", moved=7)
    assert run.end == (Outcome.ROLLED_BACK, OLD)


@pytest.mark.parametrize("stage", [Stage.BAKING, Stage.RETURNING])
def test_new_dies_when_it_has_everything(stage: Stage) -> None:
    run = Run().to(stage)
    assert run.died(NEW) == [Tell(OLD, "adopt", NEW)]
    assert run.machine.stage is Stage.ADOPTING
    run.said(OLD, "serving")
    run.said(OLD, "taken", moved=7)
    assert run.end == (Outcome.ROLLED_BACK, OLD)


def test_new_dies_when_it_has_given_back() -> None:
    run = Run().to(Stage.RETURNING)
    run.said(OLD, "serving")
    run.said(NEW, "given", moved=7, left=0)
    assert run.died(NEW) == [Tell(OLD, "adopt", NEW)]
    run.said(OLD, "taken", moved=7)
    assert run.end == (Outcome.ROLLED_BACK, OLD)


@pytest.mark.parametrize("stage", [Stage.CHECKING, Stage.STARTING])
def test_old_dies_before_it_gave(stage: Stage) -> None:
    """Nobody serves: the new one, which waits for it, is of no use; one is started anew."""
    run = Run().to(stage)
    assert run.died(OLD) == ([End(NEW, Manner.KILL)] if stage is Stage.STARTING else [])
    assert run.end == (Outcome.BROKEN, None)


@pytest.mark.parametrize("has_given", [False, True])
def test_old_dies_while_it_gives(has_given: bool) -> None:
    run = Run().to(Stage.GIVING)
    run.said(NEW, "serving")
    if has_given:
        run.said(OLD, "given", moved=7, left=0)
    assert run.died(OLD) == [Tell(NEW, "adopt", OLD)]
    run.said(NEW, "taken", moved=4)
    assert run.machine.stage is Stage.BAKING
    assert not run.machine.can_roll_back
    for second in range(30):
        run.beat(second)
    assert run.wait(1) == []
    assert run.end == (Outcome.UPGRADED, NEW)


@pytest.mark.parametrize("left", [0, 2])
def test_old_dies_while_the_new_one_bakes(left: int) -> None:
    """What stayed with it is fetched; there is no way back."""
    run = Run().to(Stage.BAKING, left=left)
    assert run.died(OLD) == ([Tell(NEW, "adopt", OLD)] if left else [])
    assert run.machine.stage is Stage.BAKING
    for second in range(4):
        run.beat(1000 * second, errors=500 * second)
    assert run.wait(0) == []
    assert run.end == (Outcome.UNWELL, NEW)
    assert "the old agent has died" in str(run.machine.why)


def test_old_dies_while_it_is_given_back_to() -> None:
    run = Run().to(Stage.RETURNING)
    assert run.died(OLD) == []
    assert run.machine.stage is Stage.STAYING
    assert run.said(NEW, "refused", why="it hung up") == [Tell(NEW, "adopt", OLD)]
    run.said(NEW, "taken", moved=2)
    assert run.end == (Outcome.UNWELL, NEW)


def test_old_dies_when_it_was_given_everything_back() -> None:
    run = Run().to(Stage.RETURNING)
    run.said(NEW, "given", moved=7, left=0)
    assert run.died(OLD) == [Tell(NEW, "adopt", OLD)]
    run.said(NEW, "taken", moved=7)
    assert run.end == (Outcome.UNWELL, NEW)


@pytest.mark.parametrize("stage", [s for s in Stage if s not in (Stage.CHECKING, Stage.DONE)])
@pytest.mark.parametrize("order", [(OLD, NEW), (NEW, OLD)])
def test_both_die(stage: Stage, order: tuple[Who, Who]) -> None:
    """However they go, it comes to an end, and it is known that nobody serves."""
    run = Run()
    if stage in (Stage.STARTING, Stage.GIVING, Stage.BAKING, Stage.RETURNING):
        run.to(stage)
    elif stage in (Stage.RESUMING, Stage.ADOPTING):
        run.to(Stage.GIVING if stage is Stage.RESUMING else Stage.BAKING)
        order = (NEW, OLD)
    else:
        run.to(Stage.GIVING if stage is Stage.INHERITING else Stage.RETURNING)
        order = (OLD, NEW)
    run.died(order[0])
    if run.machine.stage is not Stage.DONE:
        run.died(order[1])
        assert run.end == (Outcome.BROKEN, None)
    else:
        assert stage is Stage.STARTING


# Who does not come to an end


@pytest.mark.parametrize("stage", [Stage.STARTING, Stage.GIVING])
def test_new_is_late(stage: Stage) -> None:
    run = Run().to(stage)
    assert run.wait(61) == [End(NEW, Manner.KILL)]
    run.died(NEW)
    if stage is Stage.GIVING:
        run.said(OLD, "refused", why="it hung up")
        run.said(OLD, "taken", moved=0)
    assert run.end == (Outcome.REFUSED, OLD)
    assert f"not {stage} within" in str(run.machine.why)


def test_old_refuses_halfway() -> None:
    """What the new one has got it holds alone: it is killed, and the old one fetches it."""
    run = Run().to(Stage.GIVING)
    assert run.said(OLD, "refused", why="no descriptors") == [End(NEW, Manner.KILL)]
    assert run.died(NEW) == [Tell(OLD, "adopt", NEW)]
    run.said(OLD, "taken", moved=2)
    assert run.end == (Outcome.REFUSED, OLD)
    assert "no descriptors; the new agent died" in str(run.machine.why)


@pytest.mark.parametrize("who", [OLD, NEW])
def test_return_is_refused(who: Who) -> None:
    """The new one stays, and has all."""
    run = Run().to(Stage.RETURNING)
    assert run.said(who, "refused", why="no descriptors") == [End(OLD, Manner.KILL)]
    run.died(OLD)
    if who is OLD:
        run.said(NEW, "refused", why="it hung up")
    assert run.actions[-1] == Tell(NEW, "adopt", OLD)
    run.said(NEW, "taken", moved=7)
    assert run.end == (Outcome.UNWELL, NEW)


def test_old_serves_and_does_not_adopt() -> None:
    run = Run().to(Stage.BAKING)
    run.died(NEW)
    run.said(OLD, "refused", why="cannot adopt")
    run.wait(11)
    assert run.end == (Outcome.ROLLED_BACK, OLD)
    assert "not adopted in time" in str(run.machine.why)


def test_old_neither_serves_nor_adopts() -> None:
    run = Run().to(Stage.BAKING)
    run.died(NEW)
    assert run.wait(11) == [End(OLD, Manner.KILL)]
    run.died(OLD)
    assert run.end == (Outcome.BROKEN, None)


def test_old_resumes_without_a_word() -> None:
    run = Run().to(Stage.GIVING)
    run.died(NEW)
    run.said(OLD, "beat")
    assert run.wait(11) == [Tell(OLD, "adopt", NEW)]
    run.said(OLD, "taken", moved=0)
    assert run.end == (Outcome.REFUSED, OLD)


def test_one_that_cannot_be_killed_ends_it() -> None:
    run = Run().to(Stage.GIVING)
    run.wait(61)
    run.wait(11)
    assert run.end == (Outcome.BROKEN, None)


# The gate


def test_gate_that_fails_takes_everything_back() -> None:
    run = Run().to(Stage.BAKING)
    for second in range(4):
        run.beat(1000 * second, errors=100 * second)
    assert run.wait(0) == [Tell(NEW, "give")]
    assert "300 of 3000 requests failed (10.0%, before 0.0%)" in str(run.machine.why)
    assert run.all_given(NEW) == [End(NEW, Manner.LEAVE)]
    assert run.end == (Outcome.ROLLED_BACK, OLD)


def test_silence_is_not_asked_to_give() -> None:
    run = Run().to(Stage.BAKING)
    run.beat(10)
    assert run.wait(6) == [End(NEW, Manner.KILL)]
    assert run.died(NEW) == [Tell(OLD, "adopt", NEW)]
    run.said(OLD, "taken", moved=7)
    assert run.end == (Outcome.ROLLED_BACK, OLD)
    assert "it has said nothing for" in str(run.machine.why)


def test_rollback_is_heeded_only_while_it_bakes() -> None:
    run = Run().to(Stage.GIVING)
    assert run.do(run.machine.roll_back(run.now_s, "by hand")) == []
    run = Run().to(Stage.BAKING)
    assert run.do(run.machine.roll_back(run.now_s, "by hand")) == [Tell(NEW, "give")]


# A supervisor that comes anew


@pytest.mark.parametrize("stage", [Stage.GIVING, Stage.RETURNING])
def test_resumed_while_it_moves(stage: Stage) -> None:
    run = Run()
    run.do(run.machine.resume(0, stage))
    run.all_given(OLD if stage is Stage.GIVING else NEW)
    if stage is Stage.GIVING:
        assert run.machine.stage is Stage.BAKING
    else:
        assert run.end == (Outcome.ROLLED_BACK, OLD)


def test_time_left() -> None:
    run = Run().to(Stage.GIVING)
    assert run.machine.left_s(run.now_s) is None
    run.now_s += 2
    run.said(OLD, "progress", moved=20, total=100, in_flight=4)
    assert run.machine.left_s(run.now_s) == pytest.approx(8)
    run.all_given(OLD)
    run.now_s += 10
    assert run.machine.left_s(run.now_s) == pytest.approx(20)


@pytest.mark.parametrize("seed", range(300))
def test_every_course_comes_to_its_end(seed: int) -> None:
    """Words and deaths by chance: it ends, and who serves is somebody who lives."""
    rand = random.Random(seed)
    run = Run()
    run.do(run.machine.checked(0, None))
    dead: set[Who] = set()
    for _ in range(400):
        if run.machine.stage is Stage.DONE:
            break
        who = rand.choice([w for w in Who if w not in dead] or [OLD])
        if rand.random() < 0.04:
            dead.add(who)
            run.died(who)
        elif rand.random() < 0.5:
            say = rand.choice(["ready", "serving", "given", "taken", "refused", "beat", "progress"])
            run.said(who, say, moved=1, total=2, left=0, why="by chance")
        else:
            asked = run.wait(rand.uniform(0, 5))
            for action in asked:
                if isinstance(action, End) and action.manner is Manner.KILL:
                    dead.add(action.who)
                    run.died(action.who)
    run.wait(1000)
    for _ in range(5):
        run.wait(1000)
    outcome, serves = run.end
    assert (serves is None) == (outcome is Outcome.BROKEN)
    assert serves is None or serves not in dead
