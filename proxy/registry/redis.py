"""The registry in Redis: follows its changes, survives its loss, and enters instances.

It subscribes first and loads then, so no change falls between. A change arrives as a message;
one that was lost is found by a sweep over versions and cardinalities. While Redis does not
answer, the table stays as it was, and at start it is the copy on disk (`lastknown.py`). What a
set means after Redis has forgotten is decided in `view.py`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from redis.asyncio.client import PubSub

from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.registry import keys, lastknown, reader
from proxy.registry.base import RegistryError, RegistryState, RegistryStatus, TableCallback
from proxy.registry.board import Board
from proxy.registry.clients import FAULTS
from proxy.registry.endpoint import RedisEndpoint
from proxy.registry.holdings import Holdings
from proxy.registry.link import Link
from proxy.registry.view import ServiceView
from proxy.registry.writer import RedisWriter

_log = structlog.get_logger("registry")

_FAULTS = (RegistryError, *FAULTS)

_PUBLISH_SHARE = 0.05
"""Of the time may go into new tables: 20 000 instances in the kernel's maps take tens of ms."""
_LONGEST_PAUSE_S = 0.5
_GLANCE_S = 0.001
"""For a message that is there already: redis-py takes 0 for its own limit."""


@dataclass(frozen=True, slots=True)
class RedisTimes:
    """Time limits in seconds.

    Silence is noticed `ping_interval + answer` after the last word of Redis, or `pipeline`
    after the start of a round trip.
    """

    answer: float = 2.0
    pipeline: float = 4.0
    """One round trip for up to `reader.BATCH` services."""
    ping_interval: float = 2.0
    sweep_interval: float = 10.0
    grace: float = 90.0
    """How long instances that Redis has lost are kept beside those that have registered again;
    longer than the slowest heartbeat, 60 s."""
    first_backoff: float = 0.2
    longest_backoff: float = 10.0
    publish_interval: float = 0.035
    """Changes within this time become one reading and one table, so a burst of them costs one;
    it grows with what a table costs those who follow it. A change that comes alone does not
    wait; one in a stream of them is to be seen within 50 ms."""
    save_interval: float = 1.0


