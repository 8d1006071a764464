"""The Protobuf headers of REQUEST and RESPONSE as plain values (mesh.proto).

A header that was received keeps its bytes in `received`. `dataclasses.replace` keeps them,
too, and encoding starts from them: fields that this version does not know go on unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import IntEnum
from types import MappingProxyType

from google.protobuf.message import DecodeError

from proxy.wire.mesh import mesh_pb2 as pb
from proxy.wire.mesh.errors import PeerError, Reason, UsageError
from proxy.wire.value import value

_NO_PROPS: Mapping[str, str] = MappingProxyType({})
_MAX_U32 = 2**32 - 1


class BodyCodec(IntEnum):
    """How a body is encoded; a number unknown to this version passes as it is."""

    RAW = 0
    JSON = 1
    HESSIAN2 = 2
    MSGPACK = 3


@value
class RequestHeader:
    """What a request asks for. `deadline_ms` is the time left, None where there is no limit."""

    service: str
    method: str
    group: str = ""
    codec: int = BodyCodec.JSON
    deadline_ms: int | None = None
    attempt: int = 0
    traceparent: str = ""
    tracestate: str = ""
    source_app: str = ""
    source_zone: str = ""
    props: Mapping[str, str] = field(default_factory=lambda: _NO_PROPS)
    received: bytes = field(default=b"", compare=False, repr=False)


@value
class ResponseHeader:
    """What a response says beside its body.

    `retryable`: the request was not processed. `load`: requests in flight at the answering
    instance, None when unknown.
    """

    ec: int
    em: str = ""
    codec: int = BodyCodec.JSON
    retryable: bool = False
    load: int | None = None
    props: Mapping[str, str] = field(default_factory=lambda: _NO_PROPS)
    received: bytes = field(default=b"", compare=False, repr=False)


def encode_request(header: RequestHeader, body_length: int) -> bytes:
    """The Protobuf of a request's header. Raises UsageError for values that do not fit."""
    deadline_ms = header.deadline_ms
    if deadline_ms is not None:
        deadline_ms = min(max(deadline_ms, 0), _MAX_U32)
    try:
        known = pb.RequestHeader(
            service=header.service,
            method=header.method,
            group=header.group,
            codec=header.codec,  # type: ignore[arg-type]  # open enum: any int
            deadline_ms=deadline_ms,
            attempt=header.attempt,
            traceparent=header.traceparent,
            tracestate=header.tracestate,
            source_app=header.source_app,
            source_zone=header.source_zone,
            props=header.props or None,  # an empty mapping costs as much as all else
            body_length=body_length,
        )
        if header.received:
            return _over_unknown_request(header.received, known)
        return known.SerializeToString()
    except (ValueError, TypeError) as error:
        raise UsageError(f"request header cannot be encoded: {error}") from None


def encode_response(header: ResponseHeader, body_length: int) -> bytes:
    """The Protobuf of a response's header. Raises UsageError for values that do not fit."""
    try:
        known = pb.ResponseHeader(
            ec=header.ec,
            em=header.em,
            codec=header.codec,  # type: ignore[arg-type]  # open enum: any int
            retryable=header.retryable,
            load=header.load,
            props=header.props or None,  # an empty mapping costs as much as all else
            body_length=body_length,
        )
        if header.received:
            return _over_unknown_response(header.received, known)
        return known.SerializeToString()
    except (ValueError, TypeError) as error:
        raise UsageError(f"response header cannot be encoded: {error}") from None


# What is left of the received message without its known fields is its unknown ones.
def _over_unknown_request(received: bytes, known: pb.RequestHeader) -> bytes:
    message = pb.RequestHeader.FromString(received)
    for name in pb.RequestHeader.DESCRIPTOR.fields_by_name:
        message.ClearField(name)
    message.MergeFrom(known)
    return message.SerializeToString()


def _over_unknown_response(received: bytes, known: pb.ResponseHeader) -> bytes:
    message = pb.ResponseHeader.FromString(received)
    for name in pb.ResponseHeader.DESCRIPTOR.fields_by_name:
        message.ClearField(name)
    message.MergeFrom(known)
    return message.SerializeToString()


def decode_request(raw: bytes) -> tuple[RequestHeader, int]:
    """A request's header and the length of its body. Raises PeerError."""
    try:
        message = pb.RequestHeader.FromString(raw)
    except (DecodeError, UnicodeDecodeError):
        raise _undecodable("REQUEST", raw) from None
    props = message.props
    header = RequestHeader(
        message.service,
        message.method,
        message.group,
        message.codec,
        message.deadline_ms if message.HasField("deadline_ms") else None,
        message.attempt,
        message.traceparent,
        message.tracestate,
        message.source_app,
        message.source_zone,
        MappingProxyType(dict(props)) if props else _NO_PROPS,
        raw,
    )
    return header, message.body_length


def decode_response(raw: bytes) -> tuple[ResponseHeader, int]:
    """A response's header and the length of its body. Raises PeerError."""
    try:
        message = pb.ResponseHeader.FromString(raw)
    except (DecodeError, UnicodeDecodeError):
        raise _undecodable("RESPONSE", raw) from None
    props = message.props
    header = ResponseHeader(
        message.ec,
        message.em,
        message.codec,
        message.retryable,
        message.load if message.HasField("load") else None,
        MappingProxyType(dict(props)) if props else _NO_PROPS,
        raw,
    )
    return header, message.body_length


def encode_goaway(reason: Reason, text: str) -> bytes:
    """The Protobuf of a GOAWAY; the text is cut to 256 characters."""
    fit = text[:256].encode(errors="replace").decode()
    return pb.GoAway(code=int(reason), reason=fit).SerializeToString()  # type: ignore[arg-type]


def decode_goaway(raw: bytes) -> tuple[int, str]:
    """Code (a Reason or a number unknown to this version) and text. Raises PeerError."""
    try:
        message = pb.GoAway.FromString(raw)
    except (DecodeError, UnicodeDecodeError):
        raise _undecodable("GOAWAY", raw) from None
    return message.code, message.reason[:256]


def encode_window(credit: int) -> bytes:
    """The Protobuf of a WINDOW."""
    return pb.Window(credit=credit).SerializeToString()


def decode_window(raw: bytes) -> int:
    """The credit in bytes, at least 1. Raises PeerError."""
    try:
        credit = pb.Window.FromString(raw).credit
    except (DecodeError, UnicodeDecodeError):
        raise _undecodable("WINDOW", raw) from None
    if credit == 0:
        raise PeerError(Reason.FLOW_CONTROL, "WINDOW with no credit, expected 1 byte or more")
    return credit


def _undecodable(frame: str, raw: bytes) -> PeerError:
    return PeerError(
        Reason.PROTOCOL_ERROR, f"header of {frame} ({len(raw)} bytes) is not its Protobuf message"
    )
