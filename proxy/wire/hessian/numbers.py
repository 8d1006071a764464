"""Numbers, booleans, null and dates, read and written; big-endian.

A reader takes the body and the offset of the tag, and returns the value and the offset behind
it. It raises IndexError or struct.error where the body ends within the value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from proxy.wire.hessian import tags
from proxy.wire.hessian.errors import EncodeError
from proxy.wire.hessian.values import Date, Long, Scalar

_I16 = struct.Struct(">h").unpack_from
_I32 = struct.Struct(">i").unpack_from
_I64 = struct.Struct(">q").unpack_from
_F64 = struct.Struct(">d").unpack_from
_TAG_I32 = struct.Struct(">Bi").pack
_TAG_I64 = struct.Struct(">Bq").pack
_TAG_F64 = struct.Struct(">Bd").pack

INT_MIN: Final = -(2**31)
INT_MAX: Final = 2**31 - 1
LONG_MIN: Final = -(2**63)
LONG_MAX: Final = 2**63 - 1
_MS_PER_MINUTE = 60_000

_CONSTANTS: dict[int, Scalar] = {
    tags.NULL: None,
    tags.TRUE: True,
    tags.FALSE: False,
    tags.DOUBLE_ZERO: 0.0,
    tags.DOUBLE_ONE: 1.0,
}
_CONSTANTS |= {tag: tag - tags.INT_6_ZERO for tag in tags.INT_6}
_CONSTANTS |= {tag: Long(tag - tags.LONG_5_ZERO) for tag in tags.LONG_5}

Read = Callable[[bytes, int], tuple[Scalar, int]]


def _read_constant(data: bytes, at: int) -> tuple[Scalar, int]:
    return _CONSTANTS[data[at]], at + 1


def _read_int_12(data: bytes, at: int) -> tuple[Scalar, int]:
    return (data[at] - tags.INT_12_ZERO) * 256 + data[at + 1], at + 2


def _read_int_19(data: bytes, at: int) -> tuple[Scalar, int]:
    high = (data[at] - tags.INT_19_ZERO) * 65536
    return high + data[at + 1] * 256 + data[at + 2], at + 3


def _read_int(data: bytes, at: int) -> tuple[Scalar, int]:
    return _I32(data, at + 1)[0], at + 5


def _read_long_12(data: bytes, at: int) -> tuple[Scalar, int]:
    return Long((data[at] - tags.LONG_12_ZERO) * 256 + data[at + 1]), at + 2


def _read_long_19(data: bytes, at: int) -> tuple[Scalar, int]:
    high = (data[at] - tags.LONG_19_ZERO) * 65536
    return Long(high + data[at + 1] * 256 + data[at + 2]), at + 3


def _read_long_32(data: bytes, at: int) -> tuple[Scalar, int]:
    return Long(_I32(data, at + 1)[0]), at + 5


def _read_long(data: bytes, at: int) -> tuple[Scalar, int]:
    return Long(_I64(data, at + 1)[0]), at + 9


def _read_double_8(data: bytes, at: int) -> tuple[Scalar, int]:
    return float((data[at + 1] ^ 0x80) - 0x80), at + 2


def _read_double_16(data: bytes, at: int) -> tuple[Scalar, int]:
    return float(_I16(data, at + 1)[0]), at + 3


def _read_double_milli(data: bytes, at: int) -> tuple[Scalar, int]:
    # The draft calls it a 32-bit float. Caucho's Java, which writes it, means thousandths, and
    # multiplies; division would give another last bit.
    return 0.001 * _I32(data, at + 1)[0], at + 5


def _read_double(data: bytes, at: int) -> tuple[Scalar, int]:
    return _F64(data, at + 1)[0], at + 9


def _read_date_ms(data: bytes, at: int) -> tuple[Scalar, int]:
    return Date(_I64(data, at + 1)[0]), at + 9


def _read_date_minutes(data: bytes, at: int) -> tuple[Scalar, int]:
    return Date(_I32(data, at + 1)[0] * _MS_PER_MINUTE), at + 5


READERS: Final[dict[int, Read]] = {
    **dict.fromkeys(_CONSTANTS, _read_constant),
    **dict.fromkeys(tags.INT_12, _read_int_12),
    **dict.fromkeys(tags.INT_19, _read_int_19),
    **dict.fromkeys(tags.LONG_12, _read_long_12),
    **dict.fromkeys(tags.LONG_19, _read_long_19),
    tags.INT: _read_int,
    tags.LONG_32: _read_long_32,
    tags.LONG: _read_long,
    tags.DOUBLE_8: _read_double_8,
    tags.DOUBLE_16: _read_double_16,
    tags.DOUBLE_MILLI: _read_double_milli,
    tags.DOUBLE: _read_double,
    tags.DATE_MS: _read_date_ms,
    tags.DATE_MINUTES: _read_date_minutes,
}


_BYTES = tuple(bytes((tag,)) for tag in range(256))


def write_int(value: int) -> bytes:
    """An int in its shortest form; EncodeError when it needs more than 32 bits."""
    if -0x10 <= value < 0x30:
        return _BYTES[tags.INT_6_ZERO + value]
    if -0x800 <= value < 0x800:
        return bytes((tags.INT_12_ZERO + (value >> 8), value & 0xFF))
    if -0x40000 <= value < 0x40000:
        return bytes((tags.INT_19_ZERO + (value >> 16), value >> 8 & 0xFF, value & 0xFF))
    if INT_MIN <= value <= INT_MAX:
        return _TAG_I32(tags.INT, value)
    raise EncodeError(f"int of {value.bit_length()} bits, an int has 32: make it a Long")


def write_long(value: int) -> bytes:
    """A long in its shortest form; EncodeError when it needs more than 64 bits."""
    if -0x08 <= value < 0x10:
        return _BYTES[tags.LONG_5_ZERO + value]
    if -0x800 <= value < 0x800:
        return bytes((tags.LONG_12_ZERO + (value >> 8), value & 0xFF))
    if -0x40000 <= value < 0x40000:
        return bytes((tags.LONG_19_ZERO + (value >> 16), value >> 8 & 0xFF, value & 0xFF))
    if INT_MIN <= value <= INT_MAX:
        return _TAG_I32(tags.LONG_32, value)
    if LONG_MIN <= value <= LONG_MAX:
        return _TAG_I64(tags.LONG, value)
    raise EncodeError(f"Long of {value.bit_length()} bits, a long has 64")


def write_double(value: float) -> bytes:
    """A double in the shortest form that every reader takes for the same number.

    Never 0x5f: the draft and Java differ about it. -0.0 keeps its sign, and a NaN its bits.
    """
    if value.is_integer() and -0x8000 <= value < 0x8000 and repr(value) != "-0.0":
        whole = int(value)
        if whole in (0, 1):
            return _BYTES[tags.DOUBLE_ZERO + whole]
        if -0x80 <= whole < 0x80:
            return bytes((tags.DOUBLE_8, whole & 0xFF))
        return bytes((tags.DOUBLE_16, whole >> 8 & 0xFF, whole & 0xFF))
    return _TAG_F64(tags.DOUBLE, value)


def write_date(value: Date) -> bytes:
    """A date, in whole minutes where it is one; EncodeError beyond 64 bits."""
    minutes, rest = divmod(value.unix_ms, _MS_PER_MINUTE)
    if rest == 0 and INT_MIN <= minutes <= INT_MAX:
        return _TAG_I32(tags.DATE_MINUTES, minutes)
    if LONG_MIN <= value.unix_ms <= LONG_MAX:
        return _TAG_I64(tags.DATE_MS, value.unix_ms)
    raise EncodeError(f"date of {value.unix_ms.bit_length()} bits of milliseconds, it has 64")
