"""Hessian 2 in, values out: one body, read as a whole, without recursion."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from proxy.wire.hessian import tags
from proxy.wire.hessian.errors import DEFAULT_LIMITS, HessianError, LimitError, Limits
from proxy.wire.hessian.scalars import READ, read_index
from proxy.wire.hessian.texts import read_text
from proxy.wire.hessian.values import (
    Container,
    HessianList,
    HessianMap,
    HessianObject,
    Value,
)

_OPEN = -1


def decode(body: bytes, limits: Limits = DEFAULT_LIMITS) -> Value:
    """The one value that `body` holds (Hessian 2.0 serialization, all forms).

    A reference becomes the very container that it refers to, so shared and cyclic values stay
    so. Takes time and memory linear in the body. Raises HessianError when the body is not
    exactly one value, LimitError when it passes a limit.
    """
    if len(body) > limits.max_bytes:
        raise LimitError(f"body of {len(body)} bytes is over the limit of {limits.max_bytes}")
    reader = _Reader(body, limits)
    try:
        value = reader.read()
    except (IndexError, struct.error):
        raise HessianError(
            f"body of {len(body)} bytes ends within the value at {reader.at}"
        ) from None
    if reader.at != len(body):
        raise HessianError(f"expected the end at {reader.at}, got {len(body) - reader.at} bytes")
    return value


@dataclass(frozen=True, slots=True)
class _Class:
    type: str
    names: tuple[str, ...]


class _Frame:
    """A container that is being filled; `count` is how many values it takes, or _OPEN."""

    __slots__ = ("count", "items", "map")

    def __init__(self, items: list[Value], count: int, map_: HessianMap | None = None) -> None:
        self.items = items
        self.count = count
        self.map = map_


class _Reader:
    __slots__ = ("_classes", "_data", "_defined_at", "_limits", "_refs", "_stack", "_types", "at")

    def __init__(self, data: bytes, limits: Limits) -> None:
        self.at = 0
        self._data = data
        self._limits = limits
        self._stack: list[_Frame] = []
        self._refs: list[Container] = []
        self._classes: list[_Class] = []
        self._types: list[str] = []
        self._defined_at = -1

    def read(self) -> Value:
        top: list[Value] = []
        self._stack.append(_Frame(top, 1))
        while self._stack:
            self._fill(self._stack[-1])
        return top[0]

    def _fill(self, frame: _Frame) -> None:
        """Read into `frame` until it is complete or holds a container that comes first."""
        data, at = self._data, self.at
        items, count = frame.items, frame.count
        while len(items) != count:
            tag = data[at]
            if (read := READ[tag]) is None:
                if (step := _STEPS[tag]) is None:
                    raise HessianError(f"tag 0x{tag:02x} at {at} begins no value")
                step(self, tag)
                return
            value, at = read(data, at)
            items.append(value)
            self.at = at
        self._stack.pop()

    def _end(self, _tag: int) -> None:
        frame = self._stack.pop()
        if frame.count != _OPEN:
            raise HessianError(f"end marker at {self.at} outside a map or a list of open length")
        if self._defined_at == self.at:
            raise HessianError(f"class definition before {self.at} is followed by no value")
        if frame.map is not None:
            if len(frame.items) % 2:
                raise HessianError(f"map ends at {self.at} behind a key without a value")
            pairs = iter(frame.items)
            frame.map.entries.extend(zip(pairs, pairs, strict=True))
        self.at += 1

    def _reference(self, _tag: int) -> None:
        index, end = read_index(self._data, self.at + 1, "a reference's number")
        if index >= len(self._refs):
            raise HessianError(
                f"reference at {self.at} to value {index}, of which {len(self._refs)} were seen"
            )
        self._stack[-1].items.append(self._refs[index])
        self.at = end

    def _define(self, _tag: int) -> None:
        if len(self._classes) == self._limits.max_definitions:
            raise LimitError(
                f"class definition at {self.at} is over the limit of {len(self._classes)}"
            )
        name, at = read_text(self._data, self.at + 1)
        count, at = self._count(at, "a number of fields")
        names: list[str] = []
        for _ in range(count):
            field, at = read_text(self._data, at)
            names.append(field)
        self._classes.append(_Class(name, tuple(names)))
        self.at = self._defined_at = at

    def _list(self, tag: int) -> None:
        at, type_, count = self.at + 1, None, _OPEN
        if tag in tags.SHORT_TYPED_LIST or tag in (tags.TYPED_LIST, tags.TYPED_OPEN_LIST):
            type_, at = self._type(at)
        if tag in tags.SHORT_TYPED_LIST or tag in tags.SHORT_LIST:
            count = tag & 7
        elif tag in (tags.TYPED_LIST, tags.LIST):
            count, at = self._count(at, "a list's length")
        items: list[Value] = []
        self._push(HessianList(items, type_), _Frame(items, count), at)

    def _map(self, tag: int) -> None:
        at, type_ = self.at + 1, None
        if tag == tags.TYPED_MAP:
            type_, at = self._type(at)
        map_ = HessianMap([], type_)
        self._push(map_, _Frame([], _OPEN, map_), at)

    def _object(self, tag: int) -> None:
        index, at = tag - tags.SHORT_OBJECT.start, self.at + 1
        if tag == tags.OBJECT:
            index, at = read_index(self._data, at, "a class's number")
        if index >= len(self._classes):
            raise HessianError(
                f"object at {self.at} of class {index}, of which {len(self._classes)} were defined"
            )
        class_ = self._classes[index]
        values: list[Value] = []
        object_ = HessianObject(class_.type, class_.names, values)
        self._push(object_, _Frame(values, len(class_.names)), at)

    def _push(self, container: Container, frame: _Frame, at: int) -> None:
        if len(self._refs) == self._limits.max_references:
            raise LimitError(f"container at {self.at} is over the limit of {len(self._refs)}")
        if len(self._stack) > self._limits.max_depth:
            raise LimitError(
                f"value at {self.at} is nested deeper than {self._limits.max_depth} levels"
            )
        self._refs.append(container)
        self._stack[-1].items.append(container)
        self._stack.append(frame)
        self.at = at

    def _count(self, at: int, what: str) -> tuple[int, int]:
        """A number of values that follow: each has one byte or more."""
        count, end = read_index(self._data, at, what)
        if count > len(self._data) - end:
            raise HessianError(
                f"{what} at {at} is {count}, and {len(self._data) - end} bytes are left"
            )
        return count, end

    def _type(self, at: int) -> tuple[str, int]:
        if self._data[at] in tags.INTS:
            index, end = read_index(self._data, at, "a type's number")
            if index >= len(self._types):
                raise HessianError(f"type {index} at {at}, of which {len(self._types)} were named")
            return self._types[index], end
        if len(self._types) == self._limits.max_definitions:
            raise LimitError(f"type name at {at} is over the limit of {len(self._types)}")
        name, end = read_text(self._data, at)
        self._types.append(name)
        return name, end


_Step = Callable[[_Reader, int], None]


def _steps() -> tuple[_Step | None, ...]:
    steps: dict[int, _Step] = {
        tags.END: _Reader._end,
        tags.REFERENCE: _Reader._reference,
        tags.CLASS_DEF: _Reader._define,
        **dict.fromkeys(tags.LISTS, _Reader._list),
        **dict.fromkeys(tags.MAPS, _Reader._map),
        **dict.fromkeys(tags.OBJECTS, _Reader._object),
    }
    return tuple(steps.get(tag) for tag in range(256))


_STEPS = _steps()
