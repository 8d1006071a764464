"""One node's agents: started, watched, started again after a crash, upgraded, stopped.

Everything happens in one thread: words and deaths come as callbacks, time as a tick. At most
one agent is the current one; during an upgrade there are two, and `upgrading` has them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from installer import agent_lock
from installer.opsd import ending, estates, recovery, versions
from installer.opsd.agent import Agent
from installer.opsd.restarts import Circuit, Restarts, RestartTimes
from installer.opsd.settings import OpsdSettings
from installer.opsd.status import summary
from installer.opsd.systemd import Notifier
from installer.opsd.upgrade_types import Manner, Outcome, Stage
from installer.opsd.upgrading import Upgrading

TICK_S = 0.2
_OTHER_S = 1.0
"""How often to look whether an agent of somebody else has gone."""

_MAX_FAILED_ADOPTIONS = 2
"""Agents that died over the same estate: then it is the estate."""

log = structlog.get_logger("opsd")


class Supervisor:
    """`withdraw` takes a dead agent's listeners out of the kernel."""

    def __init__(
        self,
        settings: OpsdSettings,
        notifier: Notifier,
        withdraw: Callable[[], None],
        stored: Mapping[str, int],
        rand: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self.restarts = Restarts(RestartTimes.of(settings.ops), rand or random.Random())
        self.current: Agent | None = None
        self.upgrading: Upgrading | None = None
        self.leaving: set[Agent] = set()
        self.last_crash: str | None = None
        self.leaves_agents = False
        """At its end."""
        self._notifier, self._withdraw, self._stored = notifier, withdraw, stored
        self._watch = ending.Watch(settings.ops)
        self._to_release: set[int] = set()
        self._failed_adoptions = 0
        self._starting: asyncio.Task[None] | None = None
        self._start_at_s: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; then the agents are stopped, or left to who comes anew."""
        await recovery.take_charge(self, self._stored)
        if self.current is None and self.upgrading is None:
            if estates.of_the_dead(self.settings.runtime_dir):
                self._withdraw()
            versions.forget_upgrade(self.settings.state_dir)
            self._start_at_s = time.monotonic()
        watchdog_s, due_s = self._notifier.watchdog_s, 0.0
        while not stop.is_set():
            self._tick()
            if time.monotonic() >= due_s:
                self._say_alive(watchdog_s)
                due_s = time.monotonic() + min(1.0, watchdog_s or 1.0)
            try:
                async with asyncio.timeout(self._until_next_s()):
                    await stop.wait()
            except TimeoutError:
                continue
        if self.leaves_agents:
            return
        self._notifier.stopping()
        self._notifier.wait(ending.most_s(self.settings.drain_timeout_s))
        await self._stop_all()

    # Agents

    def start_agent(self, environment: Path, arguments: Iterable[str]) -> Agent:
        """Start and hold one; raises OSError."""
        config = self.settings.config_path
        argv = [
            versions.command(environment), *([str(config)] if config else []), "--supervised",
            *arguments,
        ]  # fmt: skip
        adopts = "--adopt" in argv
        agent = Agent.start(argv, self.settings.runtime_dir, environment, adopts)
        log.info("agent started", pid=agent.pid, command=" ".join(argv))
        self.hold(agent)
        return agent

    def hold(self, agent: Agent) -> None:
        """Watch an agent, and have systemd keep its pidfd over our own end."""
        agent.on_word, agent.on_death = self._on_word, self._on_death
        self._notifier.store(f"agent-{agent.pid}", agent.pidfd)
        agent.hold()

    def take(self, agent: Agent) -> None:
        """This one, which was found, is the current one from now on."""
        self.current = agent
        versions.forget_upgrade(self.settings.state_dir)
        if agent.state == "serving":
            self._serves(agent)

    def see_off(self, agent: Agent, manner: Manner) -> None:
        """It is no part of anything any more; make sure that it ends."""
        if not agent.is_dead:
            self.leaving.add(agent)
            self._run(ending.see_off(agent, manner, self.settings.drain_timeout_s))

    def _on_word(self, agent: Agent, word: Mapping[str, Any]) -> None:
        if self.upgrading is not None:
            self.upgrading.on_word(agent, word)
        elif agent is self.current and word.get("say") == "serving":
            self._serves(agent)

    def _on_death(self, agent: Agent, how: str) -> None:
        self._notifier.remove(f"agent-{agent.pid}")
        self.leaving.discard(agent)
        if self.upgrading is not None:
            self.upgrading.on_death(agent, how)
        elif agent is self.current:
            self.current = None
            self.crashed(agent, how)

    def _serves(self, agent: Agent) -> None:
        log.info("agent serves", pid=agent.pid, version=agent.version)
        self._failed_adoptions = 0
        self.restarts.serves(time.monotonic())
        self._notifier.ready()
        record = versions.load(self.settings.state_dir)
        if record.current is None and agent.environment is not None:
            versions.save(self.settings.state_dir, replace(record, current=str(agent.environment)))
        # One was adopted at its start; those of an upgrade that broke may be two.
        for pid in estates.of_the_dead(self.settings.runtime_dir):
            if pid not in self._to_release:
                path = estates.keeper_path(self.settings.runtime_dir, pid)
                agent.tell({"do": "adopt", "path": str(path)})

    # A crash, and what follows

    def crashed(self, agent: Agent, how: str) -> None:
        """The only agent has died."""
        if agent.has_served:
            self._withdraw()
        elif agent.adopts:
            self._failed_adoptions += 1
        else:
            self._to_release.add(agent.pid)  # it holds nothing but its locks
        self.last_crash = how
        wait_s = self.restarts.crashed(time.monotonic())
        if self.restarts.circuit is Circuit.OPEN or self._failed_adoptions >= _MAX_FAILED_ADOPTIONS:
            self._failed_adoptions = 0
            self._to_release.update(estates.of_the_dead(self.settings.runtime_dir), {agent.pid})
        log.error(
            "agent died", pid=agent.pid, how=how, crashes=self.restarts.crashes,
            circuit=str(self.restarts.circuit), next_start_s=round(wait_s, 3),
        )  # fmt: skip
        if self.restarts.circuit is Circuit.OPEN:
            self._notifier.ready()  # as ready as it will be: traffic goes direct
        self._start_at_s = time.monotonic() + wait_s

    async def _release(self) -> None:
        pids, self._to_release = self._to_release, set()
        for pid in pids:
            await estates.release(self.settings.runtime_dir, pid)

    def start_now(self) -> bool:
        """Somebody wants an agent at once, whatever the circuit says; False: there is one."""
        if self.current is not None or self.upgrading is not None:
            return False
        self._start_at_s = time.monotonic()
        return True

    async def _start(self) -> None:
        for agent in [agent for agent in self.leaving if agent.was_killed]:
            await agent.ended(ending.LEAVE_S)
        await self._release()
        if (other := agent_lock.holder(self.settings.runtime_dir)) and estates.is_alive(other):
            self.last_crash = f"process {other} is an agent without a supervisor; end that one"
            self._start_at_s = time.monotonic() + _OTHER_S
            return
        estates.clean(self.settings.runtime_dir)
        dead = estates.of_the_dead(self.settings.runtime_dir)
        path = [str(estates.keeper_path(self.settings.runtime_dir, pid)) for pid in dead[:1]]
        self.restarts.trying()
        environment = versions.to_start(self.settings.state_dir)
        before = ["--adopt", *path] if path else []
        try:
            self.current = self.start_agent(environment, before)
        except OSError as error:
            self._not_started(f"{versions.command(environment)}: {error.strerror}")

    def _not_started(self, why: str) -> None:
        self.last_crash, wait_s = why, self.restarts.crashed(time.monotonic())
        log.error("agent not started", why=why, next_start_s=round(wait_s, 3))
        self._start_at_s = time.monotonic() + wait_s

    # Upgrades

    def upgrade(self, upgrading: Upgrading, resume: Stage | None = None) -> None:
        """Begin; there is a current agent, and no other upgrade."""
        self.upgrading, self.current = upgrading, None
        self._run(self._upgrade(upgrading, resume))

    async def _upgrade(self, upgrading: Upgrading, resume: Stage | None) -> None:
        try:
            machine = await upgrading.run(resume)
        except Exception as error:
            log.exception("upgrade failed")
            machine = upgrading.break_off(repr(error))
        survivor = upgrading.survivor
        self.upgrading, self.current = None, survivor
        if machine.outcome is not Outcome.BROKEN:
            self._to_release |= upgrading.estates_to_release
        if survivor is None:
            versions.forget_upgrade(self.settings.state_dir)
            self.crashed(upgrading.old, machine.why or "")
            return
        if survivor is upgrading.new:
            versions.confirm(self.settings.state_dir, upgrading.target)
        else:
            versions.forget_upgrade(self.settings.state_dir)
        self._serves(survivor)

    # Time

    @property
    def next_start_s(self) -> float | None:
        """Until an agent is started; None when none is to be."""
        if self._start_at_s is None:
            return None
        return round(max(0.0, self._start_at_s - time.monotonic()), 1)

    def _tick(self) -> None:
        now_s = time.monotonic()
        self.restarts.tick(now_s)
        if self._to_release and self._starting is None:
            self._starting = self._run(self._release())
        if self._starting is not None and self._starting.done():
            self._starting = None
        if self._start_at_s is not None and now_s >= self._start_at_s and self._starting is None:
            self._start_at_s = None
            self._starting = self._run(self._start())
        self._watch.look(self.current, now_s, self.restarts.crashes)

    def _until_next_s(self) -> float:
        until_s = TICK_S if self._start_at_s is None else self._start_at_s - time.monotonic()
        return min(TICK_S, max(0.001, until_s))

    def _say_alive(self, watchdog_s: float | None) -> None:
        if watchdog_s is not None:
            self._notifier.watchdog()
        if not self._notifier.is_ready:
            self._notifier.wait(10.0)
        self._notifier.status(summary(self))

    # The end

    async def _stop_all(self) -> None:
        """Every agent drains, or leaves; bounded."""
        self._start_at_s = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        held = {self.current, *self.leaving}
        if self.upgrading is not None:
            held |= {self.upgrading.old, self.upgrading.new}
        self.current = self.upgrading = None
        agents = [agent for agent in held if agent is not None and not agent.is_dead]
        self.leaving = set(agents)
        await ending.stop_all(agents, self.settings.drain_timeout_s)
        if agents:
            self._withdraw()
        self._to_release.update(estates.of_the_dead(self.settings.runtime_dir))
        await self._release()
        estates.clean(self.settings.runtime_dir)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("failed", exc_info=error)
            if self.current is None and self.upgrading is None:
                self._not_started(repr(error))  # nobody thought of it, but it is not the last try
