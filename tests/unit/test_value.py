"""Values of a request: what a frozen dataclass promises, at a third of its price."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from proxy.wire.moa import Route
from proxy.wire.value import value


@value
class Made:
    one: int
    two: str = "two"


@dataclass(frozen=True, slots=True)
class Frozen:
    one: int
    two: str = "two"


def test_values_are_equal_and_hash_as_frozen_ones_do() -> None:
    assert Made(1) == Made(1, "two") != Made(2)
    assert hash(Made(1)) == hash(Frozen(1))
    assert replace(Made(1), one=3) == Made(3)
    assert repr(Made(1)) == "Made(one=1, two='two')"


def test_a_value_has_nothing_but_its_fields() -> None:
    route = Route("/service/a", "", "m", {})
    with pytest.raises(AttributeError):
        route.unknown = 1  # type: ignore[attr-defined]
