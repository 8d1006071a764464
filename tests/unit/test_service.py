"""Choosing an instance of a service: health, zones, marks and caps put together."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.core.policy import Balance, Policies, ServicePolicy
from proxy.core.routing import Candidates, candidates
from proxy.core.service import Service, Services
from proxy.wire.moa import Route

URI = "/s"
PICKS = 2000


def instance(port: int, zone: str = "", *marks: str) -> Instance:
    return Instance(Address("10.0.0.1", port), zone=zone, marks=frozenset(marks))


def found_of(*instances: Instance, zone: str = "") -> Candidates:
    table = ServiceTable.build({ServiceKey(URI): instances})
    return candidates(table, Route(URI, "", "m", {}), zone=zone)


def service_of(policy: ServicePolicy | None = None) -> Service:
    return Service(URI, policy or ServicePolicy(), 0.0, random.Random(1))


def refuse(service: Service, one: Instance, now_s: float) -> None:
    service.failed(service.node(one.address), now_s, now_s, "refused", is_refused=True)


def shares(service: Service, found: Candidates, now_s: float) -> dict[int, float]:
    counts: Counter[int] = Counter()
    for _ in range(PICKS):
        place = service.choose(found, {}, now_s)
        assert place is not None
        counts[place.instance.address.port] += 1
    return {port: count / PICKS for port, count in counts.items()}


def test_ejected_is_left_out_and_comes_back_slowly() -> None:
    one, two = instance(1), instance(2)
    service, found = service_of(), found_of(one, two)
    refuse(service, one, 10.0)
    assert shares(service, found, 10.5) == {2: 1.0}
    half_open = shares(service, found, 11.0)
    assert 0.4 < half_open[1] < 0.6, "until one is begun"
    node = service.node(one.address)
    service.begin(node, 11.0)
    assert shares(service, found, 11.0) == {2: 1.0}
    node.in_flight -= 1
    service.succeeded(node, "m", 11.0, 11.001)
    begun = [shares(service, found, now_s).get(1, 0.0) for now_s in (11.1, 26.0, 41.1)]
    assert begun == sorted(begun)
    assert 0.02 < begun[0] < 0.2
    assert 0.45 < begun[2] < 0.55


def test_zone_is_left_when_too_little_of_it_is_well() -> None:
    here = [instance(n, "z1") for n in (1, 2, 3)]
    there = [instance(n, "z2") for n in (4, 5, 6)]
    service, found = service_of(), found_of(*here, *there, zone="z1")
    assert set(shares(service, found, 0.0)) == {1, 2, 3}
    refuse(service, here[0], 0.0)
    assert set(shares(service, found, 0.1)) == {2, 3}
    refuse(service, here[1], 0.0)
    assert set(shares(service, found, 0.1)) == {3, 4, 5, 6}


def test_zone_spill_is_configured_per_service() -> None:
    here, there = [instance(n, "z1") for n in (1, 2, 3)], [instance(n, "z2") for n in (4, 5, 6)]
    loyal = service_of(replace(ServicePolicy(), zone_spill=0.3))
    refuse(loyal, here[0], 0.0)
    refuse(loyal, here[1], 0.0)
    assert set(shares(loyal, found_of(*here, *there, zone="z1"), 0.1)) == {3}


def test_retry_in_panic_goes_to_who_is_well() -> None:
    everyone = [instance(n) for n in range(4)]
    service, found = service_of(), found_of(*everyone)
    for one in everyone[:3]:
        refuse(service, one, 0.0)
    assert set(shares(service, found, 0.1)) == {0, 1, 2, 3}
    for _ in range(100):
        place = service.choose(found, {}, 0.1, frozenset({everyone[0].address}))
        assert place is not None
        assert place.instance is everyone[3]


def test_retry_takes_the_ejected_then_the_drained_then_none() -> None:
    well, ejected, drained = instance(1), instance(2), instance(3, "", "drain")
    service, found = service_of(), found_of(well, ejected, drained)
    refuse(service, ejected, 0.0)
    tried: frozenset[Address] = frozenset()
    order = []
    while (place := service.choose(found, {}, 0.1, tried)) is not None:
        order.append(place.instance.address.port)
        tried |= {place.instance.address}
    assert order == [1, 2, 3]


def test_hash_is_used_where_the_service_asks_for_it_and_the_request_has_it() -> None:
    found = found_of(*(instance(n) for n in range(5)))
    hashed = service_of(ServicePolicy(balance=Balance.HASH))
    props = {"hashid": "user-7"}
    owners = {hashed.choose(found, props, 0.0) for _ in range(50)}
    assert len(owners) == 1
    assert len(shares(hashed, found, 0.0)) == 5
    plain = service_of()
    assert len({plain.choose(found, props, 0.0) for _ in range(200)}) == 5


def test_busy_instance_is_tried_again_without_a_pick_of_all() -> None:
    found = found_of(*(instance(n) for n in range(3)))
    service = service_of(ServicePolicy(max_in_flight_instance=1))
    taken = []
    for _ in range(3):
        place = service.choose(found, {}, 0.0)
        assert place is not None
        service.begin(place.node, 0.0)
        taken.append(place.instance.address.port)
    assert sorted(taken) == [0, 1, 2]
    assert service.choose(found, {}, 0.0) is None


def test_plan_is_kept_until_something_changes() -> None:
    one, two = instance(1), instance(2)
    service, found = service_of(), found_of(one, two)
    plan = service.plan(found, 0.0)
    assert service.plan(found, 100.0) is plan
    refuse(service, one, 100.0)
    without = service.plan(found, 100.0)
    assert without is not plan
    assert service.plan(found, 100.5) is without
    assert service.plan(found, 101.0) is not without, "the back-off has ended"


def test_a_new_table_forgets_who_left() -> None:
    services = Services(Policies(), random.Random(1))
    one, two = instance(1), instance(2)
    services.update(ServiceTable.build({ServiceKey(URI): [one, two]}))
    service = services.get(URI, 0.0)
    for each in (one, two):
        refuse(service, each, 0.0)
    services.update(ServiceTable.build({ServiceKey(URI, "blue"): [two]}))
    assert [node.address for node in service.nodes()] == [two.address]
    assert not service.health.is_ejected(one.address)
    assert service.health.is_ejected(two.address)
    services.update(ServiceTable())
    assert list(services) == []
    assert services.known(URI) is None


def test_slow_method_makes_its_instance_no_slower_than_another() -> None:
    """Instances are compared by what is usual for each method."""
    one, two = instance(1), instance(2)
    service, found = service_of(), found_of(one, two)
    nodes = [service.node(i.address) for i in (one, two)]
    for tick in range(100):
        service.succeeded(nodes[tick % 2], "quick", tick, tick + 0.001)
    for _ in range(5):
        service.succeeded(nodes[0], "slow", 98.5, 100.0)
    service.succeeded(nodes[0], "quick", 100.0, 100.001)
    assert 0.4 < shares(service, found, 100.0)[1] < 0.6
    for _ in range(10):
        service.succeeded(nodes[0], "quick", 100.0, 100.02)
    assert shares(service, found, 100.1) == {2: 1.0}


def test_one_hiccup_moves_nothing() -> None:
    one, two = instance(1), instance(2)
    service, found = service_of(), found_of(one, two)
    nodes = [service.node(i.address) for i in (one, two)]
    for tick in range(100):
        service.succeeded(nodes[tick % 2], "m", tick, tick + 0.005)
    service.succeeded(nodes[0], "m", 100.0, 100.05)
    assert shares(service, found, 100.5)[1] > 0.4
