"""What to do with one binary packet of a client: the rules of `dispatch`, for packets.

A packet whose body is no request of ours goes to the dialled address as it came. When that is
a client's first packet, the connection may be of another protocol altogether: it is spliced.
"""

from __future__ import annotations

from functools import partial

from proxy.core import heavy
from proxy.core.dispatch import (
    Answer,
    Dialled,
    Forward,
    Splice,
    ToOriginal,
    Verdict,
    died_with,
    may_run_twice,
)
from proxy.core.message import Codec, Failure, MoaRequest, speech_of_packet
from proxy.core.model import ServiceTable
from proxy.core.policy import Policies
from proxy.core.translate import packet_failure
from proxy.wire import hessian
from proxy.wire.moa import EMPTY_REQUEST, UNSENT, BadRequest, Ec, NotMoa, Route
from proxy.wire.moa_scan import scan_route
from proxy.wire.redis_server import Counters, info_json
from proxy.wire.turbo import (
    BodyError,
    Cmd,
    Form,
    Packet,
    encode_answer,
    encode_pong,
    read_body,
)
from proxy.wire.turbo_types import END9, HEAD9, HEAD19

_NOTHING = Answer(b"")


Request = MoaRequest | BadRequest | None
"""What a packet asks for; None when it is no MOA request."""


def read_request(packet: Packet, max_body: int) -> Request | heavy.Job:
    """The request in a packet, or the job that finds its route where that takes long."""
    if packet.cmd is not Cmd.REQ:
        return None
    speech = speech_of_packet(packet)
    try:
        body = read_body(packet, max_body)
        if speech.codec is Codec.JSON:
            route = scan_route(body)
        else:
            limits = hessian.Limits(max_bytes=max_body)
            try:
                route = hessian.scan_route(body, limits, heavy.SCAN_STEPS)
            except hessian.LongScan:
                return heavy.Job(b"r", body, max_body)
    except BodyError as error:
        return BadRequest(Ec.SERIALIZATION, str(error))
    except NotMoa:
        return None
    except BadRequest as error:
        return error
    return MoaRequest(route, body, speech, packet.raw)


def found_request(packet: Packet, job: heavy.Job, done: heavy.Done) -> Request:
    """The request whose route was found by a job."""
    route = heavy.route_of(done)
    if not isinstance(route, Route):
        return route
    return MoaRequest(route, job.body, speech_of_packet(packet), packet.raw)


def judge_packet_outbound(
    packet: Packet,
    request: Request,
    table: ServiceTable,
    dialled: Dialled,
    *,
    spoke_moa: bool,
    is_first: bool,
    counters: Counters,
) -> Verdict:
    """The verdict on a packet of a local client; `spoke_moa` as in `judge_outbound`."""
    if isinstance(request, MoaRequest):
        if table.knows(request.route.uri):
            return Forward(request)
        return _unknown_service(packet, request.route.uri, dialled)
    is_moa = dialled.is_instance or spoke_moa or not dialled.exists
    if isinstance(request, BadRequest):
        reply = packet_failure(Failure(request.ec, request.em), packet)
        return Answer(reply) if is_moa else ToOriginal(lambda: reply)
    if packet.cmd is Cmd.REQ and is_moa and not packet.body_view:
        return Answer(packet_failure(Failure(Ec.NO_URI_FOUND, EMPTY_REQUEST), packet))
    if packet.cmd is Cmd.REQ:
        return _not_moa(packet, dialled, is_first=is_first and not is_moa)
    if packet.cmd is Cmd.PING:
        own = encode_pong(packet)
    elif packet.cmd is Cmd.INFO:
        own = encode_answer(packet, Cmd.INFO, info_json(counters).encode())
    else:
        # An answer, to the dialled server if to anybody.
        return _NOTHING if is_moa else ToOriginal(instead=lambda: b"")
    return Answer(own) if is_moa else ToOriginal(lambda: own)


def judge_packet_inbound(packet: Packet, request: Request, *, is_first: bool) -> Verdict:
    """The verdict on a packet for a local service: it decides itself about everything."""
    if request is None:
        if is_first and packet.cmd is Cmd.REQ:
            return Splice()
        return ToOriginal(instead=None)
    uri = request.route.uri if isinstance(request, MoaRequest) else ""
    why = f"{UNSENT}the local service of {uri or 'this port'} cannot be reached"
    return ToOriginal(partial(packet_failure, Failure(Ec.REMOTING, why), packet), uri)


def judge_packet_again(
    packet: Packet, request: Request, verdict: Answer | Forward | ToOriginal, policies: Policies
) -> Answer | Forward | ToOriginal:
    """The verdict on a packet that an agent which died had begun to serve, as `judge_again`."""
    if isinstance(verdict, Answer):
        return verdict
    uri = request.route.uri if isinstance(request, MoaRequest) else ""
    if isinstance(request, MoaRequest) and may_run_twice(request.route, policies):
        return verdict
    return Answer(packet_failure(Failure(Ec.REMOTING, died_with(uri)), packet))


def head_size(form: Form) -> int:
    return HEAD19.size if form is Form.PACKET19 else HEAD9.size


def size_of(head: bytes, form: Form) -> int:
    """Of the whole packet that begins like this."""
    if form is Form.PACKET19:
        return HEAD19.size + int(HEAD19.unpack_from(head)[-1])
    return HEAD9.size + int(HEAD9.unpack_from(head)[-1]) + len(END9)


def head_of(begun: bytes, form: Form) -> Packet:
    """A packet of which at least the head is there, and perhaps not all of the rest.

    Raises ValueError for a command that there is not.
    """
    head = HEAD19 if form is Form.PACKET19 else HEAD9
    opaque, cmd, *rest, _size = head.unpack_from(begun)
    version, extension = rest or (0, 0)
    return Packet(form, opaque, Cmd(cmd), version, extension, begun)


def refuse(begun: bytes, form: Form, why: str) -> bytes:
    """The last words to a client that broke the protocol, when it was within a request."""
    if len(begun) < head_size(form):
        return b""
    try:
        packet = head_of(begun, form)
    except ValueError:
        return b""
    if packet.cmd is not Cmd.REQ:
        return b""
    return packet_failure(Failure(Ec.SERIALIZATION, why), packet)


def _unknown_service(packet: Packet, uri: str, dialled: Dialled) -> Verdict:
    if not dialled.exists:
        em = f"service {uri} is not in the registry"
        return Answer(packet_failure(Failure(Ec.SERVICE_NOT_FOUND, em), packet))
    em = f"service {uri} is not in the registry, and the dialled address cannot be reached"
    failure = Failure(Ec.SERVICE_NOT_FOUND, em)
    return ToOriginal(partial(packet_failure, failure, packet), uri)


def _not_moa(packet: Packet, dialled: Dialled, *, is_first: bool) -> Verdict:
    if is_first:
        return Splice()
    if dialled.exists:
        return ToOriginal(instead=None)
    em = f"packet {packet.opaque} holds no MOA request"
    return Answer(packet_failure(Failure(Ec.SERIALIZATION, em), packet))
