"""Pings many addresses, each once a round, spread over the round, with a bound on those at once.

Connections are kept: a ping is then one send and one receive, a fifth of what it costs with a
connection of its own (docs/WATCHER.md, "Cost"). Beyond `max_kept` connections the rest connect
for each ping.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from proxy.core.model import Address
from proxy.net.ping_target import PingTarget
from proxy.net.ping_wire import PingWire

TICK_S = 0.02

ResultCallback = Callable[[Address, str], None]
"""An address and why its ping failed; "" when it was answered."""


@dataclass(frozen=True, slots=True)
class PingSettings:
    """`interval_s` is one round; a ping without an answer after `timeout_s` has failed."""

    interval_s: float = 2.0
    timeout_s: float = 0.5
    max_at_once: int = 8192
    max_kept: int = 50_000


@dataclass(slots=True)
class PingCounters:
    """Since the start; `round_s` is how long the last whole round took."""

    sent: int = 0
    failed: int = 0
    local_faults: int = 0
    rounds: int = 0
    round_s: float = 0.0


class Pinger:
    """Owns the sockets. One event loop; results are told from it and never for a local fault."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: PingSettings,
        on_result: ResultCallback,
    ) -> None:
        self.counters = PingCounters()
        self._loop = loop
        self._settings = settings
        self._on_result = on_result
        self._targets: dict[Address, PingTarget] = {}
        slots = max(1, round(settings.interval_s / TICK_S))
        self._slots: list[dict[Address, PingTarget]] = [{} for _ in range(slots)]
        self._slot_of: dict[Address, int] = {}
        self._next_slot = 0
        self._under_way: deque[tuple[float, PingTarget]] = deque()
        self._count = 0
        self._kept = 0
        self._waiting: deque[PingTarget] = deque()

    def follow(self, wires: Mapping[Address, PingWire]) -> None:
        """Ping exactly these from now on, each in its own way."""
        for address in self._targets.keys() - wires.keys():
            self._remove(address)
        for address, wire in wires.items():
            target = self._targets.get(address)
            if target is not None and target.wire is not wire:
                self._remove(address)
                target = None
            if target is None:
                self._add(PingTarget(self._loop, address, wire, self._ended))

    async def run(self) -> None:
        """Ping until cancelled; closes every connection at the end."""
        try:
            await self._turn()
        finally:
            for address in list(self._targets):
                self._remove(address)

    async def _turn(self) -> None:
        slot, began_s = 0, self._loop.time()
        due_s, was_late = began_s, False
        while True:
            now_s = self._loop.time()
            late_s = now_s - due_s
            if late_s > self._settings.interval_s:
                due_s = now_s  # the process stood still: do not ping a round at once
            self._start_waiting(now_s)
            for target in list(self._slots[slot].values()):
                self._start(target, now_s)
            is_late = late_s > self._settings.timeout_s / 2
            if was_late or not is_late:
                # After one pause the answers may be here already, unread.
                self._expire(now_s)
            was_late = is_late
            slot += 1
            if slot == len(self._slots):
                slot = 0
                self.counters.rounds += 1
                self.counters.round_s, began_s = now_s - began_s, now_s
            due_s += TICK_S
            # Also when it is late: answers are read between two ticks.
            await asyncio.sleep(max(0.0, due_s - self._loop.time()))

    def _start_waiting(self, now_s: float) -> None:
        while self._waiting and self._count < self._settings.max_at_once:
            target = self._waiting.popleft()
            if self._targets.get(target.address) is target:
                self._start(target, now_s)

    def _start(self, target: PingTarget, now_s: float) -> None:
        if target.started_s is not None:
            return
        if self._count >= self._settings.max_at_once:
            if len(self._waiting) < len(self._targets):
                self._waiting.append(target)
            return
        self.counters.sent += 1
        self._count += 1
        self._under_way.append((now_s, target))
        self._count_kept(target, is_kept=False)
        target.ping(now_s)

    def _expire(self, now_s: float) -> None:
        limit_s = now_s - self._settings.timeout_s
        while self._under_way and self._under_way[0][0] <= limit_s:
            started_s, target = self._under_way.popleft()
            if target.started_s == started_s:
                target.expire()

    def _ended(self, target: PingTarget, why: str, *, local: bool = False) -> None:
        self._count -= 1
        if self._kept < self._settings.max_kept:
            self._count_kept(target, is_kept=target.is_connected)
        else:
            target.close()
        if local:
            self.counters.local_faults += 1
            return
        self.counters.failed += bool(why)
        self._on_result(target.address, why)

    def _add(self, target: PingTarget) -> None:
        self._next_slot = (self._next_slot + 1) % len(self._slots)
        self._targets[target.address] = target
        self._slots[self._next_slot][target.address] = target
        self._slot_of[target.address] = self._next_slot

    def _remove(self, address: Address) -> None:
        target = self._targets.pop(address)
        del self._slots[self._slot_of.pop(address)][address]
        self._count -= target.started_s is not None
        self._count_kept(target, is_kept=False)
        target.close()

    def _count_kept(self, target: PingTarget, *, is_kept: bool) -> None:
        self._kept += is_kept - target.is_kept
        target.is_kept = is_kept

    def __len__(self) -> int:
        return len(self._targets)
