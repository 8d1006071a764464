"""Hessian values for property tests: also shared ones, and ones that hold themselves."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from hypothesis import strategies as st

from proxy.wire.hessian import (
    Container,
    Date,
    HessianList,
    HessianMap,
    HessianObject,
    Long,
    Scalar,
    Value,
)

RANDOMS = st.integers(0, 2**32).map(Random)
"""For choices that need not shrink."""

_EDGES = [0, 15, 16, 47, 48, 2047, 2048, 262143, 262144]


def _integers(bits: int) -> st.SearchStrategy[int]:
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    near = st.sampled_from(_EDGES).flatmap(lambda edge: st.integers(edge - 1, edge + 1))
    return near | near.map(int.__neg__) | st.integers(least, most)


ANY_CHARACTER = st.characters(codec=None)
TEXTS = (
    st.text(ANY_CHARACTER, max_size=12)
    | st.text("ab\u00e9\u4e2d\U0001f600", max_size=80)
    | st.text("ab\ud83d\ude00", max_size=12)
)
DATES = (
    st.integers(-(2**63), 2**63 - 1) | st.integers(-(2**31), 2**31 - 1).map((60_000).__mul__)
).map(Date)
DOUBLES = (
    st.floats()
    | st.integers(-40_000, 40_000).map(float)
    | st.integers(-(2**31), 2**31 - 1).map((0.001).__mul__)
)
SCALARS: st.SearchStrategy[Scalar] = st.one_of(
    st.none(),
    st.booleans(),
    _integers(32),
    _integers(64).map(Long),
    DOUBLES,
    TEXTS,
    st.binary(max_size=40),
    DATES,
)
CLASSES = [
    ("a.A", ()),
    ("a.B", ("x",)),
    ("a.B", ("x", "y")),
    *((f"c.C{n}", ("n",)) for n in range(16)),
]
TYPES: st.SearchStrategy[str | None] = st.sampled_from([None, None, "[int", "t.T", "\u4e2d"])


@st.composite
def values(
    draw: st.DrawFn,
    scalars: st.SearchStrategy[Scalar] = SCALARS,
    keys: st.SearchStrategy[Scalar] | None = None,
    max_containers: int = 24,
) -> Value:
    """A value; its containers hold scalars, each other and themselves.

    `keys` are the keys of maps, anything when None.
    """
    makers = draw(st.lists(st.sampled_from(_EMPTY), max_size=max_containers))
    containers = [make(draw) for make in makers]
    if not containers:
        return draw(scalars)

    def child() -> Value:
        return draw(scalars) if draw(st.booleans()) else draw(st.sampled_from(containers))

    for container in containers:
        count = draw(st.integers(0, 9))
        if isinstance(container, HessianList):
            container.items.extend(child() for _ in range(count))
        elif isinstance(container, HessianMap):
            container.entries.extend(
                (child() if keys is None else draw(keys), child()) for _ in range(count)
            )
        else:
            container.values.extend(child() for _ in container.names)
    return containers[0]


def _object(draw: st.DrawFn) -> Container:
    type_, names = draw(st.sampled_from(CLASSES))
    return HessianObject(type_, names, [])


_EMPTY: list[Callable[[st.DrawFn], Container]] = [
    lambda draw: HessianList([], draw(TYPES)),
    lambda draw: HessianMap([], draw(TYPES)),
    _object,
]
