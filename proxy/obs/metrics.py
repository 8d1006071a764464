"""What the agent counts: plain integers on the byte path, turned into Prometheus on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

MAX_SERVICES = 5000
"""Services that are counted by name; a client can ask for any number of unknown ones."""


@dataclass(slots=True)
class ServiceCounts:
    """Requests of one service since the start; `failed` are those that we answered ourselves.

    `resent` were sent a second time after a failure, `hedges` while the first was under way,
    of which `hedges_won` were answered first; `budget_exhausted` were not, for want of budget,
    and `capped` were refused at once because too many were under way.
    """

    requests: int = 0
    failed: int = 0
    transport_failures: int = 0
    retried: int = 0
    resent: int = 0
    hedges: int = 0
    hedges_won: int = 0
    budget_exhausted: int = 0
    capped: int = 0


@dataclass(slots=True)
class Metrics:
    """Counters since the start of this process; `in_flight` is a gauge."""

    requests: int = 0
    ok: int = 0
    failed: int = 0
    transport_errors: int = 0
    retried: int = 0
    in_flight: int = 0
    timeouts: int = 0
    late_replies: int = 0
    pings: int = 0
    pings_failed: int = 0
    passed_on: int = 0
    spliced: int = 0
    protocol_errors: int = 0
    slow_requests: int = 0
    clients_cancelled: int = 0
    accepted: int = 0
    accept_errors: int = 0
    overloads: int = 0
    peer_accepted: int = 0
    peer_refused: int = 0
    mesh_calls: int = 0
    mesh_fallbacks: int = 0
    mesh_hello_failures: int = 0
    mesh_losses: int = 0
    mesh_served: int = 0
    latency_s: float = 0.0
    """Sum over the attempts that an instance answered well; of this process alone."""
    latencies: int = 0
    """How many these are."""
    services: dict[str, ServiceCounts] = field(default_factory=dict)
    _given: Metrics | None = None

    @property
    def shown(self) -> Metrics:
        """What is to be shown: from `give` on, what was counted until then.

        Whoever asks this agent and then its successor never sees a count go back.
        """
        return self._given or self

    def service(self, uri: str) -> ServiceCounts:
        """The counts of one service; beyond the bound, all share the name `(other)`."""
        counts = self.services.get(uri)
        if counts is None:
            if len(self.services) >= MAX_SERVICES:
                uri = "(other)"
            counts = self.services.setdefault(uri, ServiceCounts())
        return counts

    def give(self) -> dict[str, Any]:
        """What was counted, as JSON has it; from here on it is counted elsewhere, and here
        anew. `in_flight` stays: it is of what is under way here."""
        if self._given is None:
            services = {uri: replace(counts) for uri, counts in self.services.items()}
            self._given = replace(self, services=services)
        given: dict[str, Any] = {name: getattr(self, name) for name in _COUNTERS}
        given["services"] = {uri: asdict(counts) for uri, counts in self.services.items()}
        for name in _COUNTERS:
            setattr(self, name, 0)
        # In place: what is under way counts on.
        for counts in self.services.values():
            for name in _SERVICE_COUNTERS:
                setattr(counts, name, 0)
        return given

    def take_back(self) -> None:
        """What was given first was lost with who got it: count on from there."""
        given, self._given = self._given, None
        if given is not None:
            services = {uri: asdict(counts) for uri, counts in given.services.items()}
            self.take(asdict(given) | {"services": services})

    def forget_given(self) -> None:
        """It has come back with all else that the other agent counted (`take`)."""
        self._given = None

    def take(self, given: Mapping[str, Any]) -> None:
        """Count what another agent counted. What this version does not count is left out."""
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + int(given.get(name, 0)))
        for uri, counts in given.get("services", {}).items():
            own = self.service(uri)
            for name in _SERVICE_COUNTERS:
                setattr(own, name, getattr(own, name) + int(counts.get(name, 0)))


_COUNTERS = {
    "requests": "MOA requests routed to a service",
    "ok": "routed requests that an instance answered, transport_errors apart",
    "transport_errors": "routed requests that an instance answered with ec 303, 304 or 504",
    "failed": "routed requests that the agent answered with an error",
    "retried": "attempts on another instance",
    "timeouts": "routed requests whose deadline passed",
    "late_replies": "replies that came after their request's deadline, and were dropped",
    "pings": "active checks of instances",
    "pings_failed": "active checks without an answer",
    "passed_on": "commands passed to the address that was dialled",
    "spliced": "connections that were not MOA",
    "protocol_errors": "connections that broke the protocol",
    "slow_requests": "connections closed because a request came too slowly",
    "clients_cancelled": "requests whose client went away",
    "accepted": "connections accepted",
    "accept_errors": "connections that could not be accepted",
    "mesh_calls": "requests sent to an instance's agent over the mesh protocol",
    "mesh_fallbacks": "requests given to the mesh, not processed there, and sent to the same "
    "instance over its own protocol",
    "mesh_hello_failures": "mesh connections whose peer did not speak the protocol",
    "mesh_losses": "mesh connections that ended, whoever ended them",
    "mesh_served": "requests of other agents that were served over the mesh protocol",
    "overloads": "times the agent withdrew from the kernel because it was full",
    "peer_accepted": "connections accepted for another node, whose own agent does not serve",
    "peer_refused": "such connections refused: of a stranger, or too many",
}

_SERVICE_COUNTERS = {
    "requests": "routed requests by service",
    "failed": "requests the agent answered with an error",
    "transport_failures": "attempts that failed on the way, or were answered with ec 303, 304, 504",
    "retried": "attempts on another instance after one that was not sent",
    "resent": "idempotent requests sent a second time after a failure",
    "hedges": "idempotent requests sent a second time because the first took long",
    "hedges_won": "hedges that were answered first",
    "budget_exhausted": "requests not sent a second time for want of retry budget",
    "capped": "requests refused at once because too many were under way",
}

_HEALTH_COUNTERS = {
    "ejections": "instances left out after transport failures or unanswered PINGs",
    "probes": "requests that probed a half-open instance",
    "readmissions": "instances taken back",
}


class _Exposition(Collector):
    def __init__(
        self,
        metrics: Metrics,
        gauges: Callable[[], Mapping[str, float]],
        health: Callable[[], Mapping[str, Mapping[str, int]]],
    ) -> None:
        self._metrics = metrics
        self._gauges = gauges
        self._health = health

    def collect(self) -> Iterator[Metric]:
        shown = self._metrics.shown
        for name, help_text in _COUNTERS.items():
            yield CounterMetricFamily(f"moa_{name}", help_text, getattr(shown, name))
        yield GaugeMetricFamily(
            "moa_in_flight", "routed requests under way", self._metrics.in_flight
        )
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(f"moa_{name}", name.replace("_", " "), value)
        yield from _by_service(
            _SERVICE_COUNTERS,
            {
                uri: {name: getattr(counts, name) for name in _SERVICE_COUNTERS}
                for uri, counts in shown.services.items()
            },
        )
        yield from _by_service(_HEALTH_COUNTERS, self._health())


def _by_service(
    texts: Mapping[str, str], counts_by_uri: Mapping[str, Mapping[str, int]]
) -> Iterator[Metric]:
    for name, text in texts.items():
        family = CounterMetricFamily(f"moa_service_{name}", text, labels=["service"])
        for uri, counts in counts_by_uri.items():
            family.add_metric([uri], counts[name])
        yield family


def exposition(
    metrics: Metrics,
    gauges: Callable[[], Mapping[str, float]],
    health: Callable[[], Mapping[str, Mapping[str, int]]],
) -> bytes:
    """The Prometheus text of everything that is counted."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Exposition(metrics, gauges, health))
    return generate_latest(registry)
