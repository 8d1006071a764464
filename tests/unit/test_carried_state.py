"""What an agent knows goes to its successor as JSON, and means the same there."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.known import KnownInstances
from proxy.core.model import Address, Instance
from proxy.core.policy import DEFAULT_POLICY
from proxy.core.service import Service
from proxy.obs.metrics import Metrics

ADDRESSES = [Address("10.0.0.1", 5000), Address("10.0.0.2", 5000), Address("fd00::3", 5001)]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ok", "failed", "refused", "pong", "silence"]),
        st.sampled_from(ADDRESSES),
        st.floats(0.001, 5.0),
    ),
    max_size=40,
)


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def a_service() -> Service:
    return Service("/s", DEFAULT_POLICY, 0.0, random.Random(1))


def play(service: Service, events: list[tuple[str, Address, float]], now_s: float) -> float:
    for what, address, after_s in events:
        node, begun_s = service.node(address), now_s
        now_s += after_s
        if what in ("pong", "silence"):
            service.pinged(address, now_s, is_answered=what == "pong")
            continue
        service.begin(node, begun_s)
        node.in_flight -= 1
        if what == "ok":
            service.succeeded(node, "m", begun_s, now_s)
        else:
            service.failed(node, begun_s, now_s, what, is_refused=what == "refused")
    return now_s


@given(EVENTS)
def test_successor_judges_every_instance_as_the_agent_before_it(
    events: list[tuple[str, Address, float]],
) -> None:
    before, after = a_service(), a_service()
    now_s = play(before, events, 100.0)
    after.restore(through_json(before.export()))
    for address in ADDRESSES:
        assert after.health.describe(address, now_s) == before.health.describe(address, now_s)
        assert after.share(address, now_s + 1) == before.share(address, now_s + 1)
        old, new = before.node(address), after.node(address)
        assert new.slowness.estimate(now_s + 1) == old.slowness.estimate(now_s + 1)
        assert new.latency_s == old.latency_s
    assert after.health.ejections == before.health.ejections
    assert after.usual.ratio("m", 1.0) == before.usual.ratio("m", 1.0)
    instances = tuple(Instance(address) for address in ADDRESSES)
    assert after.health.split(instances, now_s + 2) == before.health.split(instances, now_s + 2)


def test_state_of_a_later_version_is_taken_as_far_as_it_is_known() -> None:
    before, after = a_service(), a_service()
    play(before, [("refused", ADDRESSES[0], 1.0)], 0.0)
    exported = through_json(before.export())
    exported["new"] = 1
    exported["health"]["records"]["10.0.0.1:5000"]["new"] = 1
    after.restore(exported)
    assert after.health.is_ejected(ADDRESSES[0])


@pytest.mark.parametrize("broken", [{}, {"health": {}}, {"health": {"records": {"x": {}}}}])
def test_state_that_cannot_be_understood_changes_nothing(broken: dict[str, Any]) -> None:
    service = a_service()
    with pytest.raises((KeyError, ValueError)):
        service.restore(broken)
    assert not service.health.is_troubled


def test_counters_are_never_less_and_what_is_under_way_counts_on() -> None:
    old, new = Metrics(), Metrics()
    counts = old.service("/s")
    old.requests = counts.requests = 7
    old.in_flight = 2
    new.take(through_json(old.give()))
    assert (new.requests, new.services["/s"].requests, new.in_flight) == (7, 7, 0)
    assert (old.requests, old.in_flight) == (0, 2)
    old.requests += 1
    counts.requests += 1
    new.take(through_json(old.give()))
    assert (new.requests, new.services["/s"].requests) == (8, 8)


def test_instances_that_have_left_are_remembered_by_the_successor() -> None:
    old, new = KnownInstances(), KnownInstances()
    old.update(frozenset(ADDRESSES), 1.0)
    old.update(frozenset(ADDRESSES[1:]), 2.0)
    new.update(frozenset(ADDRESSES[1:]), 3.0)
    new.restore(through_json(old.export()))
    assert ADDRESSES[0] in new
    assert new.expire(3700.0)
    assert ADDRESSES[0] not in new


def test_addresses_are_read_as_they_are_written() -> None:
    for address in ADDRESSES:
        assert Address.parse(str(address)) == address
