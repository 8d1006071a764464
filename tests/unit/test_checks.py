"""Who is checked and when: only what was used lately, when it is idle or ejected, spread out."""

from __future__ import annotations

import random
from dataclasses import replace

from proxy.core.checks import LATELY_S, CheckSchedule, Target
from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.core.policy import PingPolicy, Policies, ServicePolicy
from proxy.core.service import Services


def instances(count: int, *marks: str) -> list[Instance]:
    return [Instance(Address("10.0.0.1", n), marks=frozenset(marks)) for n in range(count)]


def services_of(table: ServiceTable, policies: Policies | None = None) -> Services:
    services = Services(policies or Policies(), random.Random(1))
    services.update(table)
    return services


def table_of(*entries: tuple[str, list[Instance]]) -> ServiceTable:
    return ServiceTable.build({ServiceKey(uri): listed for uri, listed in entries})


def collect(schedule: CheckSchedule, begin_s: float, end_s: float, room: int = 99) -> list[Target]:
    found, now_s = [], begin_s
    while now_s < end_s:
        found += list(schedule.due(now_s, room))
        now_s += 0.1
    return found


def test_idle_instances_are_checked_once_an_interval_and_spread() -> None:
    table = table_of(("/s", instances(100)))
    services = services_of(table)
    services.get("/s", 1000.0)
    schedule = CheckSchedule(random.Random(1))
    schedule.refresh(table, services, 1000.0)
    rounds = [len(list(schedule.due(1000.0 + tick / 10, 999))) for tick in range(20)]
    assert sum(rounds) >= 95
    assert max(rounds) < 20, "not all at once"
    assert 90 <= len(collect(schedule, 1002.0, 1004.0)) <= 110


def test_busy_instances_are_left_alone_unless_they_are_ejected() -> None:
    table = table_of(("/s", instances(2)))
    services = services_of(table)
    service = services.get("/s", 1000.0)
    schedule = CheckSchedule(random.Random(1))
    schedule.refresh(table, services, 1000.0)
    for port in (0, 1):
        service.node(Address("10.0.0.1", port)).slowness.observe(1.0, 1003.0)
    assert collect(schedule, 1000.0, 1003.0) == []
    node = service.node(Address("10.0.0.1", 1))
    service.failed(node, 1003.0, 1003.0, "refused", is_refused=True)
    node.slowness.observe(1.0, 1004.9)
    service.node(Address("10.0.0.1", 0)).slowness.observe(1.0, 1005.0)
    assert {t.instance.address.port for t in collect(schedule, 1003.0, 1005.5)} == {1}


def test_services_nobody_uses_are_not_checked() -> None:
    table = table_of(("/used", instances(1)), ("/unused", instances(2)))
    services = services_of(table)
    services.get("/used", 1000.0)
    schedule = CheckSchedule(random.Random(1))
    schedule.refresh(table, services, 1000.0)
    assert len(schedule) == 1
    schedule.refresh(table, services, 1000.0 + LATELY_S)
    assert len(schedule) == 0
    assert collect(schedule, 2000.0, 2004.0) == []


def test_neither_maintenance_nor_a_service_that_wants_none() -> None:
    table = table_of(("/maint", instances(1, "maint")), ("/off", instances(1)))
    quiet = replace(ServicePolicy(), ping=PingPolicy(interval_s=0.0))
    services = services_of(table, Policies(by_uri={"/off": quiet}))
    services.get("/maint", 0.0)
    services.get("/off", 0.0)
    schedule = CheckSchedule(random.Random(1))
    schedule.refresh(table, services, 0.0)
    assert len(schedule) == 0


def test_address_of_several_services_is_checked_once_for_all_of_them() -> None:
    table = table_of(("/a", instances(1)), ("/b", instances(1)))
    eager = replace(ServicePolicy(), ping=PingPolicy(interval_s=1.0, timeout_s=0.2))
    services = services_of(table, Policies(by_uri={"/b": eager}))
    services.get("/a", 0.0)
    services.get("/b", 0.0)
    schedule = CheckSchedule(random.Random(1))
    schedule.refresh(table, services, 0.0)
    found = collect(schedule, 1.1, 2.0)
    assert {(t.interval_s, t.timeout_s, tuple(sorted(t.services))) for t in found} == {
        (1.0, 0.2, ("/a", "/b"))
    }


def test_at_most_so_many_at_once_and_the_rest_soon() -> None:
    table = table_of(("/s", instances(50)))
    services = services_of(table)
    services.get("/s", 0.0)
    schedule = CheckSchedule(random.Random(1))
    schedule.refresh(table, services, 0.0)
    seen = [list(schedule.due(2.0, 10)) for _ in range(6)]
    assert [len(found) for found in seen] == [10, 10, 10, 10, 10, 0]
    assert len({t.instance.address for found in seen for t in found}) == 50


def test_refresh_plans_nobody_twice() -> None:
    table = table_of(("/s", instances(5)))
    services = services_of(table)
    services.get("/s", 0.0)
    schedule = CheckSchedule(random.Random(1))
    for second in range(0, 20, 2):
        schedule.refresh(table, services, float(second))
    assert len(schedule._heap) == 5
