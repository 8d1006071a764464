"""The state machine of an upgrade: each death at each stage."""

from __future__ import annotations

import pytest

from installer.opsd.upgrade_types import (
    End,
    Manner,
    Outcome,
    Stage,
    Tell,
    Who,
)
from tests.unit.upgrade_run import NEW, OLD, Run


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


@pytest.mark.parametrize(
    ("stage", "end", "loser"),
    [
        (Stage.CHECKING, (Outcome.REFUSED, OLD), None),
        (Stage.STARTING, (Outcome.REFUSED, OLD), NEW),
        (Stage.GIVING, (Outcome.REFUSED, OLD), NEW),
        (Stage.BAKING, (Outcome.UNWELL, NEW), OLD),
        (Stage.RETURNING, (Outcome.UNWELL, NEW), OLD),
    ],
)
def test_supervisor_fails(stage: Stage, end: tuple[Outcome, Who], loser: Who | None) -> None:
    """By an error of its own: who serves stays, and an upgrade is not under way for ever."""
    run = Run().to(stage)
    told = run.do(run.machine.break_off("RuntimeError()"))
    assert told == ([End(loser, Manner.LEAVE)] if loser else [])
    assert run.end == end
    assert run.machine.break_off("again") == []


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


def test_old_serves_by_itself_while_the_new_one_bakes() -> None:
    """They have lost each other, both live: two that serve are one too many."""
    run = Run().to(Stage.BAKING)
    assert run.said(OLD, "serving") == [End(NEW, Manner.KILL)]
    assert run.said(OLD, "refused", why="hung up") == []
    assert run.died(NEW) == [Tell(OLD, "adopt", NEW)]
    run.said(OLD, "taken", moved=7)
    assert run.end == (Outcome.ROLLED_BACK, OLD)
