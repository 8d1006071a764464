"""Writes a Hessian value in forms drawn at random: every form of the grammar that holds it.

It shares no code with the writer under test: it is the draft's grammar, spelled out.
"""

from __future__ import annotations

import struct
from random import Random
from typing import Literal

from proxy.wire.hessian import Date, HessianList, HessianMap, HessianObject, Long, Value


def write_in_any_form(
    value: Value, random: Random, *, astral: Literal["pairs", "any"] = "any"
) -> bytes:
    """One of the many encodings of `value`; recursive.

    `astral`: whether a character beyond U+FFFF may be four bytes, which old Java cannot read.
    """
    return _Forms(random, astral).of(value)


class _Forms:
    def __init__(self, random: Random, astral: str) -> None:
        self._random = random
        self._four_bytes = astral == "any"
        self._refs: dict[int, int] = {}
        self._types: list[str] = []
        self._classes: list[tuple[str, tuple[str, ...]]] = []

    def of(self, value: Value) -> bytes:
        match value:
            case None | bool():
                return {None: b"N", True: b"T", False: b"F"}[value]
            case Long():
                return self._one_of(_long_forms(value))
            case int():
                return self._int(value)
            case float():
                return self._one_of(_double_forms(value))
            case str():
                return self._text(value)
            case bytes():
                return self._binary(value)
            case Date():
                return self._one_of(_date_forms(value.unix_ms))
            case _:
                return self._container(value)

    def _one_of(self, forms: list[bytes]) -> bytes:
        return self._random.choice(forms)

    def _int(self, value: int) -> bytes:
        return self._one_of(_int_forms(value))

    def _text(self, text: str) -> bytes:
        units = _units(text)
        out = b""
        while self._random.random() < 0.3:
            size = self._random.randint(0, min(len(units), 65535))
            out += b"R" + struct.pack(">H", size) + _cesu(units[:size])
            units = units[size:]
        if len(units) > 65535:
            return out + b"R\xff\xff" + _cesu(units[:65535]) + self._text(_text(units[65535:]))
        heads = [b"S" + struct.pack(">H", len(units))]
        if len(units) < 32:
            heads.append(bytes((len(units),)))
        if len(units) < 1024:
            heads.append(bytes((0x30 + len(units) // 256, len(units) % 256)))
        if self._four_bytes and self._random.random() < 0.2 and not _halves(units):
            return out + self._one_of(heads) + _text(units).encode()
        return out + self._one_of(heads) + _cesu(units)

    def _binary(self, value: bytes) -> bytes:
        out = b""
        while len(value) > 65535 or self._random.random() < 0.3:
            size = self._random.randint(0, min(len(value), 65535))
            out += b"A" + struct.pack(">H", size) + value[:size]
            value = value[size:]
        heads = [b"B" + struct.pack(">H", len(value))]
        if len(value) < 16:
            heads.append(bytes((0x20 + len(value),)))
        if len(value) < 1024:
            heads.append(bytes((0x34 + len(value) // 256, len(value) % 256)))
        return out + self._one_of(heads) + value

    def _container(self, value: HessianList | HessianMap | HessianObject) -> bytes:
        if id(value) in self._refs:
            return b"Q" + self._int(self._refs[id(value)])
        definition = self._definition(value) if isinstance(value, HessianObject) else b""
        self._refs[id(value)] = len(self._refs)
        if isinstance(value, HessianList):
            return self._list(value)
        if isinstance(value, HessianMap):
            head = b"H" if value.type is None else b"M" + self._type(value.type)
            return head + b"".join(self.of(k) + self.of(v) for k, v in value.entries) + b"Z"
        return definition + self._object(value)

    def _list(self, value: HessianList) -> bytes:
        count = len(value.items)
        type_ = b"" if value.type is None else self._type(value.type)
        open_, fixed, short = (b"W", b"X", 0x78) if value.type is None else (b"U", b"V", 0x70)
        form = self._random.choice("ofs" if count < 8 else "of")
        if form == "o":
            return open_ + type_ + b"".join(map(self.of, value.items)) + b"Z"
        head = bytes((short + count,)) + type_ if form == "s" else fixed + type_ + self._int(count)
        return head + b"".join(map(self.of, value.items))

    def _type(self, name: str) -> bytes:
        if name in self._types and self._random.random() < 0.7:
            return self._int(self._types.index(name))
        self._types.append(name)
        return self._text(name)

    def _definition(self, value: HessianObject) -> bytes:
        class_ = (value.type, value.names)
        if class_ in self._classes and self._random.random() < 0.8:
            return b""
        self._classes.append(class_)
        names = b"".join(map(self._text, value.names))
        return b"C" + self._text(value.type) + self._int(len(value.names)) + names

    def _object(self, value: HessianObject) -> bytes:
        index = self._classes.index((value.type, value.names))
        heads = [b"O" + self._int(index)] + ([bytes((0x60 + index,))] if index < 16 else [])
        return self._one_of(heads) + b"".join(map(self.of, value.values))


def _int_forms(value: int) -> list[bytes]:
    forms = [b"I" + struct.pack(">i", value)]
    if -16 <= value <= 47:
        forms.append(bytes((0x90 + value,)))
    if -2048 <= value <= 2047:
        forms.append(struct.pack(">H", 0xC800 + value))
    if -262144 <= value <= 262143:
        forms.append((0xD40000 + value).to_bytes(3, "big"))
    return forms


def _long_forms(value: int) -> list[bytes]:
    forms = [b"L" + struct.pack(">q", value)]
    if -8 <= value <= 15:
        forms.append(bytes((0xE0 + value,)))
    if -2048 <= value <= 2047:
        forms.append(struct.pack(">H", 0xF800 + value))
    if -262144 <= value <= 262143:
        forms.append((0x3C0000 + value).to_bytes(3, "big"))
    if -(2**31) <= value < 2**31:
        forms.append(b"\x59" + struct.pack(">i", value))
    return forms


def _double_forms(value: float) -> list[bytes]:
    forms = [b"D" + struct.pack(">d", value)]
    if value != value or abs(value) > 2**31 or struct.pack(">d", value) == struct.pack(">d", -0.0):
        return forms
    if value in (0.0, 1.0):
        forms.append(bytes((0x5B + int(value),)))
    if value.is_integer() and -128 <= value <= 127:
        forms.append(b"\x5d" + struct.pack(">b", int(value)))
    if value.is_integer() and -32768 <= value <= 32767:
        forms.append(b"\x5e" + struct.pack(">h", int(value)))
    thousandths = round(value * 1000)
    if abs(thousandths) < 2**31 and 0.001 * thousandths == value:
        forms.append(b"\x5f" + struct.pack(">i", thousandths))
    return forms


def _date_forms(unix_ms: int) -> list[bytes]:
    forms = [b"\x4a" + struct.pack(">q", unix_ms)]
    if unix_ms % 60000 == 0 and -(2**31) <= unix_ms // 60000 < 2**31:
        forms.append(b"\x4b" + struct.pack(">i", unix_ms // 60000))
    return forms


def _units(text: str) -> list[int]:
    utf16 = text.encode("utf-16-be", "surrogatepass")
    return list(struct.unpack(f">{len(utf16) // 2}H", utf16))


def _text(units: list[int]) -> str:
    return struct.pack(f">{len(units)}H", *units).decode("utf-16-be", "surrogatepass")


def _halves(units: list[int]) -> bool:
    return any(0xD800 <= ord(char) <= 0xDFFF for char in _text(units))


def _cesu(units: list[int]) -> bytes:
    return "".join(map(chr, units)).encode("utf-8", "surrogatepass")
