"""Counts that one agent gives to another (`Metrics.give`, `take`)."""

from __future__ import annotations

from proxy.obs.metrics import Metrics


def counted(requests: int, service: int) -> Metrics:
    metrics = Metrics(requests=requests, ok=requests)
    metrics.service("/service/demo").requests = service
    return metrics


def test_what_is_given_is_counted_once_and_shown_by_both() -> None:
    old, new = counted(100, 70), Metrics()
    new.take(old.give())
    assert (new.shown.requests, new.shown.services["/service/demo"].requests) == (100, 70)
    assert old.shown.requests == 100
    old.requests += 5  # Of connections that have not moved yet.
    old.service("/service/demo").requests += 5
    assert old.shown.requests == 100
    new.take(old.give())
    assert (new.requests, new.service("/service/demo").requests) == (105, 75)


def test_what_was_lost_with_the_other_agent_is_counted_on() -> None:
    old = counted(100, 70)
    old.give()
    old.requests += 3
    old.take_back()
    old.take_back()
    assert old.shown.requests == 103
    assert old.shown.services["/service/demo"].requests == 70


def test_what_comes_back_comes_with_what_the_other_agent_counted() -> None:
    old, new = counted(100, 70), Metrics()
    new.take(old.give())
    new.requests += 20
    old.take(new.give())
    old.forget_given()
    assert old.shown.requests == 120
    assert old.shown.services["/service/demo"].requests == 70


def test_a_gauge_and_what_is_not_known_stay() -> None:
    old, new = counted(1, 1), Metrics(in_flight=2)
    old.in_flight = 7
    new.take(old.give() | {"invented_later": 9})
    assert (old.in_flight, new.in_flight) == (7, 2)
