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
from proxy.wire.moa import UNSENT, Ec, Route, is_unsent, parse_ec
from proxy.wire.resp import Command, Reply
from proxy.wire.turbo import EXT_HESSIAN, BodyError, Form, Packet, read_body


class Codec(Enum):
    """How a body is written; the values are those of the registry's `codec`."""

    JSON = "json"
    HESSIAN2 = "hessian2"


class Wire(Enum):
    """What carries a body; the values are those of the registry's `proto`."""

    RESP = "resp"
    TURBO = "turbo"
    TURBO9 = "turbo9"


class Speech(NamedTuple):
    """How an instance is spoken to."""

    wire: Wire
    codec: Codec


RESP_JSON = Speech(Wire.RESP, Codec.JSON)
_ONLY_RESP = ("resp",)
_ERRORS = b"-!"
_UNSENT, _UNSENT_WITHIN = UNSENT.encode(), 32
"""How `em` begins in an `unsent_body`, and where that is in Hessian."""
_OF_FORM = {Form.PACKET19: Wire.TURBO, Form.PACKET9: Wire.TURBO9}


class MoaRequest(NamedTuple):
    """A request of a client; `body` is not compressed, `raw` is what the client sent."""

    route: Route
    body: bytes
    speech: Speech
    raw: bytes


class MoaReply(NamedTuple):
    """A reply of an instance; `raw` is what it sent, empty once the body was translated.

    `body` is not compressed; it is None when there is none that could be read, and `problem`
    says why.
    """

    body: bytes | None
    speech: Speech
    raw: bytes
    problem: str = ""

    @property
    def ec(self) -> int | None:
        """The result code, or None where it cannot be told cheaply."""
        if self.body is None:
            return None
        if self.speech.codec is Codec.JSON:
            return parse_ec(self.body)
        return hessian.scan_ec(self.body)

    @property
    def is_unsent(self) -> bool:
        """Whether an instance's agent promises that no service has seen the request."""
        if self.body is None:
            return False
        if self.speech.codec is Codec.JSON:
            return is_unsent(self.body)
        return _UNSENT in self.body[:_UNSENT_WITHIN] and self.ec == Ec.REMOTING


class Failure(NamedTuple):
    """What the agent itself answers."""

    ec: Ec
    em: str


Outcome = MoaReply | Failure


def speech_of(instance: Instance, caller: Speech) -> Speech:
    """How to speak to an instance: as the caller does if it can, else as it says first.

    An instance that names no protocol of ours is spoken to over RESP, as those of before were.
    """
    protocols = instance.protocols
    if caller.wire is Wire.RESP and (protocols == _ONLY_RESP or "resp" in protocols):
        return RESP_JSON
    wire = caller.wire
    if wire.value not in protocols:
        wire = next((w for name in protocols for w in Wire if w.value == name), Wire.RESP)
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


def reply_of(answer: Reply | Packet, max_body: int) -> MoaReply:
    """What an instance sent; `max_body` bounds a body that has to be decompressed."""
    if isinstance(answer, Reply):
        raw = answer.raw
        if answer.begin >= 0 and raw[0] not in _ERRORS:
            return MoaReply(raw[answer.begin : answer.end], RESP_JSON, raw)
        return MoaReply(None, RESP_JSON, raw, f"replied {raw[:128].strip()!r}")
    try:
        return MoaReply(read_body(answer, max_body), speech_of_packet(answer), answer.raw)
    except BodyError as error:
        return MoaReply(None, speech_of_packet(answer), answer.raw, str(error))
