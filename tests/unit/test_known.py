"""Instances that left are remembered for a while, and not for ever."""

from __future__ import annotations

from proxy.core import known
from proxy.core.known import DEPARTED_S, KnownInstances
from proxy.core.model import Address

A, B = Address("10.0.0.1", 1), Address("10.0.0.2", 1)


def test_an_instance_that_left_is_known_for_an_hour() -> None:
    instances = KnownInstances()
    instances.update(frozenset({A, B}), 0.0)
    instances.update(frozenset({B}), 10.0)
    assert A in instances
    assert instances.listed == {B}
    assert instances.all == {A, B}
    assert not instances.expire(10.0 + DEPARTED_S)
    assert instances.expire(11.0 + DEPARTED_S)
    assert A not in instances


def test_an_instance_that_came_back_does_not_expire() -> None:
    instances = KnownInstances()
    for listed in ({A}, set(), {A}):
        instances.update(frozenset(listed), 0.0)
    assert not instances.expire(10 * DEPARTED_S)
    assert A in instances


def test_the_first_to_leave_are_forgotten_when_too_many_do() -> None:
    limit = known.MAX_DEPARTED
    addresses = [Address("10.0.0.1", port) for port in range(limit + 2)]
    instances = KnownInstances()
    instances.update(frozenset(addresses[:2]), 0.0)
    instances.update(frozenset(addresses[2:]), 1.0)
    instances.update(frozenset(), 2.0)
    assert len(instances.all) == limit
    assert addresses[0] not in instances
