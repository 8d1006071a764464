"""What a running agent tells of services: instances as they are now, and where a request goes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from proxy.core.balancer import Node
from proxy.core.explain import effective_weight, explain
from proxy.core.model import Instance, ServiceKey
from proxy.core.service import Service
from proxy.net.forward import Forwarder
from proxy.obs.metrics import ServiceCounts
from proxy.wire.moa import Route

_HEALTHY = {"state": "healthy", "until_s": None, "failures": 0, "why": None}


def service_facts(
    forwarder: Forwarder, key: ServiceKey, instances: tuple[Instance, ...]
) -> dict[str, Any]:
    """One group of a service, with all of its instances."""
    # A service that nobody asked for has no state, and must not get one by being looked at.
    service = forwarder.services.known(key.uri)
    now_s = forwarder.loop.time()
    return {
        "uri": key.uri,
        "group": key.group,
        "counts": asdict(forwarder.metrics.services.get(key.uri, ServiceCounts())),
        "instances": [_instance_facts(forwarder, service, i, now_s) for i in instances],
    }


def _instance_facts(
    forwarder: Forwarder, service: Service | None, instance: Instance, now_s: float
) -> dict[str, Any]:
    address = instance.address
    node = service.node(address) if service else Node(address)
    slowness = node.slowness.estimate(now_s)
    return {
        "address": str(address),
        "weight": instance.weight,
        "weight_now": effective_weight(service, instance, now_s),
        "zone": instance.zone,
        "pre": instance.pre,
        "marks": sorted(instance.marks),
        "protocols": list(instance.protocols),
        "codec": instance.codec,
        "timeout_ms": instance.timeout_ms,
        "app": instance.app,
        "health": service.health.describe(address, now_s) if service else _HEALTHY,
        "in_flight": forwarder.load(address),
        "latency_ms": round(node.latency_s * 1000, 3) if node.latency_s else None,
        "slowness": round(slowness, 2) if slowness else None,
        "load_hint": forwarder.pools.load_hint(address),
    }


def explain_route(forwarder: Forwarder, route: Route) -> dict[str, Any]:
    """Where a request would go now, and why."""
    found, now_s = forwarder.candidates(route), forwarder.loop.time()
    service = forwarder.services.known(route.uri)
    if service is None:
        service = forwarder.services.fresh(route.uri, now_s)
    told = explain(service, found, route, now_s, forwarder.settings.timeout_s)
    return {
        "uri": route.uri,
        "group": route.group,
        "method": route.method,
        "props": dict(route.props),
        "is_known": forwarder.table.knows(route.uri),
        "steps": list(told.steps),
        "instances": [
            {"address": str(instance.address), "zone": instance.zone, "share": share}
            for instance, share in told.shares
        ],
        "idempotent": told.is_idempotent,
        "hedged": told.is_idempotent and service.policy.hedge,
        "timeout_ms": round(told.timeout_s * 1000),
        "in_flight": service.in_flight,
        "max_in_flight": service.policy.max_in_flight,
    }
