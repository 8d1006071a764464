"""The agent's parts put together, and its life: it starts, serves, gives to a successor, and
ends; or takes everything back.

Order of the start: registry, listeners (opened here, or another agent's), and only then the
gate. Order of the end: gate shut, connections drained; a *retired* agent, which another one
has succeeded, just goes.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog

from installer import handover, pulse
from installer.admin import Admin, AgentFacts
from installer.agent_lock import LOCK_NAME, PINS, AgentLocks
from installer.app_settings import kernel_settings, open_registry
from installer.config import Config
from installer.estate import Estate, EstateError, fetch
from installer.first_table import first_table
from installer.handover import Entrance, Handover
from installer.keeping import Keeping
from installer.kernel_gate import KernelGate
from installer.link import AgentLink, Word
from installer.peer_settings import peer_settings
from installer.peering import follower, open_directory
from installer.switches import SwitchBoard, follow_switches
from interceptor.errors import InterceptorError
from interceptor.maps import Maps
from interceptor.node import LOCK_TIMEOUT_S, Node
from proxy.app import AppSettings, ProxyApp
from proxy.core.known import KnownInstances
from proxy.net.adoption import Adopted
from proxy.net.board import Board
from proxy.net.handover.giver import GiveSettings
from proxy.possession import Possession
from proxy.registry.announce import MeshAnnouncer
from proxy.registry.switched import SwitchedRegistry

RECONCILE_S = 1.0
ADOPT_S = 1.0
"""A keeper that takes longer for a step has trouble of its own, and we serve meanwhile."""
NEEDED = frozenset({"outbound4", "inbound4", LOCK_NAME, PINS})
"""What an agent must have left so that another can serve in its place."""
BEAT_S = 1.0
"""How often the supervisor is told how things go."""

log = structlog.get_logger("agent")


@dataclass(frozen=True, slots=True)
class Start:
    """How an agent begins: alone, or as another one's successor."""

    supervised: bool = False
    take_over: Path | None = None
    adopt: Path | None = None


class Role(StrEnum):
    """What an agent is to the node."""

    STARTING = "starting"
    SERVING = "serving"
    RETIRED = "retired"


