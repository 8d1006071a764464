"""The failover table of a node's configuration: for every service, and for one that differs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from installer.config_sections import Section
from proxy.core.policy import (
    Balance,
    HealthPolicy,
    PingPolicy,
    Policies,
    ServicePolicy,
)

MAX_OVERRIDES = 10_000

_Glob = Annotated[str, Field(min_length=1, max_length=256)]


class Failover(Section):
    failures: int = Field(
        5, ge=1, le=1000, description="Transport failures in a row that eject an instance."
    )
    eject_on_refused: bool = Field(
        True, description="Whether one refused connection ejects: nothing listens there."
    )
    backoff_ms: int = Field(
        1000,
        ge=10,
        le=600_000,
        description="The first ejection; each further one in a row is twice as long.",
    )
    backoff_max_ms: int = Field(60_000, ge=10, le=3_600_000, description="The longest ejection.")
    slow_start_s: int = Field(
        30, ge=0, le=3600, description="How long an instance that came back grows to its weight."
    )
    slow_start_percent: int = Field(
        10, ge=1, le=100, description="The share of its weight with which it begins."
    )
    max_ejected_percent: int = Field(
        50, ge=0, le=100, description="The share of a set that may be left out; one always stays."
    )
    panic_percent: int = Field(
        50, ge=0, le=100, description="With less than this share well, ejections are ignored."
    )
    ping_interval_ms: int = Field(
        2000,
        ge=0,
        le=600_000,
        description="How often instances without traffic, and ejected ones, get a PING; 0: never.",
    )
    ping_timeout_ms: int = Field(500, ge=10, le=60_000, description="For its answer.")
    ping_fall: int = Field(3, ge=1, le=100, description="Unanswered PINGs in a row that eject.")
    ping_rise: int = Field(2, ge=1, le=100, description="Answered PINGs in a row that bring back.")
    balance: Literal["p2c", "hash"] = Field(
        "p2c",
        description="p2c: of two instances the one with less latency × requests in flight; "
        "hash: by the request's property hashid, and p2c for requests without it.",
    )
    hash_bound_percent: int = Field(
        125, ge=100, le=10_000, description="With hash, an instance's most load, of its share."
    )
    zone_spill_percent: int = Field(
        50, ge=0, le=100, description="With less than this share well, its zone is left."
    )
    idempotent: Annotated[tuple[_Glob, ...], Field(strict=False, max_length=256)] = Field(
        (), description='Methods that may run twice, as ["get*", "list*"]; none by default.'
    )
    retries: int = Field(
        1, ge=0, le=3, description="How often an idempotent request that was sent is sent again."
    )
    retry_budget_percent: int = Field(
        20,
        ge=0,
        le=100,
        description="Of a service's requests, how many may be sent again or hedged.",
    )
    retry_budget_per_s: int = Field(
        10, ge=0, le=100_000, description="And so many a second besides."
    )
    hedge: bool = Field(
        False,
        description="Whether an idempotent request that takes longer than the service's 95th "
        "percentile is sent to a second instance; the first reply counts.",
    )
    max_in_flight: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="Requests of a service under way; one more is an ec 504 at once.",
    )
    max_in_flight_instance: int = Field(
        1024, ge=1, le=1_000_000, description="The same for one instance."
    )


class ServiceOverride(Failover):
    uri: str = Field(
        min_length=1,
        max_length=512,
        description="The service that differs.",
        examples=["/service/example"],
    )
    timeout_ms: int | None = Field(
        None,
        ge=1,
        le=600_000,
        description="As routing.timeout_ms, for this service.",
        examples=[2000],
    )


def policies_of(failover: Failover, overrides: tuple[ServiceOverride, ...]) -> Policies:
    """What the proxy needs: every value that an override does not name is the default's."""
    base = {name: getattr(failover, name) for name in Failover.model_fields}
    return Policies(
        default=_policy(base),
        by_uri={
            override.uri: _policy(
                base | {name: getattr(override, name) for name in override.model_fields_set}
            )
            for override in overrides
        },
    )


def _policy(values: dict[str, Any]) -> ServicePolicy:
    return ServicePolicy(
        health=HealthPolicy(
            failures=values["failures"],
            refused_ejects=values["eject_on_refused"],
            backoff_s=values["backoff_ms"] / 1000,
            backoff_max_s=values["backoff_max_ms"] / 1000,
            slow_start_s=values["slow_start_s"],
            slow_start_share=values["slow_start_percent"] / 100,
            max_ejected=values["max_ejected_percent"] / 100,
            panic=values["panic_percent"] / 100,
            ping_fall=values["ping_fall"],
            ping_rise=values["ping_rise"],
        ),
        ping=PingPolicy(
            interval_s=values["ping_interval_ms"] / 1000, timeout_s=values["ping_timeout_ms"] / 1000
        ),
        balance=Balance(values["balance"]),
        hash_bound=values["hash_bound_percent"] / 100,
        zone_spill=values["zone_spill_percent"] / 100,
        idempotent=values["idempotent"],
        retries=values["retries"],
        retry_share=values["retry_budget_percent"] / 100,
        retry_per_s=values["retry_budget_per_s"],
        hedge=values["hedge"],
        max_in_flight=values["max_in_flight"],
        max_in_flight_instance=values["max_in_flight_instance"],
        timeout_ms=values.get("timeout_ms"),
    )
