"""What we write, as PyPI's python-hessian reads it: an oracle that we did not write.

It only reads Hessian 2 (it writes Hessian 1), and reads within these bounds of its own, all
seen in version 1.2.0: a string with a length of 16 bits loses the characters `z` to DEL; half a
surrogate pair is an error; a fixed list becomes a tuple, and an empty one is not counted among
the references; types of lists and of maps are dropped; keys must be hashable; dates must be
ones of `datetime`.
"""

from __future__ import annotations

import datetime
import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pyhessian.data_types import long
from pyhessian.parser import Parser
from pyhessian.protocol import Binary, Object

from proxy.wire.hessian import (
    Date,
    HessianList,
    HessianMap,
    HessianObject,
    Long,
    Scalar,
    Value,
    encode,
)
from tests.support.hessian_values import CLASSES, DOUBLES, TYPES

WHOLE_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
EPOCH = datetime.datetime(1970, 1, 1)
DATES = st.integers(-(10**12), 4 * 10**12).map(Date)
KEYS: st.SearchStrategy[Scalar] = WHOLE_TEXTS | st.integers(-(2**31), 2**31 - 1)
SCALARS: st.SearchStrategy[Scalar] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1).map(Long),
    DOUBLES,
    WHOLE_TEXTS,
    st.integers(1020, 1030).map("\u00e9".__mul__),
    st.binary(max_size=40),
    st.integers(1020, 1030).map(b"\xff".__mul__),
    DATES,
)


def _objects(inner: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    return st.sampled_from(CLASSES).flatmap(
        lambda class_: st.lists(inner, min_size=len(class_[1]), max_size=len(class_[1])).map(
            lambda items: HessianObject(class_[0], class_[1], items)
        )
    )


VALUES: st.SearchStrategy[Value] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(HessianList, st.lists(inner, max_size=9), TYPES),
        st.builds(HessianMap, st.lists(st.tuples(KEYS, inner), max_size=4), TYPES),
        _objects(inner),
    ),
    max_leaves=20,
)


def read_by_python_hessian(body: bytes) -> Any:
    return Parser().parse_string(b"H\x02\x00R" + body).value


def assert_same(value: Value, read: Any) -> None:
    if isinstance(value, HessianList):
        assert len(read) == len(value.items)
        for item, seen in zip(value.items, read, strict=True):
            assert_same(item, seen)
    elif isinstance(value, HessianMap):
        entries = dict(value.entries)
        assert read.keys() == entries.keys()
        for key, child in entries.items():
            assert_same(child, read[key])
    elif isinstance(value, HessianObject):
        assert isinstance(read, Object)
        assert f"{type(read).__module__}.{type(read).__name__}" == value.type
        for name, child in value.fields():
            assert_same(child, getattr(read, name))
    else:
        assert_same_scalar(value, read)


def assert_same_scalar(value: Scalar, read: Any) -> None:
    match value:
        case bytes():
            assert read == Binary(value)
        case Date():
            assert abs((read - EPOCH) / datetime.timedelta(milliseconds=1) - value.unix_ms) < 0.01
        case float():
            assert type(read) is float
            assert read == value or (math.isnan(read) and math.isnan(value))
        case Long():
            assert type(read) is long
            assert read == value
        case _:
            assert type(read) is type(value)
            assert read == value


@given(VALUES)
@settings(max_examples=60)
def test_python_hessian_reads_what_we_write(value: Value) -> None:
    assert_same(value, read_by_python_hessian(encode(HessianList([value])))[0])


def test_python_hessian_follows_our_references() -> None:
    shared = HessianMap([("a", 1)])
    loop = HessianMap([("x", shared), ("y", shared)])
    loop.entries.append(("loop", loop))
    read = read_by_python_hessian(encode(loop))
    assert read["loop"] is read
    assert read["x"] is read["y"]
    assert read["x"] == {"a": 1}
