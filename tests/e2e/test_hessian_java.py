"""Hessian 2 with Caucho's own Java on the other side: what it writes we read, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.wire.hessian import (
    HessianList,
    HessianMap,
    HessianObject,
    Scalar,
    Value,
    decode,
    encode,
    hessian_to_json,
    scan_route,
)
from proxy.wire.hessian.errors import DEFAULT_LIMITS
from proxy.wire.hessian.skipper import Skipper
from tests.support.hessian_forms import write_in_any_form
from tests.support.hessian_outline import outline
from tests.support.hessian_values import RANDOMS, SCALARS, TEXTS
from tests.support.java_hessian import JavaHessian, java_hessian, missing

pytestmark = pytest.mark.e2e

# Where Java's bytes differ from ours: binary data in chunks of its buffer's size, doubles in
# thousandths (0x5f), open lists, numbers boxed in handles of its own.
OTHER_BYTES = ["binaries", "doubles", "open lists"]
SAME_BYTES = ["texts", "integers", "dates", "many classes", "cycles", "empty"]
REQUESTS = ["HashMap", "LinkedHashMap", "Props", "object", "reference"]


@pytest.fixture(scope="module")
def java(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JavaHessian]:
    if reason := missing():
        pytest.skip(reason)
    with java_hessian(tmp_path_factory.mktemp("java")) as peer:
        yield peer


@pytest.mark.parametrize("name", OTHER_BYTES + SAME_BYTES)
def test_vector_means_the_same_on_both_sides(java: JavaHessian, name: str) -> None:
    body, seen_by_java = java.named(name)
    value = decode(body)
    assert outline(value) == seen_by_java
    assert java.read(encode(value))[1] == seen_by_java
    assert Skipper(body, DEFAULT_LIMITS).skip(0) == len(body)


@pytest.mark.parametrize("name", SAME_BYTES + [f"request {name}" for name in REQUESTS])
def test_we_write_the_bytes_that_java_writes(java: JavaHessian, name: str) -> None:
    body, _ = java.named(name)
    assert encode(decode(body)) == body


@pytest.mark.parametrize("name", REQUESTS)
def test_route_of_a_request_that_java_wrote(java: JavaHessian, name: str) -> None:
    route = scan_route(java.named(f"request {name}")[0])
    assert (route.uri, route.group, route.method) == ("/service/user", "blue", "getName")
    assert route.props == {"hashid": "7"}


def test_boxed_numbers_of_java_become_numbers(java: JavaHessian) -> None:
    assert hessian_to_json(java.named("numbers of Java")[0]) == b"[5,-300,1.5]"


def test_random_values_of_java(java: JavaHessian) -> None:
    for seed in range(300):
        body, seen_by_java = java.random(seed)
        value = decode(body)
        assert outline(value) == seen_by_java, f"seed {seed}"
        assert java.read(encode(value))[1] == seen_by_java, f"seed {seed}"
        assert Skipper(body, DEFAULT_LIMITS).skip(0) == len(body), f"seed {seed}"


def _object(inner: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    return st.tuples(inner, inner).map(
        lambda pair: HessianObject("HessianPeer$Box", ("a", "b"), list(pair))
    )


def _plain_nan(value: Scalar) -> Scalar:
    return math.nan if value != value else value


# Only classes that the other side has, and keys that have an order in the outline.
MAP_TYPES = st.sampled_from([None, "java.util.LinkedHashMap", "HessianPeer$Props"])
LIST_TYPES = st.sampled_from([None, "java.util.LinkedList", "[object"])
JAVA_VALUES: st.SearchStrategy[Value] = st.recursive(
    SCALARS.map(_plain_nan),
    lambda inner: st.one_of(
        st.builds(HessianList, st.lists(inner, max_size=9), LIST_TYPES),
        st.builds(HessianMap, st.lists(st.tuples(TEXTS, inner), max_size=5), MAP_TYPES),
        _object(inner),
    ),
    max_leaves=30,
)
JAVA_FORMS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(JAVA_VALUES)
@JAVA_FORMS
def test_java_reads_what_we_write(java: JavaHessian, value: Value) -> None:
    _, seen_by_java = java.read(encode(value))
    assert seen_by_java == outline(value)


@given(JAVA_VALUES, RANDOMS)
@JAVA_FORMS
def test_what_java_makes_of_any_form_we_read_back(
    java: JavaHessian, value: Value, random: Random
) -> None:
    body = write_in_any_form(value, random, astral="pairs")
    written_by_java, seen_by_java = java.read(body)
    assert seen_by_java == outline(decode(body))
    # Java writes -0.0 as the 0.0 of one byte.
    assert seen_by_java.replace("d8000000000000000", "d0000000000000000") == outline(
        decode(written_by_java)
    )
