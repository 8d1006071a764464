"""JSON to Hessian and back, for a call whose two ends speak different protocols.

From JSON: null, booleans and texts are themselves; an integer is an int where 32 bits hold it,
else a long; a number with a fraction or an exponent is a double; an array is a list, an object
a map, both without a type. Refused: an integer of more than 64 bits, a number that no double
holds, text with half a surrogate pair.

To JSON: null, booleans, strings, ints and longs are themselves, a long with all its digits. A
double is a number; NaN and the infinities are refused. A date is an integer, milliseconds
since 1970 UTC, which Java's JSON libraries write and read. The dates of `java.sql`, and what
Hessian makes of a boxed Byte, Short or Float, are the number within. A list is an array, a map
an object, an object the object of its fields; names of types are dropped. A key that is an int
or a long becomes its digits. A reference is the value again.
Refused: binary data, for JSON has none and no reader can tell base64 from text; other keys, and
two keys that would become one; what holds itself; other objects of `java.`, `javax.` and
Hessian's own, whose fields are their inside and not their value.

Of a key or a field that comes twice the last counts. A refusal names the value by its path.
"""

from __future__ import annotations

import json
import math
from typing import NoReturn, TypeAlias, cast

from proxy.wire.hessian.conversion import Branch, Key, Refusal, Untranslatable, convert
from proxy.wire.hessian.errors import DEFAULT_LIMITS, EncodeError, Limits
from proxy.wire.hessian.numbers import INT_MAX, INT_MIN, LONG_MAX, LONG_MIN
from proxy.wire.hessian.reader import decode
from proxy.wire.hessian.values import (
    Date,
    HessianList,
    HessianMap,
    HessianObject,
    Long,
    Value,
)
from proxy.wire.hessian.writer import encode

JsonValue: TypeAlias = bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"] | None

_PLATFORM = ("java.", "javax.", "com.caucho.")
_SINGLE_VALUED = {
    **dict.fromkeys(("java.sql.Date", "java.sql.Time", "java.sql.Timestamp"), "value"),
    **{f"com.caucho.hessian.io.{name}Handle": "_value" for name in ("Byte", "Short", "Float")},
}
"""Objects that stand for one date or number, and the field that holds it."""
_LONG_DIGITS = 24
"""More digits than 64 bits have, and few enough to be converted at once."""


def json_to_hessian(body: bytes, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The Hessian 2 bytes of a JSON text in strict UTF-8.

    Raises Untranslatable for a value that has no counterpart and for what is not JSON.
    """
    try:
        return encode(from_json(_load(body), limits), limits)
    except EncodeError as error:
        raise Untranslatable("$", "the whole value", str(error)) from None


def hessian_to_json(body: bytes, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The JSON text, in UTF-8 and without spaces, of a Hessian 2 body.

    Raises Untranslatable for a value that has no counterpart, HessianError for what is not
    Hessian 2.
    """
    value = to_json(decode(body, limits), limits)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > limits.max_bytes:
        reason = f"{len(text)} bytes of JSON, the limit is {limits.max_bytes}"
        raise Untranslatable("$", "the whole value", reason)
    return text


def from_json(value: JsonValue, limits: Limits = DEFAULT_LIMITS) -> Value:
    """The Hessian value of a decoded JSON value; raises Untranslatable."""
    return cast(Value, convert(value, _to_hessian_step, limits))


def to_json(value: Value, limits: Limits = DEFAULT_LIMITS) -> JsonValue:
    """The JSON value, fit for `json.dumps`, of a Hessian value; raises Untranslatable."""
    return cast(JsonValue, convert(value, _to_json_step, limits))


def _load(body: bytes) -> JsonValue:
    try:
        value = json.loads(body.decode(), parse_int=_parse_int, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Untranslatable("$", "the whole value", f"not JSON: {error}") from None
    return cast(JsonValue, value)


def _parse_int(digits: str) -> int:
    # int() takes quadratic time; what is cut off does not bring the number back into range.
    return int(digits[:_LONG_DIGITS])


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _to_hessian_step(source: object) -> object:
    if isinstance(source, str):
        return _whole_text(source)
    if isinstance(source, dict):
        map_ = HessianMap([])
        return Branch(map_, _text_keys(source), lambda key, value: _put_entry(map_, key, value))
    if isinstance(source, list):
        list_ = HessianList([])
        return Branch(list_, enumerate(source), lambda _, value: _put_item(list_, value))
    if source is None or isinstance(source, bool):
        return source
    if isinstance(source, int):
        return _sized_int(source)
    if isinstance(source, float):
        return _finite(source)
    raise Refusal(f"{type(source).__name__} is no JSON value")


def _put_entry(map_: HessianMap, key: Key, value: object) -> None:
    map_.entries.append((key, cast(Value, value)))


def _put_item(list_: HessianList, value: object) -> None:
    list_.items.append(cast(Value, value))


def _text_keys(source: dict[str, object]) -> list[tuple[Key, object]]:
    return [(_whole_text(key), value) for key, value in source.items()]


def _sized_int(value: int) -> int:
    if INT_MIN <= value <= INT_MAX:
        return value
    if LONG_MIN <= value <= LONG_MAX:
        return Long(value)
    raise Refusal("an integer of more than 64 bits")


def _finite(value: float) -> float:
    if math.isfinite(value):
        return value
    raise Refusal("JSON has no such number")


def _whole_text(text: str) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refusal("text with half a surrogate pair") from None
    return text


def _to_json_step(source: object) -> object:
    match source:
        case str():
            return _whole_text(source)
        case None | bool():
            return source
        case Long():
            return int(source)
        case int():
            return source
        case float():
            return _finite(source)
        case Date():
            return source.unix_ms
        case HessianList():
            items: list[object] = []
            return Branch(items, enumerate(source.items), lambda _, value: items.append(value))
        case HessianMap():
            return _json_object(_json_entries(source))
        case HessianObject():
            return _of_object(source)
    raise Refusal("binary data has no place in JSON")


def _json_object(entries: dict[str, object]) -> Branch:
    made: dict[Key, object] = {}
    return Branch(made, list(entries.items()), made.__setitem__)


def _json_entries(source: HessianMap) -> dict[str, object]:
    entries: dict[str, object] = {}
    types: dict[str, type] = {}
    for key, value in source.entries:
        name = _json_key(key)
        if types.setdefault(name, type(key)) is not type(key):
            raise Refusal(f"has two keys that are {name!a:.64} in JSON")
        entries[name] = value
    return entries


def _json_key(key: Value) -> str:
    if isinstance(key, str):
        return _whole_text(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return str(int(key))
    raise Refusal(f"has a key of type {type(key).__name__}, a JSON object's keys are text")


def _of_object(source: HessianObject) -> object:
    if (field := _SINGLE_VALUED.get(source.type)) is not None:
        value = dict(source.fields()).get(field)
        if isinstance(value, Date):
            return value.unix_ms
        if isinstance(value, int | float):
            return _finite(value) if isinstance(value, float) else int(value)
    if source.type.startswith(_PLATFORM):
        raise Refusal("an object of the Java platform has no JSON form that all readers share")
    return _json_object({_whole_text(name): value for name, value in source.fields()})
