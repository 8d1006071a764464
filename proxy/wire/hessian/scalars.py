"""Every value that holds no other, by its tag: one table to read, one to skip, one to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from proxy.wire.hessian import tags
from proxy.wire.hessian.binaries import read_binary, skip_binary, write_binary
from proxy.wire.hessian.errors import HessianError
from proxy.wire.hessian.numbers import (
    READERS,
    Read,
    write_date,
    write_double,
    write_int,
    write_long,
)
from proxy.wire.hessian.texts import read_text, skip_text, write_text
from proxy.wire.hessian.values import Date, Long

_READERS: dict[int, Read] = {
    **READERS,
    **dict.fromkeys(tags.TEXTS, read_text),
    **dict.fromkeys(tags.BINARIES, read_binary),
}
READ: Final[tuple[Read | None, ...]] = tuple(_READERS.get(tag) for tag in range(256))
"""By tag: reads the value; None for what is no scalar."""

_SKIPPERS: dict[int, Callable[[bytes, int], int]] = {
    **dict.fromkeys(tags.TEXTS, skip_text),
    **dict.fromkeys(tags.BINARIES - {*tags.SHORT_BINARY}, skip_binary),
}
SKIP: Final = tuple(_SKIPPERS.get(tag) for tag in range(256))
"""By tag: finds the end of a value whose tag alone does not tell it (`tags.SIZES` does)."""

WRITE: Final[dict[type, Callable[[Any], bytes]]] = {
    type(None): lambda _: b"N",
    bool: lambda value: b"T" if value else b"F",
    int: write_int,
    Long: write_long,
    float: write_double,
    str: write_text,
    bytes: write_binary,
    Date: write_date,
}
"""By exact Python type: the bytes of a value."""


def read_index(data: bytes, at: int, what: str) -> tuple[int, int]:
    """An int that counts something, and the offset behind it; `what` names it in errors."""
    tag = data[at]
    if tag not in tags.INTS:
        raise HessianError(f"expected {what} at {at}, got tag 0x{tag:02x}, which is no int")
    value, end = READERS[tag](data, at)
    if not isinstance(value, int) or value < 0:
        raise HessianError(f"{what} at {at} is {value!r}")
    return value, end
