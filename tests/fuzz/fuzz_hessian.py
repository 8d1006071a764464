"""Hessian 2 bodies: what is read is written again, passed over, and routed as its JSON is."""

from __future__ import annotations

import json
import struct

from tests.fuzz.harness import fuzz, instrumented

with instrumented():
    from proxy.wire.hessian import (
        HessianError,
        Limits,
        Untranslatable,
        Value,
        decode,
        encode,
        hessian_to_json,
        json_to_hessian,
        scan_ec,
        scan_route,
    )
    from proxy.wire.hessian.skipper import Skipper
    from proxy.wire.moa import BadRequest, NotMoa, Route, parse_route

LIMITS = Limits(max_bytes=1 << 16, max_depth=60, max_references=2000, max_definitions=50)
SINGLE_VALUED = (b"java.sql.", b"com.caucho.")
"""Classes whose objects are no objects in JSON: there the two routes may differ."""


def check(data: bytes) -> None:
    """The input is one body."""
    scan_ec(data)
    route = scanned(data)
    try:
        value = decode(data, LIMITS)
    except HessianError as error:
        check_text(error)
        check_skip(data)
        return
    assert Skipper(data, LIMITS).skip(0) == len(data)
    check_writing(value)
    check_translation(data, route)


def check_text(error: Exception) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 70 * LIMITS.max_depth


def scanned(body: bytes) -> object:
    try:
        return scan_route(body, LIMITS)
    except BadRequest as error:
        return error.ec
    except NotMoa:
        return NotMoa


def check_skip(body: bytes) -> None:
    try:
        Skipper(body, LIMITS).skip(0)
    except (HessianError, IndexError, struct.error):
        return


def check_writing(value: Value) -> None:
    body = encode(value, Limits())
    assert encode(decode(body)) == body


def check_translation(body: bytes, route: object) -> None:
    try:
        text = hessian_to_json(body, LIMITS)
    except Untranslatable as refusal:
        check_text(refusal)
        return
    json.loads(text)
    again = json_to_hessian(text)
    assert hessian_to_json(again) == text
    if not any(name in body for name in SINGLE_VALUED):
        check_route(text, route)


def check_route(text: bytes, route: object) -> None:
    try:
        expected: object = parse_route(text)
    except BadRequest as error:
        expected = error.ec
    except NotMoa:
        expected = NotMoa
    if isinstance(expected, Route) and any(key.lstrip("-").isdigit() for key in expected.props):
        return  # a number as key is text in JSON only
    assert route == expected, (route, expected)


if __name__ == "__main__":
    fuzz(check)
