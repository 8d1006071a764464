"""Values that every request makes some of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[_T]) -> type[_T]:
    """A class as by `dataclass(frozen=True, slots=True)`, kept so by the type checker alone.

    Freezing it at run time would make each one cost three times as much: 1 to 3 us for the
    header of a mesh request.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
