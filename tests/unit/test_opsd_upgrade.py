"""The state machine of an upgrade: gates, refusals, deadlines, and courses by chance."""

from __future__ import annotations

import random

import pytest

from installer.opsd.upgrade_types import (
    End,
    Manner,
    Outcome,
    Stage,
    Start,
    Tell,
    Who,
)
from tests.unit.upgrade_run import NEW, OLD, Run


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
