"""Whom to check with a PING, and when: instances without traffic, and ejected ones.

Only instances of services that were routed to lately are looked after: with thousands of
services in a registry, every node would otherwise ping all of them all the time. An address
that serves several services is checked once, as often as the most eager of them wants, and
all of them learn the result. One in maintenance is left in peace.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from proxy.core.model import MAINT, Address, Instance, ServiceTable
from proxy.core.service import Service, Services

LATELY_S = 300.0
"""A service without a request for so long is not checked any more."""

_JITTER = 0.1


@dataclass(slots=True)
class Target:
    """An address to check, and the services that want to know."""

    instance: Instance
    interval_s: float
    timeout_s: float
    services: dict[str, Service]

    def is_wanted(self, now_s: float) -> bool:
        """Whether a PING would tell anything that requests do not."""
        address = self.instance.address
        services = self.services.values()
        if any(service.health.is_ejected(address) for service in services):
            return True
        heard_s = max(service.node(address).slowness.seen_s for service in services)
        return now_s - heard_s >= self.interval_s


class CheckSchedule:
    """Spreads checks over their interval; times are monotonic seconds."""

    __slots__ = ("_heap", "_planned", "_rand", "_targets")

    def __init__(self, rand: random.Random) -> None:
        self._rand = rand
        self._targets: dict[Address, Target] = {}
        self._planned: set[Address] = set()
        self._heap: list[tuple[float, Address]] = []

    def __len__(self) -> int:
        return len(self._targets)

    def refresh(self, table: ServiceTable, services: Services, now_s: float) -> None:
        """Follow the table and what was routed to; now and then, and for each new table."""
        targets: dict[Address, Target] = {}
        for instance, service in _lately_used(table, services, now_s):
            policy = service.policy.ping
            target = targets.get(instance.address)
            if target is None:
                targets[instance.address] = Target(
                    instance, policy.interval_s, policy.timeout_s, {service.uri: service}
                )
                continue
            target.services[service.uri] = service
            if policy.interval_s < target.interval_s:
                target.interval_s, target.timeout_s = policy.interval_s, policy.timeout_s
        self._targets = targets
        for address, target in targets.items():
            if address not in self._planned:
                self._plan(address, now_s + target.interval_s * self._rand.random())

    def due(self, now_s: float, room: int) -> Iterator[Target]:
        """At most `room` targets whose time has come; what is over that comes next time."""
        while room and self._heap and self._heap[0][0] <= now_s:
            _, address = heappop(self._heap)
            self._planned.discard(address)
            target = self._targets.get(address)
            if target is None:
                continue
            spread = 1 + _JITTER * (2 * self._rand.random() - 1)
            self._plan(address, now_s + target.interval_s * spread)
            if target.is_wanted(now_s):
                room -= 1
                yield target

    def _plan(self, address: Address, at_s: float) -> None:
        self._planned.add(address)
        heappush(self._heap, (at_s, address))


def _lately_used(
    table: ServiceTable, services: Services, now_s: float
) -> Iterator[tuple[Instance, Service]]:
    for key, instances in table.instances_by_key.items():
        service = services.known(key.uri)
        if service is None or service.policy.ping.interval_s <= 0:
            continue
        if now_s - service.used_s < LATELY_S:
            for instance in instances:
                if MAINT not in instance.marks:
                    yield instance, service
