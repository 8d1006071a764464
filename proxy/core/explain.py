"""Says in words which instances a request would go to now, and why; changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.core.deadline import effective_timeout_s, request_timeout_ms
from proxy.core.model import DRAIN, MAINT, Instance
from proxy.core.policy import Balance
from proxy.core.ring import Ring
from proxy.core.routing import Candidates
from proxy.core.service import HASH_PROP, Plan, Service
from proxy.wire.moa import Route


@dataclass(frozen=True, slots=True)
class Explanation:
    """`steps` in their order; `shares` of the set that is balanced over, 1.0 all together.

    `timeout_s` is that of the first instance, where each has its own.
    """

    steps: tuple[str, ...]
    shares: tuple[tuple[Instance, float], ...]
    is_idempotent: bool
    timeout_s: float


def explain(
    service: Service, found: Candidates, route: Route, now_s: float, default_timeout_s: float
) -> Explanation:
    """What `Service.choose` would do with a request, latency and load apart."""
    plan = service.plan(found, now_s)
    shares = _shares(plan, now_s)
    steps = [*found.steps, *_health_steps(service, plan, now_s)]
    preferred = found.preferred[0] if found.preferred else found.instances
    chosen = {instance.address for instance, _ in shares}
    if found.preferred and not chosen <= {instance.address for instance in preferred}:
        steps.append("too little of what is preferred is well: all that may serve are used")
    if shares:
        steps.append(_balance_step(service, plan, route.props))
    first = shares[0][0] if shares else None
    return Explanation(
        steps=tuple(steps),
        shares=shares,
        is_idempotent=service.is_idempotent(route.method),
        timeout_s=effective_timeout_s(
            request_ms=request_timeout_ms(route.props),
            instance_ms=first.timeout_ms if first else None,
            service_ms=service.policy.timeout_ms,
            default_s=default_timeout_s,
        ),
    )


def effective_weight(service: Service | None, instance: Instance, now_s: float) -> float:
    """The weight that an instance has now: 0 while it is left out, less in slow start.

    That the caps of its set may keep it in use all the same, is not seen here.
    """
    if instance.marks & {DRAIN, MAINT}:
        return 0.0
    if service is None:
        return float(instance.weight)
    return round(instance.weight * service.share(instance.address, now_s), 1)


def _shares(plan: Plan, now_s: float) -> tuple[tuple[Instance, float], ...]:
    choices = plan.choices
    weights = [
        place.instance.weight * choices.share(place.node.address, now_s) for place in choices.places
    ]
    if not any(weights):
        weights = [1.0 for _ in weights]
    total = sum(weights)
    return tuple(
        (place.instance, round(weight / total, 4))
        for place, weight in zip(choices.places, weights, strict=True)
    )


def _health_steps(service: Service, plan: Plan, now_s: float) -> list[str]:
    instances = plan.found.instances
    steps = []
    for instance in instances:
        seen = service.health.describe(instance.address, now_s)
        if seen["state"] == "healthy":
            continue
        until = "" if seen["until_s"] is None else f" for {seen['until_s']:.1f} s more"
        why = f": {seen['why']}" if seen["why"] else ""
        steps.append(f"{instance.address}: {seen['state']}{until}{why}")
    if plan.is_panic:
        well = len(service.health.split(instances, now_s).well)
        steps.append(f"panic: only {well} of {len(instances)} are well, ejections are ignored")
    return steps


def _balance_step(service: Service, plan: Plan, props: Mapping[str, str]) -> str:
    count = len(plan.choices.places)
    if service.policy.balance is Balance.HASH:
        key = props.get(HASH_PROP)
        if not key:
            return f"hash: the request has no {HASH_PROP}, so p2c among {count}"
        place = Ring(plan.choices.places).pick(key, service.policy.hash_bound)
        owner = place.instance.address if place else "nobody"
        return f"hash of {HASH_PROP}={key}: {owner} of {count}"
    if count == 1:
        return "one instance: no choice"
    return f"p2c among {count}: two are drawn, the one with less latency x requests in flight wins"
