"""The first byte of a Hessian 2 value: which bytes begin what (Hessian 2.0, "Bytecode map")."""

from __future__ import annotations

from typing import Final

BINARY_CHUNK: Final = ord("A")
BINARY: Final = ord("B")
CLASS_DEF: Final = ord("C")
DOUBLE: Final = ord("D")
FALSE: Final = ord("F")
MAP: Final = ord("H")
INT: Final = ord("I")
DATE_MS: Final = 0x4A
DATE_MINUTES: Final = 0x4B
LONG: Final = ord("L")
TYPED_MAP: Final = ord("M")
NULL: Final = ord("N")
OBJECT: Final = ord("O")
REFERENCE: Final = ord("Q")
TEXT_CHUNK: Final = ord("R")
TEXT: Final = ord("S")
TRUE: Final = ord("T")
TYPED_OPEN_LIST: Final = ord("U")
TYPED_LIST: Final = ord("V")
OPEN_LIST: Final = ord("W")
LIST: Final = ord("X")
LONG_32: Final = 0x59
END: Final = ord("Z")
DOUBLE_ZERO: Final = 0x5B
DOUBLE_ONE: Final = 0x5C
DOUBLE_8: Final = 0x5D
DOUBLE_16: Final = 0x5E
DOUBLE_MILLI: Final = 0x5F

SHORT_TEXT: Final = range(0x20)
SHORT_BINARY: Final = range(0x20, 0x30)
TEXT_10: Final = range(0x30, 0x34)
BINARY_10: Final = range(0x34, 0x38)
LONG_19: Final = range(0x38, 0x40)
SHORT_OBJECT: Final = range(0x60, 0x70)
SHORT_TYPED_LIST: Final = range(0x70, 0x78)
SHORT_LIST: Final = range(0x78, 0x80)
INT_6: Final = range(0x80, 0xC0)
INT_12: Final = range(0xC0, 0xD0)
INT_19: Final = range(0xD0, 0xD8)
LONG_5: Final = range(0xD8, 0xF0)
LONG_12: Final = range(0xF0, 0x100)
"""A number behind a name is the bits of the value that the form holds."""

INT_6_ZERO: Final = 0x90
INT_12_ZERO: Final = 0xC8
INT_19_ZERO: Final = 0xD4
LONG_5_ZERO: Final = 0xE0
LONG_12_ZERO: Final = 0xF8
LONG_19_ZERO: Final = 0x3C

TEXTS: Final = frozenset({TEXT_CHUNK, TEXT, *SHORT_TEXT, *TEXT_10})
BINARIES: Final = frozenset({BINARY_CHUNK, BINARY, *SHORT_BINARY, *BINARY_10})
INTS: Final = frozenset({INT, *INT_6, *INT_12, *INT_19})
LONGS: Final = frozenset({LONG, LONG_32, *LONG_5, *LONG_12, *LONG_19})
DOUBLES: Final = frozenset({DOUBLE, DOUBLE_ZERO, DOUBLE_ONE, DOUBLE_8, DOUBLE_16, DOUBLE_MILLI})
DATES: Final = frozenset({DATE_MS, DATE_MINUTES})
LISTS: Final = frozenset(
    {TYPED_OPEN_LIST, TYPED_LIST, OPEN_LIST, LIST, *SHORT_TYPED_LIST, *SHORT_LIST}
)
MAPS: Final = frozenset({MAP, TYPED_MAP})
OBJECTS: Final = frozenset({OBJECT, *SHORT_OBJECT})


def _sizes() -> tuple[int, ...]:
    wide = {INT: 5, LONG: 9, LONG_32: 5, DOUBLE: 9, DOUBLE_8: 2, DOUBLE_16: 3, DOUBLE_MILLI: 5}
    sizes = dict.fromkeys({NULL, TRUE, FALSE, DOUBLE_ZERO, DOUBLE_ONE, *INT_6, *LONG_5}, 1)
    sizes |= wide | {DATE_MS: 9, DATE_MINUTES: 5}
    sizes |= dict.fromkeys({*INT_12, *LONG_12}, 2) | dict.fromkeys({*INT_19, *LONG_19}, 3)
    sizes |= {tag: 1 + tag - SHORT_BINARY.start for tag in SHORT_BINARY}
    return tuple(sizes.get(tag, 0) for tag in range(256))


SIZES: Final = _sizes()
"""By tag: the bytes of a value whose tag alone tells its size, its tag included; else 0."""
