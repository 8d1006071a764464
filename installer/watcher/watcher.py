"""One watcher: pings go on all the time, and twice a round it says what it thinks and acts on it.

A step is: renew the lease, read what is offline, follow what the registry names now, vote. It
acts only on a registry that was heard within seconds, after one lease without a gap, and through
scripts that look again before they change anything; whatever fails ends the step, changes
nothing, and the next step begins anew.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import structlog
from redis.exceptions import RedisError

from installer.config import Config
from installer.watcher.targets import wires
from proxy.core.model import MAINT, Address, ServiceKey
from proxy.core.quorum import Settling, votes_needed
from proxy.core.watch import Opinion, WatchBook, WatchSettings
from proxy.net.pinger import Pinger, PingSettings
from proxy.registry.base import RegistryState
from proxy.registry.redis import RedisRegistry
from proxy.registry.watch import BATCH, Lease, Offline, Outcome, Vote, Voted, WatchStore
from proxy.registry.watch_log import Entry

log = structlog.get_logger("watcher")


class State(StrEnum):
    """What a watcher does now."""

    SETTLING = "SETTLING"
    """It has not seen the others for one lease yet: it pings and changes nothing."""
    WATCHING = "WATCHING"
    DOUBT = "DOUBT"
    """More than half of everything looks dead from here: it takes nothing out."""
    BLIND = "BLIND"
    """The registry does not answer: it pings and changes nothing."""


class Watcher:
    """Owns the decisions; the registry, the store and their ends belong to the caller."""

    def __init__(
        self,
        config: Config,
        registry: RedisRegistry,
        store: WatchStore,
        pings: PingSettings,
    ) -> None:
        settings = config.watcher
        self._settings = settings
        self._who = config.node.name
        self._registry = registry
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._book = WatchBook(WatchSettings(settings.fall, settings.rise))
        self._pinger = Pinger(self._loop, pings, self._on_ping)
        self._settling = Settling(settings.lease_ms / 1000)
        self._reasons: dict[Address, str] = {}
        self._offline: set[tuple[ServiceKey, Address]] = set()
        self._votes: set[Vote] = set()
        self._kept_last: set[tuple[ServiceKey, Address]] = set()
        self._doubted = False
        self._since_s = time.time()
        self._renewed_s = 0.0
        self.state = State.SETTLING

    async def run(self) -> None:
        """Watch until cancelled; gives the lease back at the end."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pinger.run())
            tasks.create_task(self._step_for_ever())

    async def _step_for_ever(self) -> None:
        try:
            while True:
                try:
                    await self._step()
                except (RedisError, OSError, TimeoutError) as error:
                    self._go_blind(str(error) or "no answer in time")
                except Exception as error:
                    # redis-py lets ValueError and its like through when a peer speaks no RESP.
                    log.exception("step failed")
                    self._go_blind(repr(error))
                await asyncio.sleep(self._settings.interval_ms / 2000)
        finally:
            try:
                await self._store.resign()
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("lease not given back", reason=str(error))

    async def _step(self) -> None:
        lease = await self._renewed()
        now_s = self._loop.time()
        table = self._registry.table
        offline = await self._store.offline(table.instances_by_key)
        self._follow(offline)
        registry = self._registry.status()
        if registry.state not in (RegistryState.SYNCED, RegistryState.DEGRADED):
            self._go_blind(registry.detail)
            return
        await self._tell_doubt()
        if not self._settling.may_act(now_s):
            self._enter(State.SETTLING)
            return
        self._enter(State.DOUBT if self._book.in_doubt else State.WATCHING)
        await self._vote(offline, lease)
        await self._forget_old(offline, lease.now_ms)

    async def _renewed(self) -> Lease:
        lease = await self._store.renew(self._facts())
        self._renewed_s = self._loop.time()
        self._settling.renewed(self._renewed_s, lease.was_held)
        return lease

    def _follow(self, offline: list[Offline]) -> None:
        found = {(entry.key, entry.address) for entry in offline}
        for _, address in found ^ self._offline:
            # Taken out, put back, or entered anew by itself: judged by what comes now.
            self._book.forget(address)
        self._offline = found
        targets = wires(self._registry.table, offline)
        self._pinger.follow(targets)
        self._book.retain(targets.keys())

    async def _vote(self, offline: list[Offline], lease: Lease) -> None:
        votes = [*self._down_votes(), *self._up_votes(offline)]
        await self._store.withdraw(self._votes - set(votes))
        self._votes = set(votes)
        self._kept_last &= {(vote.key, vote.address) for vote in votes}
        for start in range(0, len(votes), BATCH):
            # In batches, so that what is changed before one fails is in the log, and so that
            # thousands at once do not cost the lease.
            if self._loop.time() - self._renewed_s > self._settings.interval_ms / 1000:
                lease = await self._renewed()
            needed = votes_needed(len(lease.live), self._settings.quorum)
            results = await self._store.cast(votes[start : start + BATCH], needed)
            await self._store.log(self._told(results, needed, len(lease.live)))

    def _down_votes(self) -> Iterator[Vote]:
        down = set(self._book.addresses(Opinion.DOWN))
        if not down:
            return
        for key, instances in self._registry.table.instances_by_key.items():
            for instance in instances:
                if instance.address in down and MAINT not in instance.marks:
                    why = self._reasons.get(instance.address, "")
                    yield Vote(key, instance.address, True, why, self._may_empty(key))

    def _up_votes(self, offline: list[Offline]) -> Iterator[Vote]:
        for entry in offline:
            if self._book.opinion(entry.address) is Opinion.UP:
                yield Vote(entry.key, entry.address, False, "answers PING again")

    def _may_empty(self, key: ServiceKey) -> bool:
        names = self._settings.may_empty
        return str(key) in names or "*" in names

    def _told(self, results: list[Voted], needed: int, live: int) -> Iterator[Entry]:
        """The audit lines of what was done, or was not done for the first time."""
        for result in results:
            vote = result.vote
            if result.outcome in (Outcome.DONE, Outcome.FRESH):
                self._book.forget(vote.address)
            place = (vote.key, vote.address)
            if result.outcome is Outcome.DONE:
                what = "taken-out" if vote.down else "put-back"
            elif result.outcome is Outcome.LAST and place not in self._kept_last:
                self._kept_last.add(place)
                what = "kept-last"
            else:
                continue
            why = f"{vote.why}; {result.votes} votes of {live} watchers, {needed} needed"
            log.info(what, service=str(vote.key), address=str(vote.address), why=why)
            yield Entry(self._who, what, str(vote.key), str(vote.address), result.member, why)

    async def _tell_doubt(self) -> None:
        if self._book.in_doubt == self._doubted:
            return
        why = f"{self._book.failing} of {self._book.pinged} addresses do not answer"
        what = "doubt" if self._book.in_doubt else "trust"
        await self._store.log([Entry(self._who, what, why=why)])
        self._doubted = self._book.in_doubt
        log.warning(what, why=why)

    async def _forget_old(self, offline: list[Offline], now_ms: int) -> None:
        limit_ms = now_ms - self._settings.forget_h * 3_600_000
        for entry in offline:
            if entry.at_ms < limit_ms and await self._store.forget(entry):
                why = f"offline for {self._settings.forget_h} h"
                where = (str(entry.key), str(entry.address))
                await self._store.log([Entry(self._who, "forgotten", *where, entry.member, why)])

    def _on_ping(self, address: Address, why: str) -> None:
        if why:
            self._reasons[address] = why
        else:
            self._reasons.pop(address, None)
        self._book.note(address, not why)

    def _go_blind(self, why: str) -> None:
        self._settling.lost()
        self._enter(State.BLIND, why)

    def _enter(self, state: State, why: str = "") -> None:
        if state is not self.state:
            self.state = state
            self._since_s = time.time()
            log.info("state", state=state.value, why=why)

    def _facts(self) -> dict[str, Any]:
        counters = self._pinger.counters
        return {
            "state": self.state.value,
            "since_unix_s": round(self._since_s, 1),
            "pid": os.getpid(),
            "addresses": len(self._pinger),
            "failing": self._book.failing,
            "offline": len(self._offline),
            "round_s": round(counters.round_s, 2),
            "local_faults": counters.local_faults,
        }
