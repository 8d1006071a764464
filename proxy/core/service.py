"""What an agent knows of one service that it routes to: health, latencies, load, budget.

A choice costs constant time: what can be prepared is prepared when the table or somebody's
health changes, or when a time comes at which it would change by itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Set
from typing import Any

from proxy.core.balancer import NOBODY, Choices, Node, Place, pick
from proxy.core.health import HealthBook, slow_start_share
from proxy.core.latency import Quantile, Usual
from proxy.core.model import Address, Instance, ServiceTable
from proxy.core.policy import Balance, Policies, ServicePolicy, method_matcher
from proxy.core.retry import RetryBudget, may_retry
from proxy.core.ring import Ring
from proxy.core.routing import Candidates, narrow

HASH_PROP = "hashid"
"""The public property that names what a consistent hash is made of."""

_MAX_PLANS = 64
_SHOWN_STEP = 0.1


class Plan:
    """How the requests of one set of candidates are spread, until something changes."""

    __slots__ = ("choices", "found", "is_panic", "ring", "until_s", "version", "well")

    def __init__(
        self,
        found: Candidates,
        choices: Choices,
        well: Choices,
        until_s: float,
        version: int,
        *,
        is_panic: bool,
    ) -> None:
        self.found = found
        self.choices = choices
        self.well = well
        self.until_s = until_s
        self.version = version
        self.is_panic = is_panic
        self.ring: Ring | None = None


class Service:
    """The state of one service; addresses that several groups list have one node."""

    __slots__ = (
        "_idempotent",
        "_nodes",
        "_plans",
        "_rand",
        "budget",
        "health",
        "in_flight",
        "p95",
        "policy",
        "uri",
        "used_s",
        "usual",
    )

    def __init__(self, uri: str, policy: ServicePolicy, now_s: float, rand: random.Random) -> None:
        self.uri = uri
        self.policy = policy
        self.health = HealthBook(rand, policy.health)
        self.budget = RetryBudget(now_s, share=policy.retry_share, per_s=policy.retry_per_s)
        self.usual = Usual()
        self.p95: Quantile | None = Quantile(0.95) if policy.hedge else None
        self.in_flight = 0
        self.used_s = now_s
        """When a request last began: services without any are not checked."""
        self._idempotent = method_matcher(policy.idempotent)
        self._nodes: dict[Address, Node] = {}
        self._plans: dict[int, Plan] = {}
        self._rand = rand

    def is_idempotent(self, method: str) -> bool:
        """Whether a method may run twice."""
        return self._idempotent is not None and bool(self._idempotent.match(method))

    def may_resend(self, method: str, extra: int, remaining_s: float) -> bool:
        """Whether a request that was sent and failed may be sent once more, if the budget has
        something left; `extra` is how often that has been done."""
        return may_retry(
            sent=True,
            idempotent=self.is_idempotent(method),
            attempt=1 + extra,
            remaining_s=remaining_s,
            max_retries=self.policy.retries,
        )

    def node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = Node(address)
        return node

    def nodes(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def retain(self, listed: Set[Address]) -> None:
        """Forget plans of the old table, and who is not among these any more."""
        self._plans.clear()
        for address in self._nodes.keys() - listed:
            del self._nodes[address]
        self.health.retain(listed)

    def share(self, address: Address, now_s: float) -> float:
        """The share of its weight that an instance has: 0 while it is ejected."""
        if self.health.is_ejected(address):
            return 0.0
        since_s = self.health.slow_since_s(address, now_s)
        return 1.0 if since_s is None else slow_start_share(self.policy.health, since_s, now_s)

    # Choosing

    def choose(
        self,
        found: Candidates,
        props: Mapping[str, str],
        now_s: float,
        tried: frozenset[Address] = NOBODY,
    ) -> Place | None:
        """An instance that was not tried yet and has room; None when there is none.

        What is tried again goes to those that are well first, then to anybody, and at last to
        those that are being drained.
        """
        plan = self.plan(found, now_s)
        choices = plan.choices
        if tried:
            choices = plan.well
        elif self.policy.balance is Balance.HASH and (key := props.get(HASH_PROP)):
            return self._choose_by_hash(plan, key)
        place = pick(choices, now_s, self._rand, tried)
        if place is not None and place.node.in_flight < self.policy.max_in_flight_instance:
            return place
        return self._choose_in_need(plan, tried)

    def _choose_by_hash(self, plan: Plan, key: str) -> Place | None:
        if plan.ring is None:
            plan.ring = Ring(plan.choices.places)
        place = plan.ring.pick(key, self.policy.hash_bound)
        if place is not None and place.node.in_flight < self.policy.max_in_flight_instance:
            return place
        return self._choose_in_need(plan, NOBODY)

    def _choose_in_need(self, plan: Plan, tried: frozenset[Address]) -> Place | None:
        """The least loaded that is left, of the best part in which there is one."""
        limit = self.policy.max_in_flight_instance
        everybody = self._places(plan.found.instances)
        for part in (plan.choices.places, everybody, self._places(plan.found.reserve)):
            left = [p for p in part if p.node.address not in tried and p.node.in_flight < limit]
            if left:
                return min(left, key=lambda p: (p.instance.weight == 0, p.node.in_flight))
        return None

    def _places(self, instances: tuple[Instance, ...]) -> tuple[Place, ...]:
        return tuple(Place(i, self.node(i.address)) for i in instances)

    def plan(self, found: Candidates, now_s: float) -> Plan:
        """The plan that counts now."""
        plan = self._plans.get(id(found))
        if (
            plan is None
            or plan.version != self.health.version
            or now_s >= plan.until_s
            # The plan holds its candidates, so that their id is not given to others.
            or plan.found is not found
        ):
            plan = self._make_plan(found, now_s)
        return plan

    def _make_plan(self, found: Candidates, now_s: float) -> Plan:
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        health = self.health.split(found.instances, now_s)
        chosen = narrow(found, health.usable, self.policy.zone_spill)
        slow = self._slow(found.instances, now_s)
        policy = self.policy.health
        until_s = health.until_s
        if slow:
            until_s = min(until_s, min(slow.values()) + policy.slow_start_s)
        choices = Choices(self._places(chosen), slow, policy)
        well = choices
        if health.well is not health.usable and health.well:
            well = Choices(self._places(narrow(found, health.well, 0.0)), slow, policy)
        plan = Plan(found, choices, well, until_s, self.health.version, is_panic=health.is_panic)
        self._plans[id(found)] = plan
        return plan

    def _slow(self, instances: tuple[Instance, ...], now_s: float) -> dict[Address, float]:
        slow = {}
        for instance in instances:
            since_s = self.health.slow_since_s(instance.address, now_s)
            if since_s is not None:
                slow[instance.address] = since_s
        return slow

    # What requests have shown

    def begin(self, node: Node, now_s: float) -> None:
        """A request is given to an instance: `node.in_flight` is one more until it is over."""
        node.in_flight += 1
        if self.health.is_troubled:
            self.health.begin(node.address, now_s)

    def succeeded(self, node: Node, method: str, begun_s: float, now_s: float) -> None:
        """A reply came that is no transport failure."""
        latency_s = now_s - begun_s
        node.slowness.observe(self.usual.observe(method, latency_s), now_s)
        node.latency_s += (latency_s - node.latency_s) * (_SHOWN_STEP if node.latency_s else 1.0)
        if self.p95 is not None:
            self.p95.observe(latency_s)
        if self.health.is_troubled:
            self.health.record_success(node.address, now_s, begun_s)

    def failed(
        self, node: Node, begun_s: float, now_s: float, why: str, *, is_refused: bool = False
    ) -> None:
        """A transport failure."""
        ejections = self.health.ejections
        self.health.record_failure(node.address, now_s, begun_s, why, is_refused=is_refused)
        if self.health.ejections != ejections:
            # Back again, it is judged by what it does then.
            node.slowness.forget()

    def lagged(self, node: Node, method: str, begun_s: float, now_s: float) -> None:
        """No reply yet, and nobody waits for it any more: it takes at least so long."""
        node.slowness.observe(self.usual.ratio(method, now_s - begun_s), now_s)

    def timed_out(self, node: Node, method: str, begun_s: float, now_s: float) -> None:
        """No reply until the deadline: a failure, and slow."""
        self.lagged(node, method, begun_s, now_s)
        self.failed(node, begun_s, now_s, "no reply before the deadline")

    def pinged(self, address: Address, now_s: float, *, is_answered: bool) -> None:
        """An active check of an address ended."""
        ejections = self.health.ejections
        self.health.record_ping(address, now_s, is_answered=is_answered)
        if self.health.ejections != ejections:
            self.node(address).slowness.forget()

    # For another process of this boot, as JSON has it

    def export(self) -> dict[str, Any]:
        """What requests have shown; not what is under way."""
        return {
            "health": self.health.export(),
            "budget": self.budget.export(),
            "usual": self.usual.export(),
            "p95": self.p95.export() if self.p95 is not None else None,
            "used_s": self.used_s,
            "nodes": {
                str(node.address): (node.slowness.value, node.slowness.seen_s, node.latency_s)
                for node in self._nodes.values()
            },
        }

    def restore(self, exported: Mapping[str, Any]) -> None:
        """Know what the other process knew. Raises KeyError, TypeError or ValueError."""
        self.health.restore(exported["health"])
        self.budget.restore(exported["budget"])
        self.usual.restore(exported["usual"])
        if self.p95 is not None and exported["p95"] is not None:
            self.p95.restore(exported["p95"])
        self.used_s = max(self.used_s, float(exported["used_s"]))
        for text, (slowness, seen_s, latency_s) in exported["nodes"].items():
            node = self.node(Address.parse(text))
            node.slowness.value, node.slowness.seen_s = float(slowness), float(seen_s)
            node.latency_s = float(latency_s)
        self._plans.clear()


class Services:
    """The services that were routed to, by URI."""

    __slots__ = ("_by_uri", "_policies", "_rand")

    def __init__(self, policies: Policies, rand: random.Random) -> None:
        self._policies = policies
        self._rand = rand
        self._by_uri: dict[str, Service] = {}

    def __iter__(self) -> Iterator[Service]:
        return iter(self._by_uri.values())

    def get(self, uri: str, now_s: float) -> Service:
        """The state of a service, made when it is first asked for."""
        service = self._by_uri.get(uri)
        if service is None:
            service = self._by_uri[uri] = self.fresh(uri, now_s)
        return service

    def fresh(self, uri: str, now_s: float) -> Service:
        """The state that a service begins with; it is not kept."""
        return Service(uri, self._policies.of(uri), now_s, self._rand)

    def known(self, uri: str) -> Service | None:
        """The state of a service, if there is any."""
        return self._by_uri.get(uri)

    def update(self, table: ServiceTable) -> None:
        """A new table counts."""
        for uri in self._by_uri.keys() - table.uris:
            del self._by_uri[uri]
        listed: dict[str, set[Address]] = {uri: set() for uri in self._by_uri}
        for key, instances in table.instances_by_key.items():
            if key.uri in listed:
                listed[key.uri].update(instance.address for instance in instances)
        for uri, service in self._by_uri.items():
            service.retain(listed[uri])
