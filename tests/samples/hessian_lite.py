"""Just enough Hessian 2 for the samples: what JSON can say, written plainly and read by PyPI's
python-hessian, which shares no code with the agent. Integers have at most 64 bits.
"""

from __future__ import annotations

import struct
from typing import Any

from pyhessian.parser import Parser

_CHUNK_UNITS = 30_000


def write(value: Any) -> bytes:
    """A value as Hessian 2, never in a compact form."""
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"T" if value else b"F"
    if isinstance(value, int):
        fits = -(2**31) <= value < 2**31
        return struct.pack(">ci", b"I", value) if fits else struct.pack(">cq", b"L", value)
    if isinstance(value, float):
        return struct.pack(">cd", b"D", value)
    if isinstance(value, str):
        return _write_text(value)
    if isinstance(value, list):
        return b"X" + write(len(value)) + b"".join(map(write, value))
    assert isinstance(value, dict), value
    return b"H" + b"".join(write(key) + write(item) for key, item in value.items()) + b"Z"


def _write_text(text: str) -> bytes:
    """Lengths count UTF-16 units; each unit is written as UTF-8 of its own, as Java does."""
    if not text.isascii():
        raw = text.encode("utf-16-be", "surrogatepass")
        units = (raw[at : at + 2] for at in range(0, len(raw), 2))
        text = "".join(unit.decode("utf-16-be", "surrogatepass") for unit in units)
    chunks = [text[at : at + _CHUNK_UNITS] for at in range(0, len(text), _CHUNK_UNITS)] or [""]
    encoded = [
        struct.pack(">H", len(chunk)) + chunk.encode("utf-8", "surrogatepass") for chunk in chunks
    ]
    return b"".join(b"R" + chunk for chunk in encoded[:-1]) + b"S" + encoded[-1]


def read(body: bytes) -> Any:
    """A value of Hessian 2, with the types that JSON has."""
    return _plain(Parser().parse_string(b"H\x02\x00R" + body).value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return value
