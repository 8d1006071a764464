"""A whole service under any order of events: requests, PINGs, tables, time that jumps.

`test_health.py` does this to the book of health alone; here plans are cached, zones narrow, and
requests go where the balancer sends them, so that "not for ever" means that real requests bring
an instance back.
"""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.core.balancer import Place
from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.core.policy import Balance, HealthPolicy, ServicePolicy
from proxy.core.routing import Candidates, candidates
from proxy.core.service import Service
from proxy.wire.moa import Route

URI = "/s"
ZONES = ("a", "b")
LONGEST_BACK_OFF_S = 60.0


def members(count: int) -> tuple[Instance, ...]:
    return tuple(Instance(Address("10.0.0.1", n), zone=ZONES[n % 2]) for n in range(count))


def found_of(instances: tuple[Instance, ...], zone: str) -> Candidates:
    table = ServiceTable.build({ServiceKey(URI): instances})
    return candidates(table, Route(URI, "", "m", {}), zone=zone)


class Interleavings(RuleBasedStateMachine):
    """Each request is under way for as long as the machine likes."""

    policy = ServicePolicy()

    @initialize(count=st.integers(1, 8), zone=st.sampled_from(("", *ZONES)), seed=st.integers(0, 9))
    def begin_with(self, count: int, zone: str, seed: int) -> None:
        self.zone = zone
        self.service = Service(URI, self.policy, 1000.0, random.Random(seed))
        self.now_s = 1000.0
        self.under_way: list[tuple[Place, float]] = []
        self.listed(count)

    @rule(count=st.integers(1, 8))
    def listed(self, count: int) -> None:
        """A new table: some are gone, some are back."""
        self.everyone = members(count)
        self.found = found_of(self.everyone, self.zone)
        self.service.retain({instance.address for instance in self.everyone})

    @rule(key=st.sampled_from(("", "k", "l")))
    def request(self, key: str) -> None:
        place = self.service.choose(self.found, {"hashid": key}, self.now_s)
        assert place is not None, "somebody always serves"
        self.service.begin(place.node, self.now_s)
        self.under_way.append((place, self.now_s))

    @rule(number=st.integers(0, 20), end=st.sampled_from(("ok", "failed", "refused", "late")))
    def reply(self, number: int, end: str) -> None:
        if not self.under_way:
            return
        place, begun_s = self.under_way.pop(number % len(self.under_way))
        node, service = place.node, self.service
        node.in_flight -= 1
        if end == "ok":
            service.succeeded(node, "m", begun_s, self.now_s)
        elif end == "late":
            service.timed_out(node, "m", begun_s, self.now_s)
        else:
            service.failed(node, begun_s, self.now_s, end, is_refused=end == "refused")

    @rule(number=st.integers(0, 7), answers=st.lists(st.booleans(), min_size=1, max_size=4))
    def pings(self, number: int, answers: list[bool]) -> None:
        address = self.everyone[number % len(self.everyone)].address
        for is_answered in answers:
            self.service.pinged(address, self.now_s, is_answered=is_answered)

    @rule(number=st.integers(0, 7))
    def kill(self, number: int) -> None:
        """It refuses every connection, for as long as it is asked."""
        one = self.everyone[number % len(self.everyone)]
        node = self.service.node(one.address)
        self.service.failed(node, self.now_s, self.now_s, "refused", is_refused=True)

    @rule(by_s=st.floats(0.0, 70.0))
    def time(self, by_s: float) -> None:
        self.now_s += by_s

    @invariant()
    def cap_holds_and_the_last_stays(self) -> None:
        health, count = self.policy.health, len(self.everyone)
        kept = self.service.health.split(self.everyone, self.now_s).usable
        assert len(kept) >= max(1, count - int(count * health.max_ejected))
        chosen = {
            place.instance for place in self.service.plan(self.found, self.now_s).choices.places
        }
        assert chosen
        assert chosen <= set(kept), "a plan that was kept is not older than what it says"
        if not self.zone:
            assert chosen == set(kept)

    def teardown(self) -> None:
        """All faults end here: requests alone bring everybody back, each with its whole weight."""
        if not hasattr(self, "service"):
            return
        found, service = found_of(self.everyone, ""), self.service
        for under_way, begun_s in self.under_way:
            under_way.node.in_flight -= 1
            service.succeeded(under_way.node, "m", begun_s, self.now_s)
        self.now_s += LONGEST_BACK_OFF_S + self.policy.health.probe_timeout_s
        for _ in range(60 * len(self.everyone)):
            place = service.choose(found, {}, self.now_s)
            assert place is not None
            service.begin(place.node, self.now_s)
            place.node.in_flight -= 1
            service.succeeded(place.node, "m", self.now_s, self.now_s + 0.001)
            self.now_s += 1.0
        ejected = [i for i in self.everyone if service.health.is_ejected(i.address)]
        assert not ejected
        assert all(service.share(i.address, self.now_s) == 1.0 for i in self.everyone)


class WithoutPanic(Interleavings):
    policy = ServicePolicy(
        health=HealthPolicy(panic=0.0, slow_start_s=5.0), balance=Balance.HASH, zone_spill=0.9
    )


class EverybodyMayGo(Interleavings):
    policy = ServicePolicy(health=HealthPolicy(failures=1, panic=0.0, max_ejected=1.0))


TestInterleavings = Interleavings.TestCase
TestWithoutPanic = WithoutPanic.TestCase
TestEverybodyMayGo = EverybodyMayGo.TestCase
TestInterleavings.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestWithoutPanic.settings = TestEverybodyMayGo.settings = TestInterleavings.settings
