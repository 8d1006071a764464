"""Group, pre and zone: who may serve, whom the caller prefers, and the words for it."""

from __future__ import annotations

from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.core.routing import Candidates, Router, candidates, narrow
from proxy.wire.moa import Route


def instance(port: int, *, pre: bool = False, zone: str = "") -> Instance:
    return Instance(Address("10.0.0.1", port), pre=pre, zone=zone)


def table(**groups: list[Instance]) -> ServiceTable:
    return ServiceTable.build(
        {ServiceKey("/s") if g == "any" else ServiceKey("/s", g): i for g, i in groups.items()}
    )


def route(group: str = "", **props: str) -> Route:
    return Route("/s", group, "m", {key.replace("_", "."): value for key, value in props.items()})


def ports(instances: tuple[Instance, ...]) -> list[int]:
    return [i.address.port for i in instances]


def test_unknown_service_has_no_candidates_and_says_so() -> None:
    assert candidates(table(), route()) == Candidates((), (), ("/s: 0 registered",))


def test_group_is_the_request_s_then_the_default() -> None:
    both = table(any=[instance(1)], blue=[instance(2)], red=[instance(3)])
    assert ports(candidates(both, route("blue"), default_group="red").instances) == [2]
    assert ports(candidates(both, route(), default_group="red").instances) == [3]
    assert ports(candidates(both, route()).instances) == [1]
    assert ports(candidates(both, route("*")).instances) == [1]


def test_missing_group_falls_back_to_the_set_without_a_group() -> None:
    found = candidates(table(any=[instance(1)]), route("blue"))
    assert ports(found.instances) == [1]
    assert found.steps == ("/s#blue: 0 registered", "/s: 1 registered")


def test_nothing_falls_back_into_a_group() -> None:
    assert candidates(table(blue=[instance(1)]), route()).instances == ()
    assert candidates(table(blue=[instance(1)]), route("red")).instances == ()


def test_ordinary_caller_never_reaches_pre() -> None:
    found = candidates(table(any=[instance(1), instance(2, pre=True)]), route())
    assert ports(found.instances) == [1]
    assert found.steps[-1] == "ordinary caller: 1 pre=1 left out"
    assert candidates(table(any=[instance(2, pre=True)]), route()).instances == ()


def test_pre_caller_prefers_pre_and_falls_back() -> None:
    both = table(any=[instance(1), instance(2, pre=True)])
    for found in (
        candidates(both, route(moa_env_pre="true")),
        candidates(both, route(moa_env_pre="1")),
        candidates(both, route(), pre=True),
    ):
        assert ports(narrow(found, found.instances)) == [2]
        assert ports(narrow(found, found.instances[:1])) == [1]
        assert found.steps[-1] == "prefer pre=1: 1 of 2"
    found = candidates(table(any=[instance(1)]), route(), pre=True)
    assert ports(narrow(found, found.instances)) == [1]


def test_pre_false_is_ordinary() -> None:
    both = table(any=[instance(1), instance(2, pre=True)])
    assert ports(candidates(both, route(moa_env_pre="false")).instances) == [1]


def test_zone_first_and_spill_over_below_half() -> None:
    members = [instance(n, zone="a") for n in (1, 2, 3, 4)] + [instance(9, zone="b")]
    found = candidates(table(any=members), route(), zone="a")
    every = found.instances
    assert ports(narrow(found, every)) == [1, 2, 3, 4]
    assert ports(narrow(found, every[2:])) == [3, 4]
    assert ports(narrow(found, every[3:])) == [4, 9]


def test_zone_without_instances_is_no_preference() -> None:
    found = candidates(table(any=[instance(1, zone="a")]), route(), zone="x")
    assert ports(narrow(found, found.instances)) == [1]
    assert found.steps[-1] == "prefer zone x: 0 of 1"


def test_pre_matters_more_than_zone() -> None:
    members = [
        instance(1, zone="a"),
        instance(2, pre=True, zone="b"),
        instance(3, pre=True, zone="a"),
    ]
    found = candidates(table(any=members), route(), zone="a", pre=True)
    assert ports(narrow(found, found.instances)) == [3]
    assert ports(narrow(found, found.instances[:2])) == [2]


def test_router_remembers_until_the_table_changes() -> None:
    router = Router(zone="a")
    first = table(any=[instance(1)])
    found = router.candidates(first, route())
    assert router.candidates(first, route(hashid="7")) is found
    assert ports(router.candidates(table(any=[instance(2)]), route()).instances) == [2]


def test_router_memory_is_bounded() -> None:
    router = Router()
    some = table(any=[instance(1)])
    for n in range(10_000):
        router.candidates(some, route(f"g{n}"))
    assert len(router._known) <= 4096


def test_router_sees_with_the_eyes_of_a_caller_from_another_zone() -> None:
    router = Router(zone="a")
    some = table(any=[instance(1, zone="a"), instance(2, zone="b"), instance(3)])

    def nearest(zone: str | None) -> list[int]:
        found = router.candidates(some, route(), zone)
        return ports(narrow(found, found.instances))

    assert (nearest(None), nearest("b"), nearest("a")) == ([1], [2], [1])
    assert nearest("") == [1, 2, 3], "a caller without a zone has no preference"


def marked(port: int, *marks: str, pre: bool = False) -> Instance:
    return Instance(Address("10.0.0.1", port), pre=pre, marks=frozenset(marks))


def test_instance_in_maintenance_is_never_reached() -> None:
    found = candidates(table(any=[marked(1), marked(2, "maint"), marked(3, "mesh")]), route())
    assert ports(found.instances) == [1, 3]
    assert found.reserve == ()
    assert candidates(table(any=[marked(2, "maint")]), route()).instances == ()


def test_drained_instances_are_a_reserve_until_no_other_is_left() -> None:
    found = candidates(table(any=[marked(1), marked(2, "drain")]), route())
    assert (ports(found.instances), ports(found.reserve)) == ([1], [2])
    assert found.steps[-1] == "drain: 1 kept in reserve"
    found = candidates(table(any=[marked(1, "maint"), marked(2, "drain")]), route())
    assert ports(found.instances) == [2]


def test_ordinary_caller_gets_a_drained_instance_rather_than_pre() -> None:
    both = table(any=[marked(1, "drain"), marked(2, pre=True)])
    assert ports(candidates(both, route()).instances) == [1]
    found = candidates(both, route(moa_env_pre="1"))
    assert ports(narrow(found, found.instances)) == [2]
    assert ports(found.reserve) == [1]
