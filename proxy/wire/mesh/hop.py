"""What changes in a request's header at each hop: time left, attempt, trace context.

The trace context is W3C Trace Context level 1; randomness is injected.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from proxy.wire.mesh.headers import RequestHeader

RandomBits = Callable[[int], int]
"""As random.Random.getrandbits."""

MAX_TRACESTATE_CHARS = 512
"""The least that W3C asks everyone to pass on; more is cut at a member's border."""

_TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<rest>-.*)?",
    re.ASCII,
)
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16


def remaining_ms(deadline_s: float, now_s: float) -> int:
    """What is left until a deadline, both on one clock; never negative.

    Rounds down, so that a caller never waits less long than who works for it.
    """
    return max(0, int((deadline_s - now_s) * 1000))


def child_trace(
    traceparent: str, tracestate: str, bits: RandomBits, sampled: bool = False
) -> tuple[str, str]:
    """The context of a new span below `traceparent`; of a new trace where that is no context.

    `sampled` holds for a new trace only. A tracestate is nothing without its traceparent.
    """
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None or not _is_context(match):
        flags = "01" if sampled else "00"
        return f"00-{_random_id(bits, 128):032x}-{_random_id(bits, 64):016x}-{flags}", ""
    # Of a newer version only what version 00 defines is understood, so that is what leaves.
    flags = match["flags"] if match["version"] == "00" else f"{int(match['flags'], 16) & 1:02x}"
    child = f"00-{match['trace']}-{_random_id(bits, 64):016x}-{flags}"
    return child, _cut_tracestate(tracestate)


def next_hop(
    header: RequestHeader,
    *,
    codec: int,
    deadline_ms: int | None,
    attempt: int,
    bits: RandomBits,
    source: tuple[str, str] = ("", ""),
) -> RequestHeader:
    """The header for the next hop; everything else, unknown fields too, stays as it is.

    `source` is the application and zone of a sender that names neither.
    """
    if not header.source_app and not header.source_zone:
        app, zone = source
    else:
        app, zone = header.source_app, header.source_zone
    traceparent, tracestate = child_trace(header.traceparent, header.tracestate, bits)
    # Field by field: dataclasses.replace takes three times as long, once for each request.
    return RequestHeader(
        header.service,
        header.method,
        header.group,
        codec,
        deadline_ms,
        attempt,
        traceparent,
        tracestate,
        app,
        zone,
        header.props,
        header.received,
    )


def _is_context(match: re.Match[str]) -> bool:
    if match["version"] == "ff" or (match["version"] == "00" and match["rest"]):
        return False
    return match["trace"] != _NO_TRACE and match["span"] != _NO_SPAN


def _random_id(bits: RandomBits, size: int) -> int:
    return bits(size) or 1


def _cut_tracestate(tracestate: str) -> str:
    if len(tracestate) <= MAX_TRACESTATE_CHARS:
        return tracestate
    return tracestate[: MAX_TRACESTATE_CHARS + 1].rpartition(",")[0]