class AgentProcess:
    """One agent, from `run`'s first line to its last; implements `Surroundings`."""

    def __init__(
        self,
        config: Config,
        config_path: Path | None,
        settings: AppSettings,
        node: Node,
        maps: Maps,
        locks: AgentLocks,
        start: Start,
        estate: Estate | None = None,
    ) -> None:
        """`maps` stay the caller's; `locks` are held already unless there is a `take_over`, or
        an `estate` of a dead agent, which has them."""
        self.role = Role.STARTING
        self._config = config
        self._config_path = config_path
        self._settings = settings
        self._node = node
        self._maps = maps
        self._locks = locks
        self._start = start
        self._estate = estate
        self._keeping: Keeping | None = None
        self._handover: Handover | None = None
        self.has_installed = True
        """Whether the kernel has the programs of this version, as far as we know."""

    async def run(self) -> None:
        """Until SIGTERM or SIGINT, or until it is told to leave."""
        self._build()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(
            signal.SIGHUP, log.warning, "SIGHUP ignored: a configuration is read once, at the start"
        )
        if self._start.supervised:
            self._link.listen()
        try:
            async with asyncio.TaskGroup() as group:
                await self._live(group)
        except Exception as error:
            if self._keeping is not None and self.role is Role.SERVING:
                # An error of ours costs the clients nothing: the next agent has them all.
                log.critical("died", error=repr(error), exc_info=True)
                self._keeping.die()
            raise
        finally:
            self._entrance.close()
            if self._start.supervised:
                self._link.close()
            if self._keeping is not None:
                self._keeping.end()
        log.info("stopped")

    def _build(self) -> None:
        config = self._config
        known = KnownInstances()
        self._stop = asyncio.Event()
        self._gate = gate = KernelGate(self._node, self._maps, config, known)
        self._registry = registry = SwitchedRegistry(open_registry(config))
        self._board = board = SwitchBoard(
            config.node.name, config.node.application, config.agent.state_dir, registry
        )
        gate.is_off, gate.hidden = lambda: board.is_off, lambda: registry.hidden
        self._facts = AgentFacts(config, self._config_path, gate.generation, time.time())
        self._agents = open_directory(peer_settings(config))
        self._keeping = keeping = Keeping.begin(config.agent.runtime_dir)
        self._app = ProxyApp(
            self._settings,
            registry,
            gate,
            gate.is_local,
            known,
            caller_of=self._agents.caller,
            board=keeping.board if keeping is not None else None,
        )
        self._possession = Possession(self._app, self)
        self._admin = Admin(self._app, self._facts, board)
        self._link = AgentLink(config.agent.runtime_dir, handover.facts(), self._on_word)
        self._entrance = Entrance(config.agent.runtime_dir, self._on_successor)
        self._announcer = MeshAnnouncer(registry, gate.is_local, f"agent:{config.node.name}")

    async def _live(self, group: asyncio.TaskGroup) -> None:
        config, gate, app = self._config, self._gate, self._app
        background = [group.create_task(self._registry.run())]
        if config.peer.listen:
            follow = follower(peer_settings(config), self._agents, announce=False)
            background.append(group.create_task(follow()))
        await first_table(self._registry)
        self._board.start()
        app.prepare()
        await self._admin.start()
        if self._start.take_over is not None:
            await self._take_over(self._start.take_over)
        elif self._estate is not None:
            self._succeed(self._estate)
        else:
            app.start()
            self.on_serving()
        self._board.on_change = gate.follow
        background.append(group.create_task(follow_switches(config, self._board)))
        heartbeat_s = config.agent.heartbeat_ms / 1000
        background.append(group.create_task(pulse.beat(gate, self._facts, heartbeat_s)))
        background.append(group.create_task(pulse.reconcile(gate)))
        background.append(group.create_task(pulse.tell(app, self._facts, self._tell)))
        if config.registry.kind == "redis":
            background.append(group.create_task(self._announcer.run()))
        # Start-up garbage is done with; what is left lives as long as the agent.
        gc.collect()
        gc.freeze()
        log.info("ready", generation=gate.generation, registry=self._registry.status().state.value)
        await self._stop.wait()
        await self._end(group)
        await self._admin.close()
        for task in background:
            task.cancel()

    async def _end(self, group: asyncio.TaskGroup) -> None:
        if self.role is Role.RETIRED and self._handover is not None:
            await self._handover.wait_given()
        if self.role is not Role.SERVING:
            # Another agent serves, or the one before this one still does.
            self._locks.leave()
            if self._handover is not None:
                self._handover.close()  # Who ends does not step forward any more.
            if self._app.sessions:
                await self._app.drain(self._config.agent.drain_timeout_s)
            self._app.close()
            return
        self._entrance.close()
        if self._handover is not None:
            # What is half given stays here, and is drained. A retired one serves from now on:
            # it opens the gate once it is left alone, and we touch it no more.
            self._gate.shut()
            self._gate.rest()
            if self._handover.is_shared:
                self._app.rest()
                self._locks.leave()
            self._handover.abandon()
        log.info("draining", connections=len(self._app.sessions))
        if self._handover is not None and self._handover.is_shared:
            # The other one serves, and its marks are the same.
            await self._app.drain(self._config.agent.drain_timeout_s)
            return
        withdrawal = group.create_task(self._announcer.withdraw())
        await self._app.drain(self._config.agent.drain_timeout_s)
        await withdrawal

    # The agent before this one, and the one after (docs/UPGRADE.md)

    async def _take_over(self, path: Path) -> None:
        """Return once this agent serves; raises InterceptorError or OSError when it cannot."""
        self._serves = asyncio.Event()
        gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def on_gone(why: str) -> None:
            if not gone.done():
                gone.set_result(why)
            self._on_other_gone(why)

        sock = await handover.connect(path)
        other = Handover(sock, self._possession, self._give_settings(), self._say, on_gone)
        self._handover = other

        def on_refused(why: str) -> None:
            if self.role is Role.STARTING:
                other.close()
                on_gone(f"the other agent refuses: {why}")
            else:
                other.offer()

        other.on_refused = on_refused
        await _first(gone, other.is_greeted, self._stop)
        if not gone.done() and not self._stop.is_set():
            other.offer()
            self._say({"say": "ready"})
            await _first(gone, self._serves, self._stop)
        if self.role is not Role.SERVING and not self._stop.is_set():
            why = gone.result() if gone.done() else "stopped"
            raise InterceptorError(f"take over from {path}: {why}; the other agent serves on")

    # An agent that died (docs/UPGRADE.md)

    def _succeed(self, estate: Estate) -> None:
        """Serve in the place of the dead agent."""
        shared = {name: fd for name in estate.names if (fd := estate.take(name)) is not None}
        self._possession.take_shared(shared, 1)
        self._possession.serve()
        self._inherit(estate)

    def _adopt(self, path: Path) -> None:
        """Go on with the connections of an agent that died, besides our own."""
        if self._handover is not None:
            # What it had prepared here, and not committed, is its own, and in its estate.
            self._handover.notice_death()
        try:
            estate = fetch(path, ADOPT_S)
        except EstateError as error:
            log.warning("nothing adopted", keeper=str(path), error=str(error))
            self._say({"say": "refused", "why": str(error)})
            return
        if self.role is Role.RETIRED:
            self._possession.step_forward()
        if estate is None:
            self._say({"say": "taken", "moved": 0})
        else:
            self._inherit(estate)

    def _inherit(self, estate: Estate) -> None:
        board = Board.read(estate.board)
        if board is None:
            log.warning("nothing adopted: the dead agent's board is of another layout, or empty")
            found = Adopted()
        else:
            found = self._possession.inherit(board, estate.descriptors)
            board.close()
        # Only now is all of it noted on a board of our own.
        estate.done(0)
        log.info(
            "adopted",
            connections=len(found.connections),
            reset=len(found.lost),
            reasons=dict(Counter(found.lost)),
            had_gone=found.over,
        )
        self._say({"say": "taken", "moved": len(found.connections)})

    def _give_settings(self) -> GiveSettings:
        return GiveSettings(deadline_s=self._config.agent.handover_timeout_s)

    def _on_successor(self, sock: socket.socket) -> str:
        if self.role is not Role.SERVING:
            return "this agent does not serve"
        if self._handover is not None:
            return "another upgrade is under way"
        self._handover = Handover(
            sock, self._possession, self._give_settings(), self._say, self._on_other_gone
        )
        if not self._start.supervised:
            self._handover.give()
        return ""

    def _on_other_gone(self, why: str) -> None:
        """A successor that dies, or a predecessor that leaves."""
        self._handover = None
        log.info("the other agent has gone", reason=why, role=self.role.value)
        if self.role is Role.RETIRED:
            # Rather serve twice than not at all: what the other one had is for `adopt`.
            self._possession.step_forward()
            self._say({"say": "refused", "why": why})

    def _on_word(self, word: Word) -> None:
        """What the supervisor wants."""
        match word["do"]:
            case "give" if self._handover is not None and self.role is Role.SERVING:
                self._handover.give()
            case "adopt" if isinstance(word.get("path"), str):
                self._adopt(Path(word["path"]))
            case "leave" if self.role is not Role.SERVING:
                self._stop.set()
            case "stop":
                self._stop.set()
            case _:
                log.warning("not done", word=word, role=self.role.value)
                self._say({"say": "refused", "why": f"cannot {word['do']}: {self.role.value}"})

    def _say(self, word: Word) -> None:
        self._link.say(word)

    def _tell(self, word: Word) -> None:
        """Of how things go, which is only for the one that serves to say."""
        if self.role is Role.SERVING:
            self._link.say(word)

    # What belongs to the process (`Surroundings`)

    def locks(self) -> Mapping[str, int]:
        return self._locks.descriptors

    def take_locks(self, locks: Mapping[str, int]) -> None:
        self._locks.take(locks)

    def on_taking(self) -> None:
        if not self.has_installed:
            try:
                self._install()
            except InterceptorError as error:
                raise ValueError(str(error)) from error

    def on_staying(self) -> None:
        """The other one may have put its programs into the kernel."""
        self._bring_back_programs()

    def _bring_back_programs(self) -> None:
        """Whatever is in the way, such as an operator's command with the lock: who serves waits
        for nobody. The other version's programs will do meanwhile, their maps are the same."""
        try:
            self._install(lock_timeout_s=0)
        except (InterceptorError, OSError) as error:
            self.has_installed = False
            log.warning("programs not brought back", error=str(error), again_in_s=RECONCILE_S)
            asyncio.get_running_loop().call_later(RECONCILE_S, self._try_again)

    def _try_again(self) -> None:
        if self.role is Role.SERVING and not self.has_installed and not self._stop.is_set():
            self._bring_back_programs()

    def _install(self, lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
        report = self._node.install(kernel_settings(self._config), lock_timeout_s=lock_timeout_s)
        self.has_installed = True
        log.info("programs", changed=list(report.changed_programs))

    def on_serving(self) -> None:
        """All that makes us the node's agent for others to see."""
        if not self.has_installed:
            # The agent that served until now may have been of another version.
            self._bring_back_programs()
        self.role = Role.SERVING
        self._locks.claim()
        if self._keeping is not None:
            self._keeping.name(self._possession.shared())
        self._admin.publish()
        self._gate.reconcile()
        self._entrance.open()
        if self._start.take_over is not None:
            self._serves.set()
        self._say(
            {
                "say": "serving",
                "pid": os.getpid(),
                "version": handover.facts()["version"],
                "generation": self._gate.generation,
                "connections": len(self._app.sessions),
            }
        )

    def on_resting(self) -> None:
        self.role = Role.RETIRED
        self.has_installed = False
        if self._keeping is not None:
            self._keeping.name({})
        self._entrance.close()


async def _first(future: asyncio.Future[str], *events: asyncio.Event) -> None:
    """Wait for whichever comes first."""
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait([future, *tasks], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
