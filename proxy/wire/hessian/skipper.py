"""Walks over Hessian 2 values without making them: the ground of the scanners."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from typing import Final

from proxy.wire.hessian import tags
from proxy.wire.hessian.errors import HessianError, LimitError, Limits, LongScan
from proxy.wire.hessian.scalars import SKIP, read_index
from proxy.wire.hessian.texts import read_text, skip_text

_IN_MAP: Final = -2
"""Values still to come in a map: counted down from here, so odd behind a key."""
_IN_OPEN_LIST: Final = -(1 << 40)
"""Values still to come in a list of open length: no body is long enough to reach _IN_MAP."""


Visit = Callable[[str | None, int], int]
"""Takes an entry's key, None when it is no string, and its value's offset; returns the
offset behind the value."""


@dataclass(frozen=True, slots=True)
class _Class:
    """A class definition: how many fields it has, and where the first one's name is."""

    count: int
    names_at: int


class Skipper:
    """Goes over one body from its begin to its end and remembers where each container is.

    Methods take the offset of a value and return the one behind it. They raise HessianError
    for what is no Hessian 2 and IndexError where the body ends. What is passed over is checked
    as far as its size depends on it: strings need not be UTF-8, nor numbers of types exist.
    With `max_steps`, LongScan is raised behind so many values, keys and names altogether.
    """

    __slots__ = ("_again", "_classes", "_data", "_limits", "_starts", "_steps", "has_references")

    def __init__(self, data: bytes, limits: Limits, max_steps: int | None = None) -> None:
        self.has_references = False
        # One iterator for all loops: cheaper than a counter, which each would have to store.
        self._steps = repeat(None) if max_steps is None else repeat(None, max_steps)
        self._data = data
        self._limits = limits
        self._starts = array("L")
        self._classes: list[_Class] = []
        self._again = False

    def go_back(self) -> None:
        """Behind the end: from now on only values that were seen are visited again."""
        self._again = True

    def target(self, at: int) -> int:
        """The offset of the container that the reference at `at` refers to."""
        index, _ = read_index(self._data, at + 1, "a reference's number")
        return self._starts[index]

    def is_empty_list(self, at: int) -> bool:
        """Whether the list at `at` holds nothing."""
        first, count = self._open_list(self._data[at], at)
        return count == 0 or (count < 0 and self._data[first] == tags.END)

    def behind_definitions(self, at: int) -> int:
        """The offset of the value itself, behind the class definitions before it."""
        while self._data[at] == tags.CLASS_DEF:
            at = self._define(at)
        return at

    def skip(self, at: int) -> int:
        """Pass over one value with everything in it."""
        data, sizes = self._data, tags.SIZES
        left = 1
        outer: list[int] = []
        for _ in self._steps:
            tag = data[at]
            if size := sizes[tag]:
                at += size
                left -= 1
            elif tag < 0x20 and data[at + 1 : at + 1 + tag].isascii():
                at += 1 + tag
                left -= 1
            elif skip := SKIP[tag]:
                at = skip(data, at)
                left -= 1
            else:
                at, left = self._step(tag, at, left, outer)
            while left == 0:
                if not outer:
                    return at
                left = outer.pop()
        raise LongScan

    def visit_entries(self, at: int, visit: Visit) -> int:
        """Visit the entries of the map, or the fields of the object, at `at`."""
        tag = self._data[at]
        value_at, count = self._open(tag, at)
        if tag in tags.MAPS:
            return self._visit_pairs(value_at, visit)
        names_at = self._class_of(tag, at)[0].names_at
        for _ in range(count):
            self._spend()
            name, names_at = read_text(self._data, names_at)
            value_at = visit(name, value_at)
        return value_at

    def _visit_pairs(self, at: int, visit: Visit) -> int:
        for _ in self._steps:
            if self._data[at] == tags.END:
                return at + 1
            at = self.behind_definitions(at)
            if self._data[at] in tags.TEXTS:
                key, at = read_text(self._data, at)
                at = visit(key, at)
            else:
                at = visit(None, self.skip(at))
        raise LongScan

    def _step(self, tag: int, at: int, left: int, outer: list[int]) -> tuple[int, int]:
        """Pass over a definition, a reference or an end, or enter a container."""
        if tag == tags.END:
            if left >= 0:
                raise HessianError(f"end marker at {at} outside a map or a list of open length")
            if left > _IN_OPEN_LIST // 2 and left % 2:
                raise HessianError(f"map ends at {at} behind a key without a value")
            return at + 1, outer.pop()
        if tag == tags.CLASS_DEF:
            return self._define(at), left
        if tag == tags.REFERENCE:
            return self._skip_reference(at), left - 1
        if len(outer) == self._limits.max_depth:
            raise LimitError(f"value at {at} is nested deeper than {len(outer)} levels")
        outer.append(left - 1)
        return self._open(tag, at)

    def _spend(self) -> None:
        if next(self._steps, self) is self:
            raise LongScan

    def _skip_reference(self, at: int) -> int:
        self.has_references = True
        index, end = read_index(self._data, at + 1, "a reference's number")
        if index >= len(self._starts):
            raise HessianError(
                f"reference at {at} to value {index}, of which {len(self._starts)} were seen"
            )
        return end

    def _open(self, tag: int, at: int) -> tuple[int, int]:
        """Enter a container: where its first value is, and how many there are."""
        opener = _OPENERS[tag]
        if opener is None:
            raise HessianError(f"tag 0x{tag:02x} at {at} begins no value")
        if not self._again:
            if len(self._starts) == self._limits.max_references:
                raise LimitError(f"container at {at} is over the limit of {len(self._starts)}")
            self._starts.append(at)
        return opener(self, tag, at)

    def _open_list(self, tag: int, at: int) -> tuple[int, int]:
        at += 1
        if tag in _TYPED_LISTS:
            at = self._skip_type(at)
        if tag in tags.SHORT_TYPED_LIST or tag in tags.SHORT_LIST:
            return at, tag & 7
        if tag in (tags.OPEN_LIST, tags.TYPED_OPEN_LIST):
            return at, _IN_OPEN_LIST
        count, at = read_index(self._data, at, "a list's length")
        return at, count

    def _open_map(self, tag: int, at: int) -> tuple[int, int]:
        return (self._skip_type(at + 1) if tag == tags.TYPED_MAP else at + 1), _IN_MAP

    def _open_object(self, tag: int, at: int) -> tuple[int, int]:
        class_, at = self._class_of(tag, at)
        return at, class_.count

    def _class_of(self, tag: int, at: int) -> tuple[_Class, int]:
        index, end = tag - tags.SHORT_OBJECT.start, at + 1
        if tag == tags.OBJECT:
            index, end = read_index(self._data, end, "a class's number")
        if index >= len(self._classes):
            raise HessianError(
                f"object at {at} of class {index}, of which {len(self._classes)} were defined"
            )
        return self._classes[index], end

    def _skip_type(self, at: int) -> int:
        if self._data[at] in tags.INTS:
            return read_index(self._data, at, "a type's number")[1]
        return skip_text(self._data, at)

    def _define(self, at: int) -> int:
        count, names_at = read_index(self._data, skip_text(self._data, at + 1), "a field count")
        at = names_at
        for _ in range(count):
            self._spend()
            at = skip_text(self._data, at)
        if not self._again:
            if len(self._classes) == self._limits.max_definitions:
                raise LimitError(f"more than {len(self._classes)} class definitions")
            self._classes.append(_Class(count, names_at))
        return at


def is_long(body: bytes, limits: Limits, max_values: int) -> bool:
    """Whether decoding `body` means more than `max_values` values, or any number of them.

    That is so with references: what one of them stands for counts at each place. False also
    where the body is no Hessian 2, which decoding it finds as soon.
    """
    skipper = Skipper(body, limits, max_values)
    try:
        skipper.skip(0)
    except LongScan:
        return True
    except (HessianError, IndexError, struct.error):
        return False
    return skipper.has_references


_Opener = Callable[[Skipper, int, int], tuple[int, int]]


def _openers() -> tuple[_Opener | None, ...]:
    openers: dict[int, _Opener] = {
        **dict.fromkeys(tags.LISTS, Skipper._open_list),
        **dict.fromkeys(tags.MAPS, Skipper._open_map),
        **dict.fromkeys(tags.OBJECTS, Skipper._open_object),
    }
    return tuple(openers.get(tag) for tag in range(256))


_OPENERS: Final = _openers()
_TYPED_LISTS: Final = frozenset({tags.TYPED_LIST, tags.TYPED_OPEN_LIST, *tags.SHORT_TYPED_LIST})
