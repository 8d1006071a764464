"""Values in, Hessian 2 out: each value in its shortest form, as Java writes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from proxy.wire.hessian import tags
from proxy.wire.hessian.errors import DEFAULT_LIMITS, EncodeError, Limits
from proxy.wire.hessian.numbers import write_int
from proxy.wire.hessian.scalars import WRITE
from proxy.wire.hessian.texts import write_text
from proxy.wire.hessian.values import (
    Container,
    HessianList,
    HessianMap,
    HessianObject,
    Value,
)

_END = bytes((tags.END,))


def encode(value: Value, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The bytes of `value`; a container met again is written as a reference.

    Types are told exactly: an int is 32 bits and a Long 64. Lists have their length before
    them. Raises EncodeError for a type that is no Value, a number out of its range, and a
    value that passes the limits. No value may change meanwhile.
    """
    return _Writer(limits).write(value)


class _Writer:
    __slots__ = ("_classes", "_limits", "_out", "_refs", "_types")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._out = bytearray()
        self._refs: dict[int, int] = {}
        self._classes: dict[tuple[str, tuple[str, ...]], int] = {}
        self._types: dict[str, int] = {}

    def write(self, value: Value) -> bytes:
        stack: list[tuple[Iterator[Value], bytes]] = [(iter((value,)), b"")]
        while stack:
            values, end = stack[-1]
            container = self._write_scalars(values)
            if container is None:
                self._out += end
                stack.pop()
            elif (children := self._begin(container)) is not None:
                if len(stack) > self._limits.max_depth:
                    raise EncodeError(f"nested deeper than {self._limits.max_depth} levels")
                closing = _END if isinstance(container, HessianMap) else b""
                stack.append((iter(children), closing))
        return bytes(self._out)

    def _write_scalars(self, values: Iterator[Value]) -> Container | None:
        """Write up to the next container, which is returned, or to the end."""
        out, most = self._out, self._limits.max_bytes
        for value in values:
            if write := WRITE.get(type(value)):
                out += write(value)
                if len(out) > most:
                    raise EncodeError(f"more than {most} bytes")
            elif isinstance(value, HessianList | HessianMap | HessianObject):
                return value
            else:
                raise EncodeError(f"{type(value).__name__} is no Hessian value: {value!r:.64}")
        return None

    def _begin(self, container: Container) -> Iterable[Value] | None:
        """Write the container's head; the values that follow, None when it is a reference."""
        seen = self._refs.get(id(container))
        if seen is not None:
            self._out.append(tags.REFERENCE)
            self._out += write_int(seen)
            return None
        if len(self._refs) == self._limits.max_references:
            raise EncodeError(f"more than {len(self._refs)} containers")
        self._refs[id(container)] = len(self._refs)
        if isinstance(container, HessianList):
            return self._begin_list(container)
        if isinstance(container, HessianMap):
            return self._begin_map(container)
        return self._begin_object(container)

    def _begin_list(self, value: HessianList) -> Iterable[Value]:
        count = len(value.items)
        short = count < len(tags.SHORT_LIST)
        if value.type is None:
            self._out.append(tags.SHORT_LIST.start + count if short else tags.LIST)
        else:
            self._out.append(tags.SHORT_TYPED_LIST.start + count if short else tags.TYPED_LIST)
            self._write_type(value.type)
        if not short:
            self._out += write_int(count)
        return value.items

    def _begin_map(self, value: HessianMap) -> Iterable[Value]:
        if value.type is None:
            self._out.append(tags.MAP)
        else:
            self._out.append(tags.TYPED_MAP)
            self._write_type(value.type)
        return chain.from_iterable(value.entries)

    def _begin_object(self, value: HessianObject) -> Iterable[Value]:
        if len(value.names) != len(value.values):
            raise EncodeError(
                f"object of {value.type!r:.64} has {len(value.values)} values for "
                f"{len(value.names)} fields"
            )
        key = (value.type, value.names)
        index = self._classes.get(key)
        if index is None:
            index = self._define(key)
        if index < len(tags.SHORT_OBJECT):
            self._out.append(tags.SHORT_OBJECT.start + index)
        else:
            self._out.append(tags.OBJECT)
            self._out += write_int(index)
        return value.values

    def _define(self, key: tuple[str, tuple[str, ...]]) -> int:
        index = len(self._classes)
        if index == self._limits.max_definitions:
            raise EncodeError(f"more than {index} classes")
        self._classes[key] = index
        type_, names = key
        self._out.append(tags.CLASS_DEF)
        self._out += write_text(type_)
        self._out += write_int(len(names))
        for name in names:
            self._out += write_text(name)
        return index

    def _write_type(self, name: str) -> None:
        index = self._types.get(name)
        if index is not None:
            self._out += write_int(index)
            return
        if len(self._types) == self._limits.max_definitions:
            raise EncodeError(f"more than {len(self._types)} type names")
        self._types[name] = len(self._types)
        self._out += write_text(name)
