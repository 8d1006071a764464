"""Requests and replies as the mesh protocol carries them: a header, and the body as it is.

The caller's agent puts the body into the instance's codec, as it does for every wire, so that
the instance's agent only frames it anew (docs/adr/0007).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from proxy.core.message import (
    CODECS,
    OVER_MESH,
    Codec,
    Failure,
    MoaReply,
    MoaRequest,
    Outcome,
    Wire,
)
from proxy.core.model import PeerAgent
from proxy.core.translate import CannotTranslate, reply_body
from proxy.wire import hessian
from proxy.wire.mesh import (
    BodyCodec,
    RequestHeader,
    RequestReceived,
    ResponseHeader,
    child_trace,
    joined,
    next_hop,
    remaining_ms,
)
from proxy.wire.mesh.hop import RandomBits
from proxy.wire.moa import Ec, Route, error_body

_NUMBERS = {codec: number for number, codec in CODECS.items()}
_MAX_EM = 256


class MeshCall(NamedTuple):
    """A request on its way to an instance's agent, with its body in that instance's codec;
    `deadline_s` is when its caller gives up."""

    request: MoaRequest
    codec: Codec
    body: bytes
    deadline_s: float
    attempt: int
    """0 is the first try of this agent."""
    caller: PeerAgent | None = None
    """The node that the caller is on; None for this one."""


class Origin(NamedTuple):
    """Where requests come from."""

    app: str
    zone: str


def header_of(call: MeshCall, now_s: float, bits: RandomBits, origin: Origin) -> RequestHeader:
    """What leaves with a call at `now_s`; what came over the mesh keeps all that it brought.

    `origin` is this node's: a caller of another node, whose agent does not serve, has its own.
    """
    request, codec = call.request, _NUMBERS[call.codec]
    if call.caller is not None:
        origin = Origin(call.caller.app, call.caller.zone)
    left_ms = remaining_ms(call.deadline_s, now_s)
    came = request.header
    if came is not None:
        attempt = came.attempt + call.attempt
        return next_hop(
            came, codec=codec, deadline_ms=left_ms, attempt=attempt, bits=bits, source=origin
        )
    route, props = request.route, request.route.props
    parent, state = (
        child_trace(props.get("traceparent", ""), props.get("tracestate", ""), bits)
        if props
        else child_trace("", "", bits)
    )
    return RequestHeader(
        route.uri,
        route.method,
        route.group,
        codec,
        left_ms,
        call.attempt,
        parent,
        state,
        origin.app,
        origin.zone,
        props,
    )


def request_of(event: RequestReceived) -> MoaRequest | Failure:
    """A request that came over the mesh; its header says all that a route needs."""
    header = event.header
    codec = CODECS.get(header.codec)
    if codec is None:
        em = f"body codec {header.codec} is not spoken here, expected JSON or HESSIAN2"
        return Failure(Ec.SERIALIZATION, em)
    route = Route(header.service, header.group, header.method, header.props)
    body = joined(event.body)
    return MoaRequest(route, body, OVER_MESH[codec], b"", header, event.deadline_s)


def mesh_reply(
    outcome: Outcome, codec: Codec, load: int | None, max_body: int
) -> tuple[ResponseHeader, bytes]:
    """What answers a request whose body is in `codec`; `load` is the instance's, if known."""
    if isinstance(outcome, Failure):
        return _failure(outcome, codec, load)
    came = outcome.header
    if came is not None and came.load is not None:
        load = came.load
    if outcome.body is None and outcome.speech.wire is Wire.RESP:
        return ResponseHeader(0, codec=BodyCodec.RAW, load=load), outcome.raw
    try:
        body = reply_body(outcome, codec, max_body)
    except CannotTranslate as error:
        return _failure(Failure(Ec.SERIALIZATION, str(error)), codec, load)
    number = _NUMBERS[codec]
    if came is not None:
        return replace(came, codec=number, load=load), body
    return _header(outcome, number, load), body


def _header(reply: MoaReply, codec: int, load: int | None) -> ResponseHeader:
    """`ec` is 0 where only a full decoding of the body would tell it."""
    return ResponseHeader(reply.ec or 0, "", codec, reply.is_unsent, load)


def _failure(failure: Failure, codec: Codec, load: int | None) -> tuple[ResponseHeader, bytes]:
    em = failure.em[:_MAX_EM]
    write = error_body if codec is Codec.JSON else hessian.error_body
    header = ResponseHeader(int(failure.ec), em, _NUMBERS[codec], failure.is_unsent, load)
    return header, write(failure.ec, em)
