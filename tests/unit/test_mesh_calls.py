"""Requests and replies in the mesh protocol's words: what a hop changes, and what it keeps."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from proxy.core.mesh_calls import MeshCall, Origin, header_of, mesh_reply, request_of
from proxy.core.message import (
    RESP_JSON,
    Codec,
    Failure,
    MoaReply,
    MoaRequest,
    Speech,
    Wire,
    reply_of,
    speech_of,
)
from proxy.core.model import Address, Instance, PeerAgent
from proxy.core.translate import in_codec, packet_reply, resp_reply
from proxy.wire import hessian
from proxy.wire.mesh import BodyCodec, RequestReceived, ResponseHeader, ResponseReceived
from proxy.wire.moa import Ec, Route
from proxy.wire.resp import bulk
from proxy.wire.turbo import Cmd, PacketParser, encode
from tests.support.mesh_peer import NEWER, newer_request, newer_response

BODY = b'{ "action":"/s", "params":{"m":"m","args":[]} }'
OK = b'{"ec":200,"em":"","result":1}'
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
MAX = 1 << 20


def request(**props: str) -> MoaRequest:
    return MoaRequest(Route("/s", "g", "m", props), BODY, RESP_JSON, b"raw")


def mesh_call(
    request: MoaRequest, codec: Codec, max_body: int, deadline_s: float, attempt: int
) -> MeshCall:
    """As an exchange makes it."""
    body = in_codec(request.body, request.speech.codec, codec, max_body)
    return MeshCall(request, codec, body, deadline_s, attempt)


def sent(call: MeshCall, now_s: float = 10.0) -> RequestReceived:
    """The call as the instance's agent gets it."""
    header = header_of(call, now_s, Random(1).getrandbits, Origin("app", "zone"))
    return RequestReceived(1, header, (call.body,), now_s, None)


def test_a_request_says_all_that_a_route_needs_and_keeps_its_body() -> None:
    event = sent(mesh_call(request(k="v"), Codec.JSON, MAX, 10.5, 1))
    header = event.header
    assert (header.service, header.group, header.method) == ("/s", "g", "m")
    assert (header.deadline_ms, header.attempt, header.codec) == (500, 1, BodyCodec.JSON)
    assert (header.source_app, header.source_zone, dict(header.props)) == (
        "app",
        "zone",
        {"k": "v"},
    )
    came = request_of(event)
    assert isinstance(came, MoaRequest)
    assert (came.route, came.body) == (request(k="v").route, BODY)


def test_a_request_of_another_nodes_caller_comes_from_that_node() -> None:
    """Its own agent does not serve; we took it in, and its quota and rights are its own."""
    call = mesh_call(request(), Codec.JSON, MAX, 10.5, 0)
    caller = PeerAgent(Address("10.0.0.5", 15008), "app", "other-zone")
    header = sent(call._replace(caller=caller)).header
    assert (header.source_app, header.source_zone) == ("app", "other-zone")


@pytest.mark.parametrize(
    ("app", "zone", "leaves"),
    [("", "", ("app", "zone")), ("other", "", ("other", "")), ("", "z", ("", "z"))],
)
def test_a_sender_over_the_mesh_keeps_its_name_or_gets_the_nodes(
    app: str, zone: str, leaves: tuple[str, str]
) -> None:
    header = replace(
        sent(mesh_call(request(), Codec.JSON, MAX, 10.5, 0)).header,
        source_app=app,
        source_zone=zone,
    )
    came = request_of(RequestReceived(1, header, (BODY,), 10.0, None))
    assert isinstance(came, MoaRequest)
    left = sent(mesh_call(came, Codec.JSON, MAX, 10.5, 0)).header
    assert (left.source_app, left.source_zone) == leaves


def test_a_trace_goes_on_where_the_caller_names_one_and_begins_where_not() -> None:
    assert sent(
        mesh_call(request(traceparent=TRACE), Codec.JSON, MAX, 11.0, 0)
    ).header.traceparent.startswith(TRACE[:36])
    assert sent(mesh_call(request(), Codec.JSON, MAX, 11.0, 0)).header.traceparent


