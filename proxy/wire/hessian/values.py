"""Hessian values as Python values: what survives a round trip, and what a value is called.

Null, boolean, int (32 bits), double, string and binary are None, bool, int, float, str and
bytes. What Python has no word for is here. Lists, maps and objects can hold themselves, so
they are equal only to themselves; their lists may be filled after they were made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias


class Long(int):
    """A 64-bit integer. Java keeps Integer and Long apart, so must a copy of its values."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Long({int(self)})"


@dataclass(frozen=True, slots=True)
class Date:
    """A moment, in milliseconds since 1970 in UTC: 64 bits, more than `datetime` can hold."""

    unix_ms: int


@dataclass(frozen=True, slots=True, eq=False)
class HessianList:
    """A list; `type` is the name that the sender gave, such as `[int`, or None."""

    items: list[Value]
    type: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class HessianMap:
    """A map as pairs in the order of the wire: any value may be a key, also twice."""

    entries: list[tuple[Value, Value]]
    type: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class HessianObject:
    """An object of class `type`: `values` in the order of the field `names`.

    All objects of one class definition share one tuple of names.
    """

    type: str
    names: tuple[str, ...]
    values: list[Value]

    def fields(self) -> Iterator[tuple[str, Value]]:
        """Each field's name with its value; a peer may send one name twice."""
        return zip(self.names, self.values, strict=True)


Scalar: TypeAlias = bool | int | Long | float | str | bytes | Date | None
Container: TypeAlias = HessianList | HessianMap | HessianObject
Value: TypeAlias = Scalar | Container
