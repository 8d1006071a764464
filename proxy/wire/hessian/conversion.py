"""Turns one tree of values into another without recursion, and names what cannot be turned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from proxy.wire.hessian.errors import Limits

Key = str | int

_SHOWN_CHARS = 64


class Untranslatable(Exception):
    """A value has no counterpart in the other protocol.

    `path` leads to it from the whole value, `$`; `shown` is its beginning. The text holds
    both and fits the `em` of a reply.
    """

    def __init__(self, path: str, shown: str, reason: str) -> None:
        super().__init__(f"{path}: {shown}: {reason}")
        self.path = path
        self.shown = shown
        self.reason = reason


class Refusal(Exception):
    """Raised by a step: why the value at hand has no counterpart."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A container made for another: `put` takes each child, under its key, into `made`."""

    made: object
    children: Iterable[tuple[Key, object]]
    put: Callable[[Key, object], None]


Step = Callable[[object], object]
"""The counterpart of a value, or a Branch; raises Refusal."""


class _Level:
    """A container that is being filled, and the key of the child at hand."""

    __slots__ = ("children", "key", "put", "source_id")

    def __init__(self, branch: Branch, source_id: int) -> None:
        self.children: Iterator[tuple[Key, object]] = iter(branch.children)
        self.put = branch.put
        self.source_id = source_id
        self.key: Key = ""


def convert(root: object, step: Step, limits: Limits) -> object:
    """The counterpart of `root` with everything in it.

    What is shared is made anew at each place, up to `limits.max_bytes` (a value counts 1, a
    text its characters too) and `limits.max_depth`; what holds itself is refused. Raises
    Untranslatable.
    """
    made: list[object] = []
    first = Branch(made, [("", root)], lambda _, value: made.append(value))
    stack = [_Level(first, 0)]
    inside: set[int] = set()
    room = limits.max_bytes
    while stack:
        level = stack[-1]
        for key, source in level.children:
            level.key = key
            try:
                value = step(source)
                room -= len(source) + 1 if isinstance(source, str) else 1
                if room < 0:
                    raise Refusal(f"with this the whole grows over {limits.max_bytes} bytes")
                if isinstance(value, Branch):
                    _check_nesting(source, inside, limits.max_depth)
            except Refusal as refusal:
                raise Untranslatable(_path(stack), _shown(source), str(refusal)) from None
            if isinstance(value, Branch):
                level.put(key, value.made)
                inside.add(id(source))
                stack.append(_Level(value, id(source)))
                break
            level.put(key, value)
        else:
            inside.discard(level.source_id)
            stack.pop()
    return made[0]


def _check_nesting(source: object, inside: set[int], max_depth: int) -> None:
    if id(source) in inside:
        raise Refusal("holds itself")
    if len(inside) == max_depth:
        raise Refusal(f"is nested deeper than {max_depth} levels")


def _path(stack: list[_Level]) -> str:
    keys = (level.key for level in stack[1:])
    steps = (f"[{key}]" if isinstance(key, int) else f".{_quoted(key)}" for key in keys)
    return "".join(chain("$", steps))


def _shown(source: object) -> str:
    name = type(source).__name__
    if isinstance(source, list | dict):
        return name
    if hasattr(source, "type"):
        return f"{name} of type {_quoted(source.type)}" if source.type else name
    return _shortened(ascii(source[:_SHOWN_CHARS] if isinstance(source, str | bytes) else source))


def _quoted(name: str) -> str:
    """A peer's name as it may stand in an error: one line, and not long."""
    return _shortened(name if name.isprintable() else ascii(name[:_SHOWN_CHARS])[1:-1])


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
