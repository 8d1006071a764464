"""Bounds of Hessian bodies: depth, size, references, definitions, and linear time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.wire.hessian import (
    EncodeError,
    HessianError,
    HessianList,
    HessianMap,
    HessianObject,
    LimitError,
    Limits,
    Value,
    decode,
    encode,
    scan_route,
)
from proxy.wire.hessian.errors import DEFAULT_LIMITS
from proxy.wire.hessian.skipper import Skipper
from proxy.wire.hessian.texts import skip_text
from proxy.wire.moa import BadRequest, Ec
from tests.support.hessian_outline import outline

SMALL = Limits(max_bytes=100, max_depth=3, max_references=5, max_definitions=2)

OVER_LIMIT = {
    "nested deeper than 3 levels": b"\x79\x79\x79\x79\x90",
    "container at 5 is over the limit of 5": b"\x7e" + b"\x78" * 6,
    "over the limit of 2": b"C\x01A\x90C\x01B\x90C\x01C\x90\x60",
    "type name at 8": b"\x7b\x70\x01a\x70\x01b\x70\x01c",
    "body of 101 bytes": b"S\x00\x62" + b"x" * 98,
}


@pytest.mark.parametrize("words", OVER_LIMIT)
def test_body_over_a_limit_is_refused(words: str) -> None:
    with pytest.raises(LimitError) as caught:
        decode(OVER_LIMIT[words], SMALL)
    assert words in str(caught.value)


def test_body_at_its_limits_is_read() -> None:
    body = b"C\x01A\x90C\x01B\x90\x7a\x72\x01a\x60\x61\x70\x01b"
    assert outline(decode(body, SMALL)) == "(|(a|<A|>,<B|>,),(b|),)"


@pytest.mark.parametrize(
    "value",
    [
        HessianList([HessianList([HessianList([HessianList([])])])]),
        HessianList([HessianList([]) for _ in range(5)]),
        HessianList([HessianObject(name, (), []) for name in "ABC"]),
        HessianList([HessianMap([], name) for name in "ABC"]),
        "x" * 100,
    ],
    ids=["depth", "references", "classes", "types", "bytes"],
)
def test_value_over_a_limit_is_not_written(value: Value) -> None:
    with pytest.raises(EncodeError):
        encode(value, SMALL)


def test_reference_is_no_level_of_depth() -> None:
    body = b"\x79\x79\x79Q\x90"
    assert encode(decode(body, SMALL), SMALL) == body


def test_scan_answers_a_request_over_a_limit() -> None:
    for inside in (b"\x79" * 600 + b"\x90", b"X\xc8\x40" + b"C\x01A\x90" * 5000 + b"\x60" * 64):
        with pytest.raises(BadRequest) as caught:
            scan_route(b"H\x01x" + inside + b"Z")
        assert caught.value.ec == Ec.SERIALIZATION


def test_deep_value_needs_no_recursion() -> None:
    depth = 20_000
    limits = Limits(max_depth=depth + 1)
    body = b"\x79" * depth + b"\x90"
    read = decode(body, limits)
    assert encode(read, limits) == body
    assert Skipper(body, limits).skip(0) == len(body)
    while isinstance(read, HessianList):
        read = read.items.pop()


class CountingBytes(bytes):
    """A body that counts the bytes that slices copy, and its single bytes that were looked at."""

    touched = 0

    def __getitem__(self, key: object) -> object:  # type: ignore[override]
        got = bytes.__getitem__(self, key)  # type: ignore[call-overload]
        CountingBytes.touched += len(got) if isinstance(got, bytes) else 1
        return got


def touched(read: Callable[[bytes], object], body: bytes) -> int:
    CountingBytes.touched = 0
    read(CountingBytes(body))
    return CountingBytes.touched


def skip(body: bytes) -> int:
    return Skipper(body, DEFAULT_LIMITS).skip(0)


@pytest.mark.parametrize(
    "text",
    ["a" * 60_000, "\u00e9" * 30_000, "\u4e2d" * 20_000, "\U0001f600" * 10_000, "a\u4e2d" * 15_000],
    ids=["1 byte", "2 bytes", "3 bytes", "pairs", "mixed"],
)
def test_bytes_of_a_string_are_touched_a_few_times(text: str) -> None:
    for body in (
        encode(text),
        b"\x79" + encode(text),
        b"S\x4e\x20" + "\U0001f600".encode() * 10_000,
    ):
        assert touched(decode, body) < 4 * len(body) + 200
        assert touched(skip, body) < 4 * len(body) + 200


@pytest.mark.parametrize("read", [decode, skip])
def test_bytes_of_many_small_values_are_touched_a_few_times(
    read: Callable[[bytes], object],
) -> None:
    item: Value = HessianMap([("name", "\u4e2d"), ("age", 300), ("list", HessianList([1, "a"]))])
    one = touched(read, encode(HessianList([item])))
    body = b"X\xcb\xe8" + encode(item) * 1000
    assert touched(read, body) <= 1000 * one


def test_continuation_bytes_without_end_are_refused_at_once() -> None:
    CountingBytes.touched = 0
    with pytest.raises(HessianError):
        skip_text(CountingBytes(b"\x01" + b"\x80" * 1_000_000), 0)
    assert CountingBytes.touched < 100
