"""Carries an upgrade out: what the state machine asks for is done, what happens is told to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from installer.opsd import estates, versions
from installer.opsd.agent import Agent
from installer.opsd.health import GateLimits
from installer.opsd.settings import OpsdSettings
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
from installer.opsd.versions import Record, VersionError

TICK_S = 0.1
_PROGRESS_S = 1.0

Line = dict[str, Any]

log = structlog.get_logger("opsd")


class Host(Protocol):
    """The supervisor, as an upgrade sees it."""

    def start_agent(self, environment: Path, arguments: Iterable[str]) -> Agent:
        """Start and hold one; raises OSError."""

    def see_off(self, agent: Agent, manner: Manner) -> None:
        """It is no part of anything any more; make sure that it ends."""


@dataclass(frozen=True, slots=True)
class Subscriber:
    """Somebody who is told; `wanted` is the end that they asked for."""

    tell: Callable[[Line], None]
    wanted: Outcome


def upgrade_times(settings: OpsdSettings, bake_s: float | None) -> UpgradeTimes:
    """As configured; `bake_s` as asked for this time."""
    ops = settings.ops
    return UpgradeTimes(
        check_s=ops.check_s + 5.0,  # it has a deadline of its own, which can say more
        start_s=ops.start_s,
        move_s=ops.move_s,
        adopt_s=ops.adopt_s,
        bake_s=ops.bake_s if bake_s is None else bake_s,
        gate=GateLimits(
            min_requests=ops.gate_min_requests,
            error_share=ops.gate_error_percent / 100,
            latency_factor=ops.gate_latency_factor,
            latency_ms=ops.gate_latency_ms,
            lag_ms=ops.gate_lag_ms,
            silent_s=ops.gate_silent_s,
        ),
    )


class Upgrading:
    """One upgrade from its beginning, or from where it was found, to its end."""

    def __init__(
        self,
        host: Host,
        settings: OpsdSettings,
        old: Agent,
        target: Path,
        *,
        bake_s: float | None = None,
        new: Agent | None = None,
    ) -> None:
        times = upgrade_times(settings, bake_s)
        self.machine = Upgrade(times, old.pulse.health())
        self.old, self.new, self.target = old, new, target
        self.to_version = "unknown" if new is None else new.version
        self.estates_to_release: set[int] = set()
        """Of dead agents whose estate nobody took: what they held, a living one holds too."""
        self._host, self._settings = host, settings
        self._subscribers: list[Subscriber] = []
        self._done = asyncio.Event()
        self._started_s = time.monotonic()
        self._told_s = 0.0
        self._untold: list[tuple[Agent, Line]] = []

    async def run(self, resume: Stage | None = None) -> Upgrade:
        """To its end; the machine then says how it ended. Cancelled, it leaves all as it is."""
        if resume is None:
            self._do(self.machine.begin(time.monotonic()))
            await self._check()
        else:
            self._do(self.machine.resume(time.monotonic(), resume))
            for agent in filter(None, (self.old, self.new)):
                if isinstance(last := agent.hello.get("last"), dict):
                    self.on_word(agent, last)
        while not self._done.is_set():
            self._tick()
            try:
                async with asyncio.timeout(TICK_S):
                    await self._done.wait()
            except TimeoutError:
                continue
        return self.machine

    def break_off(self, why: str) -> Upgrade:
        """End it where it is, after an error of ours; the machine then says how."""
        self._do(self.machine.break_off(f"the supervisor failed: {why}"))
        return self.machine

    def subscribe(self, subscriber: Subscriber) -> None:
        """They are told where it is now, and everything from now on."""
        self._subscribers.append(subscriber)
        if self.machine.stage is not Stage.DONE:
            subscriber.tell(self._line(Report("stage", self.machine.why or ""), subscriber.wanted))

    def unsubscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.remove(subscriber)

    def roll_back(self, why: str) -> bool:
        """Whether it could be: while it bakes."""
        if not self.machine.can_roll_back:
            return False
        self._do(self.machine.roll_back(time.monotonic(), why))
        return True

    def line(self) -> Line:
        """Where it is."""
        return self._line(Report("stage", self.machine.why or ""), Outcome.UPGRADED)

    @property
    def survivor(self) -> Agent | None:
        """Who serves after the end."""
        agent = {Who.OLD: self.old, Who.NEW: self.new, None: None}[self.machine.serves]
        return None if agent is None or agent.is_dead else agent

    # What happens

    def on_word(self, agent: Agent, word: Mapping[str, Any]) -> None:
        if (who := self._who(agent)) is not None:
            self._do(self.machine.said(time.monotonic(), who, word))

    def on_death(self, agent: Agent, how: str) -> None:
        if (who := self._who(agent)) is not None:
            log.warning("agent died during an upgrade", which=str(who), pid=agent.pid, how=how)
            self.estates_to_release.add(agent.pid)
            self._do(self.machine.died(time.monotonic(), who, how))

    async def _check(self) -> None:
        ops, hello = self._settings.ops, self.old.hello
        why = None
        try:
            facts = await versions.check(
                self.target, self._settings.config_path, hello, ops.check_s
            )
            self.to_version = facts.version
        except VersionError as error:
            why = str(error)
        self._do(self.machine.checked(time.monotonic(), why))

    def _tick(self) -> None:
        now_s = time.monotonic()
        untold, self._untold = self._untold, []
        for agent, word in untold:
            self._say(agent, word)
        self._do(self.machine.tick(now_s))
        if self.machine.stage is not Stage.DONE and now_s - self._told_s >= _PROGRESS_S:
            self._report(Report("progress", ""))

    def _who(self, agent: Agent) -> Who | None:
        if agent is self.old:
            return Who.OLD
        return Who.NEW if agent is self.new else None

    def _agent(self, who: Who) -> Agent | None:
        return self.old if who is Who.OLD else self.new

    # What is to be done

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                self._start()
            elif isinstance(action, Report):
                self._report(action)
            elif (agent := self._agent(action.who)) is not None:
                self._do_to(agent, action)

    def _do_to(self, agent: Agent, action: Tell | End) -> None:
        if isinstance(action, End):
            self._host.see_off(agent, action.manner)
            return
        word: Line = {"do": action.do}
        if action.estate_of is not None and (dead := self._agent(action.estate_of)) is not None:
            word["path"] = str(estates.keeper_path(self._settings.runtime_dir, dead.pid))
            self.estates_to_release.discard(dead.pid)
        self._say(agent, word)

    def _say(self, agent: Agent, word: Line) -> None:
        if not agent.is_dead and not agent.tell(word):
            self._untold.append((agent, word))  # its link is made anew

    def _start(self) -> None:
        path = estates.handover_path(self._settings.runtime_dir, self.old.pid)
        try:
            self.new = self._host.start_agent(self.target, ("--take-over", str(path)))
        except OSError as error:
            how = f"it could not be started: {error.strerror}"
            self._do(self.machine.died(time.monotonic(), Who.NEW, how))
            return
        self._record()

    def _report(self, report: Report) -> None:
        machine = self.machine
        self._told_s = time.monotonic()
        if report.event != "progress":
            log.info("upgrade", what=report.event, stage=str(machine.stage), text=report.text)
            self._record()
        for subscriber in list(self._subscribers):
            subscriber.tell(self._line(report, subscriber.wanted))
        if machine.stage is Stage.DONE:
            self._done.set()

    def _record(self) -> None:
        """For a supervisor that comes anew."""
        if self.machine.stage is Stage.DONE or self.new is None:
            return
        state_dir = self._settings.state_dir
        record = versions.load(state_dir)
        upgrade = {
            "stage": str(self.machine.stage), "old_pid": self.old.pid, "new_pid": self.new.pid,
            "to": str(self.target), "bake_s": self.machine.times.bake_s,
        }  # fmt: skip
        versions.save(state_dir, Record(record.current, record.previous, upgrade))

    def _line(self, report: Report, wanted: Outcome) -> Line:
        machine, now_s = self.machine, time.monotonic()
        after = machine.pulse.health()
        left_s = machine.left_s(now_s)
        return {
            "event": report.event,
            "stage": str(machine.stage),
            "text": report.text,
            "from": _described(self.old, self.old.environment, self.old.version),
            "to": _described(self.new, self.target, self.to_version),
            "moved": machine.moved.moved,
            "total": machine.moved.total,
            "stay": machine.moved.left,
            "in_flight": machine.moved.in_flight,
            "elapsed_s": round(now_s - self._started_s, 3),
            "left_s": None if left_s is None else round(left_s, 1),
            "baked_s": machine.baked_s(now_s),
            "before": asdict(machine.before) if machine.before else None,
            "after": asdict(after) if after else None,
            "outcome": str(machine.outcome) if machine.outcome else None,
            "ok": machine.outcome is wanted if machine.outcome else None,
            "next": _next(machine.outcome, wanted),
            "done": machine.stage is Stage.DONE,
        }


def _described(agent: Agent | None, environment: Path | None, version: str) -> Line:
    return {
        "version": version,
        "environment": str(environment) if environment else None,
        "pid": agent.pid if agent else None,
    }


def _next(outcome: Outcome | None, wanted: Outcome) -> str | None:
    if outcome is None or outcome is wanted:
        return None
    if outcome is Outcome.UNWELL:
        return "moactl agent rollback, which starts the previous version"
    return "moactl agent status, and the log: journalctl -u moa-opsd"
