"""One model of a request and of its reply, whatever protocol carries them.

The bytes of the wire stay with the value, so that an instance of the caller's own protocol
gets them as they came. Tuples, because a request makes one of each: a frozen dataclass costs
three times as much.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from proxy.core.model import Instance
from proxy.wire import hessian
from proxy.wire.mesh import BodyCodec, RequestHeader, ResponseHeader, ResponseReceived, joined
from proxy.wire.moa import Ec, Route, is_unsent, parse_ec
from proxy.wire.resp import Command, Reply
from proxy.wire.turbo import EXT_HESSIAN, BodyError, Form, Packet, read_body


class Codec(Enum):
    """How a body is written; the values are those of the registry's `codec`."""

    JSON = "json"
    HESSIAN2 = "hessian2"

    # Members are the same or not equal. Enum's own hash is a function of Python, and this one keys
    # what every request looks up.
    __hash__ = object.__hash__


class Wire(Enum):
    """What carries a body; the values are those of the registry's `proto`."""

    RESP = "resp"
    TURBO = "turbo"
    TURBO9 = "turbo9"
    MESH = "mesh"
    """Between agents; what an instance itself speaks is one of the others."""

    __hash__ = object.__hash__


class Speech(NamedTuple):
    """How an instance is spoken to."""

    wire: Wire
    codec: Codec


RESP_JSON = Speech(Wire.RESP, Codec.JSON)
OVER_MESH = {codec: Speech(Wire.MESH, codec) for codec in Codec}
_ONLY_RESP = ("resp",)
_OWN = (Wire.RESP, Wire.TURBO, Wire.TURBO9)
"""What an instance without an agent can speak."""
_ERRORS = b"-!"
_OF_FORM = {Form.PACKET19: Wire.TURBO, Form.PACKET9: Wire.TURBO9}


class MoaRequest(NamedTuple):
    """A request of a client; `body` is not compressed, `raw` is what the client sent.

    One that came over the mesh has its `header`, and `deadline_s` when its caller gives up
    (monotonic; None: it did not say).
    """

    route: Route
    body: bytes
    speech: Speech
    raw: bytes
    header: RequestHeader | None = None
    deadline_s: float | None = None


class MoaReply(NamedTuple):
    """A reply of an instance; `raw` is what it sent, empty once the body was translated.

    `body` is not compressed; it is None when there is none that could be read, and `problem`
    says why. One that came over the mesh has its `header`.
    """

    body: bytes | None
    speech: Speech
    raw: bytes
    problem: str = ""
    header: ResponseHeader | None = None

    @property
    def ec(self) -> int | None:
        """The result code, or None where it cannot be told cheaply."""
        if self.header is not None and self.header.ec:
            return self.header.ec
        if self.body is None:
            return None
        if self.speech.codec is Codec.JSON:
            return parse_ec(self.body)
        return hessian.scan_ec(self.body)

    @property
    def is_unsent(self) -> bool:
        """Whether an instance's agent promises that no service has seen the request."""
        if self.header is not None:
            return self.header.retryable
        if self.body is None:
            return False
        if self.speech.codec is Codec.JSON:
            return is_unsent(self.body)
        return hessian.is_unsent(self.body)


class Failure(NamedTuple):
    """What the agent itself answers; `is_unsent` promises that no service saw the request."""

    ec: Ec
    em: str
    is_unsent: bool = False


Outcome = MoaReply | Failure


class Unsent(NamedTuple):
    """In place of an answer: the request was given to a connection and never processed."""

    why: str


Answer = Reply | Packet | ResponseReceived
"""A reply as its wire brought it."""


def speech_of(instance: Instance, caller: Speech) -> Speech:
    """How an instance itself is spoken to: as the caller does if it can, else as it says first.

    An instance that names no protocol of its own is spoken to over RESP, as those of before
    were; a caller over the mesh counts as one of the protocol that has its codec.
    """
    protocols = instance.protocols
    wire = caller.wire
    if wire is Wire.MESH:
        wire = Wire.RESP if caller.codec is Codec.JSON else Wire.TURBO
    if wire is Wire.RESP and (protocols == _ONLY_RESP or "resp" in protocols):
        return RESP_JSON
    if wire.value not in protocols:
        wire = next((w for name in protocols for w in _OWN if w.value == name), Wire.RESP)
    if wire is Wire.TURBO and instance.codec == Codec.HESSIAN2.value:
        return Speech(wire, Codec.HESSIAN2)
    # Only the longer header can say that a body is Hessian.
    return Speech(wire, Codec.JSON)


def speech_of_packet(packet: Packet) -> Speech:
    """How the sender of a packet speaks."""
    is_hessian = packet.extension & EXT_HESSIAN
    return Speech(_OF_FORM[packet.form], Codec.HESSIAN2 if is_hessian else Codec.JSON)


def request_of_command(route: Route, command: Command) -> MoaRequest:
    """A GET that holds a request."""
    return MoaRequest(route, command.args[1], RESP_JSON, command.raw)


def reply_of(answer: Answer, max_body: int) -> MoaReply:
    """What an instance sent; `max_body` bounds a body that has to be decompressed."""
    if isinstance(answer, ResponseReceived):
        return _reply_of_mesh(answer)
    if isinstance(answer, Reply):
        raw = answer.raw
        if answer.begin >= 0 and raw[0] not in _ERRORS:
            return MoaReply(raw[answer.begin : answer.end], RESP_JSON, raw)
        return MoaReply(None, RESP_JSON, raw, f"replied {raw[:128].strip()!r}")
    try:
        return MoaReply(read_body(answer, max_body), speech_of_packet(answer), answer.raw)
    except BodyError as error:
        return MoaReply(None, speech_of_packet(answer), answer.raw, str(error))


CODECS: dict[int, Codec] = {BodyCodec.JSON: Codec.JSON, BodyCodec.HESSIAN2: Codec.HESSIAN2}
"""What the mesh protocol calls the codecs that are spoken here."""


def _reply_of_mesh(answer: ResponseReceived) -> MoaReply:
    """RAW is what a service answered over RESP that is no MOA reply, such as an error line."""
    header, body = answer.header, joined(answer.body)
    if header.codec == BodyCodec.RAW:
        return MoaReply(None, RESP_JSON, body, f"replied {body[:128].strip()!r}", header)
    codec = CODECS.get(header.codec)
    if codec is None:
        problem = f"replied in body codec {header.codec}, which is not spoken here"
        return MoaReply(None, OVER_MESH[Codec.JSON], b"", problem, header)
    return MoaReply(body, OVER_MESH[codec], b"", "", header)
