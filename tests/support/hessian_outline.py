"""A Hessian value as one line of text, the same that HessianPeer.java writes of a Java value.

Scalars are a letter and their content, strings the hex of their UTF-16 units; containers are
numbered as they are met, and `#n` is one that was met before. Entries of maps stand in the
order of their keys' outlines, for Java's HashMap keeps no order; of keys that are equal the
last one counts.
"""

from __future__ import annotations

import struct

from proxy.wire.hessian import Date, HessianList, HessianMap, HessianObject, Long, Value


def outline(value: Value) -> str:
    """The outline of `value`; recursive, so fit for a depth of some hundred."""
    return _Outline().of(value)


class _Outline:
    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def of(self, value: Value) -> str:
        if not isinstance(value, HessianList | HessianMap | HessianObject):
            return _of_scalar(value)
        if (number := self._seen.get(id(value))) is not None:
            return f"#{number}"
        self._seen[id(value)] = len(self._seen)
        if isinstance(value, HessianList):
            return f"({value.type or ''}|{''.join(f'{self.of(item)},' for item in value.items)})"
        if isinstance(value, HessianMap):
            pairs = {self.of(key): child for key, child in value.entries}
            return f"{{{value.type or ''}|{self._of_pairs(pairs)}}}"
        return f"<{value.type}|{self._of_pairs(dict(value.fields()))}>"

    def _of_pairs(self, pairs: dict[str, Value]) -> str:
        return "".join(f"{key}={self.of(child)}," for key, child in sorted(pairs.items()))


def _of_scalar(value: Value) -> str:
    match value:
        case None | bool():
            return {None: "N", True: "T", False: "F"}[value]
        case Long():
            return f"l{int(value)}"
        case int():
            return f"i{value}"
        case float():
            return f"d{struct.pack('>d', value).hex()}"
        case str():
            return "s" + value.encode("utf-16-be", "surrogatepass").hex()
        case bytes():
            return "b" + value.hex()
        case Date():
            return f"D{value.unix_ms}"
    raise AssertionError(value)
