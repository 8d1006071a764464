"""The reply of a MOA service in Hessian 2: its `ec`, and a reply that reports an error."""

from __future__ import annotations

import struct
from contextlib import suppress

from proxy.wire.hessian import tags
from proxy.wire.hessian.errors import DEFAULT_LIMITS, HessianError
from proxy.wire.hessian.numbers import READERS
from proxy.wire.hessian.skipper import Skipper
from proxy.wire.hessian.values import HessianMap
from proxy.wire.hessian.writer import encode
from proxy.wire.moa import UNSENT, Ec

_SCAN_BYTES = 16 * 1024
_UNSENT, _UNSENT_WITHIN = UNSENT.encode(), 32
"""How `em` begins in an `unsent_body`, and where that is in Hessian."""
_RECORDS = tags.MAPS | tags.OBJECTS


class _Found(Exception):
    """Ends a scan at the value that was looked for."""


def scan_ec(body: bytes) -> int | None:
    """The first `ec` of a reply, or None where it cannot be told cheaply.

    Looks at the first 16 KiB, which hold every error reply; an int and a long both count.
    """
    data = body[:_SCAN_BYTES]
    skipper = Skipper(data, DEFAULT_LIMITS)
    found: int | None = None

    def visit(key: str | None, at: int) -> int:
        nonlocal found
        if key != "ec":
            return skipper.skip(at)
        at = skipper.behind_definitions(at)
        if data[at] in tags.INTS | tags.LONGS:
            value, _ = READERS[data[at]](data, at)
            found = int(value) if isinstance(value, int) else None
        raise _Found

    with suppress(_Found, HessianError, IndexError, struct.error):
        begin = skipper.behind_definitions(0)
        if data[begin] in _RECORDS:
            skipper.visit_entries(begin, visit)
    return found


def is_unsent(body: bytes) -> bool:
    """Whether an agent promises with this reply that no service has seen the request."""
    return _UNSENT in body[:_UNSENT_WITHIN] and scan_ec(body) == Ec.REMOTING


def error_body(ec: Ec, em: str) -> bytes:
    """The Hessian map of a reply that reports an error."""
    return encode(HessianMap([("ec", int(ec)), ("em", em), ("result", None)]))
