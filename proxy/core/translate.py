"""Requests and replies in the words of the other side: the one place where bodies are changed.

Where both sides speak alike the bytes are those that came, but for the number of a packet.
Where they do not, the body is translated if its codec differs, and framed anew. A body that
was compressed leaves uncompressed then: the other side never said that it reads snappy.
"""

from __future__ import annotations

from proxy.core.message import Codec, Failure, MoaReply, MoaRequest, Outcome, Speech, Wire
from proxy.core.message import speech_of_packet as _speech_of
from proxy.wire import hessian
from proxy.wire.hessian import HessianError, Limits, Untranslatable
from proxy.wire.moa import Ec, error_body
from proxy.wire.resp import bulk, encode_get
from proxy.wire.turbo import EXT_HESSIAN, Cmd, Packet, encode, encode9, encode_answer


class CannotTranslate(Exception):
    """A body has no counterpart on the other side; the text names the value and fits an `em`."""


def request_frame(request: MoaRequest, speech: Speech, max_body: int) -> bytes:
    """The bytes that ask an instance; a packet's number is for its sender to set.

    Raises CannotTranslate. A body that is translated has at most `max_body` bytes.
    """
    if request.speech == speech:
        return request.raw
    return request_of(in_codec(request.body, request.speech.codec, speech.codec, max_body), speech)


def request_of(body: bytes, speech: Speech) -> bytes:
    """The bytes that ask an instance which is spoken to so, with a body in its codec."""
    if speech.wire is Wire.RESP:
        return encode_get(body)
    if speech.wire is Wire.TURBO9:
        return encode9(Cmd.REQ, 0, body)
    return encode(Cmd.REQ, 0, body, extension=_extension(speech.codec))


def resp_reply(outcome: Outcome, max_body: int) -> bytes:
    """What a client over RESP gets."""
    if isinstance(outcome, Failure):
        return bulk(error_body(outcome.ec, outcome.em))
    if outcome.speech.wire is Wire.RESP:
        return outcome.raw
    try:
        return bulk(reply_body(outcome, Codec.JSON, max_body))
    except CannotTranslate as error:
        return bulk(error_body(Ec.SERIALIZATION, str(error)))


def packet_reply(outcome: Outcome, to: Packet, max_body: int) -> bytes:
    """What a client gets for its packet `to`, under that packet's number."""
    speech = _speech_of(to)
    if isinstance(outcome, Failure):
        return packet_failure(outcome, to)
    if outcome.speech == speech and outcome.raw:
        return b"".join((to.raw[:4], memoryview(outcome.raw)[4:]))
    try:
        body = reply_body(outcome, speech.codec, max_body)
    except CannotTranslate as error:
        return packet_failure(Failure(Ec.SERIALIZATION, str(error)), to)
    return encode_answer(to, Cmd.RESP, body, _extension(speech.codec))


def packet_failure(failure: Failure, to: Packet) -> bytes:
    """An answer of our own to a packet, in the codec of its body."""
    codec = _speech_of(to).codec
    write = error_body if codec is Codec.JSON else hessian.error_body
    return encode_answer(to, Cmd.RESP, write(failure.ec, failure.em), _extension(codec))


def reply_body(reply: MoaReply, codec: Codec, max_body: int) -> bytes:
    """The body of a reply in another codec. Raises CannotTranslate."""
    if reply.body is None:
        raise CannotTranslate(
            f"the instance's reply cannot be told in {codec.value}: {reply.problem}"
        )
    return in_codec(reply.body, reply.speech.codec, codec, max_body)


def in_codec(body: bytes, source: Codec, target: Codec, max_body: int) -> bytes:
    """The body in another codec, or the very body when that is its own.

    Raises CannotTranslate. Takes time for each of its values.
    """
    if source is target:
        return body
    limits = Limits(max_bytes=max_body)
    try:
        if target is Codec.HESSIAN2:
            return hessian.json_to_hessian(body, limits)
        return hessian.hessian_to_json(body, limits)
    except (Untranslatable, HessianError) as error:
        raise CannotTranslate(f"{source.value} to {target.value}: {error}") from None


def _extension(codec: Codec) -> int:
    return EXT_HESSIAN if codec is Codec.HESSIAN2 else 0
