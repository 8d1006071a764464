"""The table of docs/ARCHITECTURE.md "Failover", row by row: its default, and that one service may
differ from it by the configuration. What a row does in every case is in the tests of its module.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable
from dataclasses import replace
from math import ceil

import pytest

from installer.config import Config
from installer.config_failover import Failover, ServiceOverride, policies_of
from proxy.core.checks import CheckSchedule
from proxy.core.deadline import DEFAULT_TIMEOUT_S, timeout_of
from proxy.core.health import HealthBook, slow_start_share
from proxy.core.message import RESP_JSON, MoaRequest
from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.core.policy import Balance, Policies, ServicePolicy
from proxy.core.routing import Candidates, candidates
from proxy.core.service import Service, Services
from proxy.wire.moa import Route

URI, OTHER = "/service/differs", "/service/other"
ZONE = "a"


def instances(count: int) -> tuple[Instance, ...]:
    return tuple(Instance(Address("10.0.0.1", 80 + n)) for n in range(count))


def found_of(members: tuple[Instance, ...], zone: str = "") -> Candidates:
    table = ServiceTable.build({ServiceKey(URI): members})
    return candidates(table, Route(URI, "", "m", {}), zone=zone)


def service_of(policy: ServicePolicy) -> Service:
    return Service(URI, policy, 0.0, random.Random(1))


def failures_to_eject(policy: ServicePolicy, *, is_refused: bool = False) -> int:
    book, (one, *_) = HealthBook(random.Random(1), policy.health), instances(1)
    for number in range(1, 100):
        book.record_failure(one.address, 1.0, 1.0, "x", is_refused=is_refused)
        if book.is_ejected(one.address):
            return number
    raise AssertionError("never ejected")


def back_offs_s(policy: ServicePolicy) -> tuple[float, int]:
    """The first and the longest, up to the next step: chance takes away up to a fifth."""
    book, (one, *_), now_s = HealthBook(random.Random(1), policy.health), instances(1), 0.0
    seen = []
    for _ in range(40):
        for _ in range(policy.health.failures):
            book.record_failure(one.address, now_s, now_s, "x")
        seen.append(book.describe(one.address, now_s)["until_s"])
        now_s += seen[-1] + 0.01  # told to the millisecond
    return ceil(seen[0] * 5) / 5, 3 * ceil(max(seen) / 3)


def slow_start(policy: ServicePolicy) -> tuple[float, float]:
    """The share at its begin, and how long it takes."""
    health = policy.health
    assert slow_start_share(health, 0.0, health.slow_start_s - 0.01) < 1.0
    assert slow_start_share(health, 0.0, health.slow_start_s) == 1.0
    return slow_start_share(health, 0.0, 0.0), health.slow_start_s


def pings(policy: ServicePolicy) -> tuple[float, float, int, int]:
    """Seconds between two, for an answer, and how many in a row mean something."""
    services = Services(Policies(policy), random.Random(1))
    services.get(URI, 0.0)
    (one,) = instances(1)
    schedule = CheckSchedule(random.Random(1))
    schedule.refresh(ServiceTable.build({ServiceKey(URI): [one]}), services, 0.0)
    (target,) = schedule.due(10_000.0, 1)
    book, fall, rise = HealthBook(random.Random(1), policy.health), 0, 0
    while not book.is_ejected(one.address):
        fall += 1
        book.record_ping(one.address, 1.0, is_answered=False)
    book.record_ping(one.address, 1.0, is_answered=False)
    while book.is_ejected(one.address):
        rise += 1
        book.record_ping(one.address, 1.0, is_answered=True)
    return target.interval_s, target.timeout_s, fall, rise


def left_out(policy: ServicePolicy) -> tuple[int, bool]:
    """How many of ten with four ejected are left out, and whether six ejected mean panic."""
    members = instances(10)
    out = []
    for count in (4, 6):
        book = HealthBook(random.Random(1), policy.health)
        for member in members[:count]:
            for _ in range(policy.health.failures):
                book.record_failure(member.address, 1.0, 1.0, "x", is_refused=True)
        out.append(book.split(members, 1.0))
    return 10 - len(out[0].usable), out[1].is_panic


def hash_owners(policy: ServicePolicy) -> int:
    """Over how many instances the requests of one key spread."""
    service, found = service_of(policy), found_of(instances(5))
    chosen = {service.choose(found, {"hashid": "k"}, 0.0) for _ in range(60)}
    return len(chosen)


def most_of_a_key(policy: ServicePolicy) -> int:
    """How many of 40 requests in flight, all of one key, its owner carries."""
    service, found = service_of(replace(policy, balance=Balance.HASH)), found_of(instances(4))
    for _ in range(40):
        place = service.choose(found, {"hashid": "k"}, 0.0)
        assert place is not None
        service.begin(place.node, 0.0)
    return max(node.in_flight for node in service.nodes())


def leaves_zone_at(policy: ServicePolicy) -> int:
    """With how many of four of its zone ejected the caller leaves it."""
    near = tuple(Instance(Address("10.0.0.1", 80 + n), zone=ZONE) for n in range(4))
    far = tuple(Instance(Address("10.0.0.2", 80 + n), zone="b") for n in range(8))
    for count in range(1, 5):
        service, found = service_of(policy), found_of(near + far, ZONE)
        for member in near[:count]:
            node = service.node(member.address)
            for _ in range(policy.health.failures):
                service.failed(node, 1.0, 1.0, "x", is_refused=True)
        zones = {p.instance.zone for p in service.plan(found, 1.0).choices.places}
        if zones == {ZONE, "b"} or zones == {"b"}:
            return count
    return 5


def resent(policy: ServicePolicy) -> tuple[bool, bool, int]:
    """Whether `getX` and `put` are sent again, and how often at most."""
    service = service_of(policy)
    return (
        service.may_resend("getX", 0, 1.0),
        service.may_resend("put", 0, 1.0),
        next(n for n in range(9) if not service.may_resend("getX", n, 1.0)),
    )


def budget(policy: ServicePolicy) -> tuple[int, int]:
    """Retries of a quiet second, and what 51 requests add."""
    granted = []
    for requests in (0, 51):
        service = service_of(policy)
        for _ in range(requests):
            service.budget.record_request()
        granted.append(sum(service.budget.try_take(0.0) for _ in range(1000)))
    return granted[0], granted[1] - granted[0]


def instance_cap(policy: ServicePolicy) -> int:
    service, found = service_of(policy), found_of(instances(1))
    while (place := service.choose(found, {}, 0.0)) is not None:
        service.begin(place.node, 0.0)
    return next(service.nodes()).in_flight


def deadline_s(policy: ServicePolicy) -> float:
    request = MoaRequest(Route(URI, "", "m", {}), b"{}", RESP_JSON, b"")
    return timeout_of(request, instances(1)[0], policy.timeout_ms, DEFAULT_TIMEOUT_S, 0.0)


Row = tuple[str, str, Callable[[ServicePolicy], object], object, object]

ROWS: tuple[Row, ...] = (
    ("passive ejection", "failures = 2", failures_to_eject, 5, 2),
    (
        "passive ejection, refused",
        "eject_on_refused = false",
        lambda p: failures_to_eject(p, is_refused=True),
        1,
        5,
    ),
    ("back-off", "backoff_ms = 200\nbackoff_max_ms = 9000", back_offs_s, (1.0, 60), (0.2, 9)),
    (
        "re-admission",
        "slow_start_s = 8\nslow_start_percent = 25",
        slow_start,
        (0.1, 30),
        (0.25, 8),
    ),
    (
        "active check",
        "ping_interval_ms = 500\nping_timeout_ms = 90\nping_fall = 7\nping_rise = 4",
        pings,
        (2.0, 0.5, 3, 2),
        (0.5, 0.09, 7, 4),
    ),
    ("caps", "max_ejected_percent = 20\npanic_percent = 10", left_out, (4, True), (2, False)),
    ("balancing: hash", 'balance = "hash"', hash_owners, 5, 1),
    ("balancing: bounded load", "hash_bound_percent = 200", most_of_a_key, 13, 20),
    ("balancing: zone first", "zone_spill_percent = 80", leaves_zone_at, 3, 1),
    ("retry", 'idempotent = ["get*"]\nretries = 3', resent, (False, False, 0), (True, False, 3)),
    (
        "retry: budget",
        "retry_budget_percent = 40\nretry_budget_per_s = 25",
        budget,
        (10, 10),
        (25, 20),
    ),
    ("hedging", "hedge = true", lambda p: service_of(p).p95 is not None, False, True),
    ("concurrency", "max_in_flight = 7", lambda p: p.max_in_flight, 1024, 7),
    ("concurrency of one", "max_in_flight_instance = 3", instance_cap, 1024, 3),
    ("deadline", "timeout_ms = 700", deadline_s, 5.0, 0.7),
)


@pytest.mark.parametrize(
    ("row", "keys", "look", "default", "differing"), ROWS, ids=[row[0] for row in ROWS]
)
def test_row_has_its_default_and_one_service_may_differ(
    row: str,
    keys: str,
    look: Callable[[ServicePolicy], object],
    default: object,
    differing: object,
) -> None:
    text = f'[[service]]\nuri = "{URI}"\n{keys}\n'
    config = Config.model_validate(tomllib.loads(text))
    policies = policies_of(config.failover, config.service)
    assert look(policies.of(OTHER)) == default, row
    assert look(policies.of(URI)) == differing, row


def test_every_key_of_the_table_is_in_a_row() -> None:
    named = {line.partition(" =")[0] for _, keys, *_ in ROWS for line in keys.splitlines()}
    assert named == set(Failover.model_fields) | {"timeout_ms"}
    assert set(ServiceOverride.model_fields) == named | {"uri"}