class RedisRegistry:
    """See `proxy.registry.base.Registry`. One event loop; `aclose` after `run` has ended."""

    def __init__(
        self,
        endpoint: RedisEndpoint,
        last_known: Path | None = None,
        times: RedisTimes | None = None,
        rand: random.Random | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._endpoint = endpoint
        self._last_known = last_known
        self._times = times or RedisTimes()
        self._rand = rand or random.Random()
        self._board = Board("redis", wall_clock)
        self._holdings = Holdings()
        self._bad_names: list[str] = []
        self._complaint = ""
        self._collect_until_s = 0.0
        self._changed = asyncio.Event()
        self._was_synced = False
        self._writer = RedisWriter(endpoint, self._times.answer)

    @property
    def table(self) -> ServiceTable:
        """See `Registry.table`."""
        return self._board.table

    def subscribe(self, callback: TableCallback) -> Callable[[], None]:
        """See `Registry.subscribe`."""
        return self._board.subscribe(callback)

    def status(self) -> RegistryStatus:
        """See `Registry.status`."""
        return self._board.status()

    async def aclose(self) -> None:
        """Close the connections that `register` and its like use."""
        await self._writer.aclose()

    async def run(self) -> None:
        """See `Registry.run`."""
        self._restore()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_for_ever())
            if self._last_known is not None:
                tasks.create_task(self._save_for_ever(self._last_known))

    async def register(self, key: ServiceKey, instance: Instance) -> None:
        """See `Registry.register`."""
        await self._writer.register(key, instance)

    async def deregister(self, key: ServiceKey, address: Address) -> None:
        """See `Registry.deregister`."""
        await self._writer.deregister(key, address)

    async def heartbeat(self, key: ServiceKey, instance: Instance) -> None:
        """See `Registry.heartbeat`."""
        await self._writer.register(key, instance)

    async def mark(self, key: ServiceKey, address: Address, mark: str, who: str, why: str) -> bool:
        """See `Registry.mark`."""
        return await self._writer.mark(key, address, mark, who, why)

    async def unmark(self, key: ServiceKey, address: Address, mark: str) -> bool:
        """See `Registry.unmark`."""
        return await self._writer.unmark(key, address, mark)

    def _restore(self) -> None:
        if self._last_known is None:
            return
        try:
            known = lastknown.load(self._last_known)
        except lastknown.LastKnownError as error:
            _log.warning("last known services not used", reason=str(error))
            return
        if known:
            self._board.set_state(RegistryState.STALE, f"from {self._last_known}")
            self._take(known)

    async def _follow_for_ever(self) -> None:
        failures = 0
        while True:
            self._was_synced = False
            try:
                await self._session()
            except _FAULTS as error:
                self._lost(_words(error))
            except Exception as error:
                # redis-py lets ValueError and its like through when a peer does not speak RESP.
                _log.exception("registry session failed", redis=str(self._endpoint))
                self._lost(repr(error))
            failures = 0 if self._was_synced else failures + 1
            # The exponent is bounded: 2.0**1024 overflows after three hours without Redis.
            wanted_s = self._times.first_backoff * 2.0 ** min(failures, 16)
            backoff_s = min(wanted_s, self._times.longest_backoff)
            await asyncio.sleep(backoff_s * self._rand.uniform(0.5, 1.0))

    def _lost(self, reason: str) -> None:
        nothing_yet = self._board.state is RegistryState.STARTING
        state = RegistryState.STARTING if nothing_yet else RegistryState.STALE
        self._board.set_state(state, f"{self._endpoint}: {reason}")

    async def _session(self) -> None:
        """One connection's life; ends by an error only."""
        link = Link(self._endpoint, self._times.answer)
        try:
            async with asyncio.timeout(self._times.answer):
                await link.open(self._times.answer, self._rand)
            await self._sweep(link)
            self._was_synced = True
            await self._follow(link)
        finally:
            await link.aclose()

    async def _follow(self, link: Link) -> None:
        now = asyncio.get_running_loop().time
        pubsub = link.pubsub
        heard_s = ping_at_s = now()
        sweep_at_s = heard_s + self._next_sweep_s()
        while True:
            if now() >= ping_at_s:
                async with asyncio.timeout(self._times.answer):
                    await pubsub.ping()
                ping_at_s = now() + self._times.ping_interval
            silent_at_s = heard_s + self._times.ping_interval + self._times.answer
            wait_s = min(ping_at_s, sweep_at_s, silent_at_s) - now()
            message = await pubsub.get_message(timeout=max(wait_s, 0.001))
            if message is None and now() >= silent_at_s:
                raise RegistryError(f"silent for {now() - heard_s:.1f} s")
            if message is not None:
                await self._reread(link, await self._gather(pubsub, message))
                heard_s = now()
            if now() >= sweep_at_s:
                await self._sweep(link)
                heard_s = now()  # nobody listened meanwhile: that is no silence of Redis
                sweep_at_s = heard_s + self._next_sweep_s()

    def _next_sweep_s(self) -> float:
        # Spread: thousands of agents that saw Redis restart must not sweep in step.
        return self._times.sweep_interval * self._rand.uniform(0.8, 1.2)

    async def _gather(self, pubsub: PubSub, first: dict[str, Any]) -> set[ServiceKey]:
        """The services that this message and those right behind it say have changed."""
        now = asyncio.get_running_loop().time
        until_s = self._collect_until_s
        changed: set[ServiceKey] = set()
        message: dict[str, Any] | None = first
        while message is not None:
            if message["type"] == "subscribe":
                # redis-py has reconnected by itself: messages may have been missed.
                raise RegistryError("the subscription was interrupted")
            if message["type"] == "message":
                self._note_change(message["data"], changed)
            if not changed or now() >= until_s:
                break
            message = await pubsub.get_message(timeout=max(until_s - now(), 0.001))
        return changed

    def _note_change(self, data: bytes, changed: set[ServiceKey]) -> None:
        try:
            key, version = keys.parse_change(data)
        except keys.BadServiceName as error:
            _log.warning("message of a change not understood", reason=str(error))
            return
        view = self._holdings.views.get(key)
        if view is None or view.version != version:
            changed.add(key)

    async def _sweep(self, link: Link) -> None:
        """Ask for every service that is named or known; the first sweep of a session loads."""
        async with asyncio.timeout(self._times.pipeline):
            named, self._bad_names = await reader.service_names(link.commands)
        views = self._holdings.views
        gone = self._holdings.unnamed(named)
        wanted = (named | views.keys()) - set(gone)
        # Before the first table all is read at once; afterwards changes need not wait for the rest.
        parts = list(reader.batches(wanted)) if self._was_synced else [list(wanted)]
        for part in parts or [[]]:
            changed = await reader.refreshed(
                link.commands, part, views, self._times.grace, self._times.pipeline
            )
            self._take(changed, gone)
            gone = []
            self._show_state()
            if self._was_synced:
                await self._glance(link)
        async with asyncio.timeout(self._times.answer):
            self._complaint = await link.complaint()
        self._show_state()

    async def _glance(self, link: Link) -> None:
        """Work off a change that has been heard of already."""
        if message := await link.pubsub.get_message(timeout=_GLANCE_S):
            await self._reread(link, await self._gather(link.pubsub, message))

    async def _reread(self, link: Link, services: set[ServiceKey]) -> None:
        if not services:
            return
        changed = await reader.reread(
            link.commands, services, self._holdings.views, self._times.grace, self._times.pipeline
        )
        self._take(changed)
        self._show_state()

    def _take(
        self, changed: dict[ServiceKey, ServiceView], gone: Collection[ServiceKey] = ()
    ) -> None:
        """Keep the views that have changed; a new table waits longer the longer this one took."""
        if not changed and not gone:
            return
        self._changed.set()
        table = self._holdings.take(changed, gone)
        if table is None:
            return
        now = asyncio.get_running_loop().time
        start_s = now()
        self._board.publish(table)
        pause_s = max(self._times.publish_interval, (now() - start_s) / _PUBLISH_SHARE)
        self._collect_until_s = now() + min(pause_s, _LONGEST_PAUSE_S)

    def _show_state(self) -> None:
        self._board.set_broken([*self._bad_names, *self._holdings.broken()])
        reasons = [reason for reason in (self._holdings.loss(), self._complaint) if reason]
        state = RegistryState.DEGRADED if reasons else RegistryState.SYNCED
        self._board.set_state(state, "; ".join(reasons))

    async def _save_for_ever(self, path: Path) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await lastknown.save(path, dict(self._holdings.views))
            except lastknown.LastKnownError as error:
                _log.warning("last known services not saved", reason=str(error))
            await asyncio.sleep(self._times.save_interval)


def _words(error: BaseException) -> str:
    return str(error) or "no answer in time"
