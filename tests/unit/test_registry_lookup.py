"""The calls of the lookup service: what is read out of their arguments, and who is offered."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.registry.lookup import (
    ADMIN,
    LOOKUP,
    GetService,
    RegisterService,
    UnregisterService,
    hosts,
    read_call,
)
from proxy.wire.moa import BadRequest, Route

A = Address("10.0.0.1", 5)


def route(uri: str, method: str, **props: str) -> Route:
    return Route(uri, "", method, props)


def registered(*args: object) -> Instance:
    call = read_call(route(ADMIN, "registerService"), list(args))
    assert isinstance(call, RegisterService)
    return call.instance


def offered(*instances: Instance, proto: str = "", group: str = "", **props: str) -> Any:
    call = read_call(route(LOOKUP, "getService", **props), ["/s", proto, group])
    assert isinstance(call, GetService)
    return hosts(ServiceTable.build({ServiceKey("/s"): instances}), call)


def test_protocols_have_their_public_names() -> None:
    assert registered("/s", "10.0.0.1:5", "redis", "", {}).protocols == ("resp",)
    assert registered("/s", "10.0.0.1:5", "V1", "", {}).protocols == ("turbo",)
    assert registered("/s", "10.0.0.1:5", None).protocols == ("resp",)
    two = registered("/s", "10.0.0.1:5?proto=resp&proto=turbo", "v1", "", {})
    assert two.protocols == ("resp", "turbo")


def test_parameters_come_from_both_and_hostport_counts() -> None:
    more = {"timeout": 900, "weight": "7", "pre": True, "odd key": "a&b"}
    instance = registered("/s", "10.0.0.1:5?timeout=100", "redis", "*", more)
    assert (instance.timeout_ms, instance.weight, instance.pre) == (100, 7, True)
    assert instance.extra == (("odd key", "a&b"),)


def test_groups_of_both_spellings() -> None:
    for args in (["/s", "10.0.0.1:5", "", "g"], ["/s#g", "10.0.0.1:5?x=y", "", ""]):
        call = read_call(route(ADMIN, "UNREGISTERSERVICE"), args)
        assert call == UnregisterService(ServiceKey("/s", "g"), A)


def test_who_is_drained_is_offered_only_alone_and_who_is_maintained_never() -> None:
    ready = Instance(A)
    drained = Instance(Address("10.0.0.2", 5), marks=frozenset({"drain"}))
    down = Instance(Address("10.0.0.3", 5), marks=frozenset({"maint"}))
    assert offered(ready, drained, down) == ["10.0.0.1:5"]
    assert offered(drained, down) == ["10.0.0.2:5"]
    assert offered(down) == []
    assert hosts(ServiceTable(), GetService("/s", "", route("/s", "m"))) is None


def test_pre_instances_are_for_those_who_ask() -> None:
    ready, pre = Instance(A), Instance(Address("10.0.0.2", 5), pre=True, version="3")
    assert offered(ready, pre) == ["10.0.0.1:5"]
    assert offered(ready, pre, **{"moa.env.pre": "1"}) == ["10.0.0.2:5?version=3"]
    assert offered(ready, **{"moa.env.pre": "1"}) == ["10.0.0.1:5"]
    assert offered(ready, pre, proto="v1") == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(deadline=None)
@given(
    st.sampled_from([(LOOKUP, "getService"), (ADMIN, "registerService"), (ADMIN, "x"), ("/s", "")]),
    JSON
    | st.lists(JSON, max_size=6)
    | st.tuples(st.just("/s"), st.just("10.0.0.1:5"), JSON, JSON, JSON).map(list),
)
def test_whatever_the_arguments_it_is_a_call_or_an_ec(call: tuple[str, str], args: object) -> None:
    refused: BadRequest | None = None
    try:
        read_call(route(*call), args)
    except BadRequest as error:
        refused = error
    assert refused is None or (refused.ec in (302, 502) and refused.em)


@pytest.mark.parametrize("last", [5, "x", ["a"], {"k": {}}, {"proto": "smtp "}])
def test_a_last_argument_that_is_no_map_of_texts_is_refused(last: object) -> None:
    with pytest.raises(BadRequest):
        registered("/s", "10.0.0.1:5", "redis", "", last)