def test_what_came_over_the_mesh_goes_on_with_all_that_it_brought() -> None:
    first = sent(mesh_call(request(), Codec.JSON, MAX, 12.0, 1))
    came = request_of(first._replace(header=newer_request(first.header)))
    assert isinstance(came, MoaRequest)
    onward = sent(mesh_call(came, Codec.JSON, MAX, 11.0, 1)).header
    assert NEWER.encode() in onward.received
    assert (onward.deadline_ms, onward.attempt) == (1000, 2)
    assert onward.traceparent[:36] == first.header.traceparent[:36]


def test_the_callers_agent_translates() -> None:
    call = mesh_call(request(), Codec.HESSIAN2, MAX, 11.0, 0)
    assert hessian.scan_route(call.body, hessian.Limits(max_bytes=MAX)).method == "m"
    assert sent(call).header.codec == BodyCodec.HESSIAN2


@pytest.mark.parametrize(
    ("protocols", "codec", "speech"),
    [
        (("mesh",), Codec.JSON, RESP_JSON),
        (("resp", "mesh"), Codec.JSON, RESP_JSON),
        (("turbo", "mesh"), Codec.JSON, Speech(Wire.TURBO, Codec.JSON)),
        (("mesh", "turbo9"), Codec.JSON, Speech(Wire.TURBO9, Codec.JSON)),
        (("resp", "turbo", "mesh"), Codec.HESSIAN2, Speech(Wire.TURBO, Codec.HESSIAN2)),
    ],
)
def test_what_is_behind_an_agent(protocols: tuple[str, ...], codec: Codec, speech: Speech) -> None:
    kind = codec.value
    instance = Instance(Address("10.0.0.1", 1), protocols=protocols, codec=kind)
    assert speech_of(instance, Speech(Wire.MESH, codec)) == speech


def came_back(header: ResponseHeader, body: bytes) -> MoaReply:
    return reply_of(ResponseReceived(1, header, (body,)), MAX)


def test_a_reply_keeps_its_body_and_says_its_ec_and_the_load() -> None:
    header, body = mesh_reply(MoaReply(OK, RESP_JSON, bulk(OK)), Codec.JSON, 4, MAX)
    assert (header.ec, header.load, header.retryable, body) == (200, 4, False, OK)
    assert resp_reply(came_back(header, body), MAX) == bulk(OK)


def test_a_reply_of_a_relay_keeps_unknown_fields_and_the_load() -> None:
    reply = came_back(newer_response(ResponseHeader(503, load=9)), OK)
    header, _ = mesh_reply(reply, Codec.JSON, None, MAX)
    assert (header.ec, header.load) == (503, 9)
    assert NEWER.encode() in header.received


def test_an_error_line_passes_byte_for_byte() -> None:
    line = b"-LOADING wait\r\n"
    header, body = mesh_reply(MoaReply(None, RESP_JSON, line, "replied"), Codec.JSON, 1, MAX)
    assert (header.codec, header.ec, body) == (BodyCodec.RAW, 0, line)
    reply = came_back(header, body)
    assert resp_reply(reply, MAX) == line
    asked = PacketParser().feed(encode(Cmd.REQ, 7, BODY))[0]
    assert b'"ec":302' in packet_reply(reply, asked, MAX)


@pytest.mark.parametrize("codec", list(Codec))
def test_a_failure_is_told_in_the_codec_of_the_request(codec: Codec) -> None:
    failure = Failure(Ec.REMOTING, "not sent: nobody there", is_unsent=True)
    header, body = mesh_reply(failure, codec, 2, MAX)
    assert (header.ec, header.retryable, header.load) == (303, True, 2)
    reply = came_back(header, body)
    assert (reply.ec, reply.is_unsent, reply.speech.codec) == (303, True, codec)


def test_a_body_codec_that_nobody_here_speaks() -> None:
    reply = came_back(ResponseHeader(200, codec=BodyCodec.MSGPACK), b"\x80")
    assert (reply.body, reply.ec) == (None, 200)
    assert b'"ec":302' in resp_reply(reply, MAX)
    event = sent(mesh_call(request(), Codec.JSON, MAX, 11.0, 0))
    header = event.header
    odd = request_of(event._replace(header=type(header)(header.service, header.method, codec=3)))
    assert isinstance(odd, Failure)
    assert odd.ec is Ec.SERIALIZATION
