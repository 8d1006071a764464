"""One request and one reply in the words of every protocol: unchanged, translated, or refused."""

from __future__ import annotations

import json

import pytest

from proxy.core.message import (
    RESP_JSON,
    Codec,
    Failure,
    MoaReply,
    MoaRequest,
    Speech,
    Wire,
    reply_of,
    request_of_command,
    speech_of,
)
from proxy.core.model import Address, Instance
from proxy.core.translate import CannotTranslate, packet_reply, request_frame, resp_reply
from proxy.wire import hessian
from proxy.wire.moa import Ec, Route, unsent_body
from proxy.wire.resp import Command, ReplyParser, bulk, encode_command
from proxy.wire.turbo import (
    EXT_HESSIAN,
    EXT_SNAPPY,
    Cmd,
    Form,
    Packet,
    PacketParser,
    compress,
    encode,
    encode9,
)

LIMIT = 1 << 21
ROUTE = Route("/service/demo", "", "echo", {})
TURBO_JSON = Speech(Wire.TURBO, Codec.JSON)
TURBO_HESSIAN = Speech(Wire.TURBO, Codec.HESSIAN2)
TURBO9 = Speech(Wire.TURBO9, Codec.JSON)
SPEECHES = [RESP_JSON, TURBO_JSON, TURBO_HESSIAN, TURBO9]
ASKED = {"action": "/service/demo", "params": {"m": "echo", "args": ["grüß 😀", 2**40, None, []]}}
REPLIED = {"ec": 200, "em": "", "result": {"größe": [1, 2.5, True]}}


def packet(raw: bytes, form: Form = Form.PACKET19) -> Packet:
    (parsed,) = PacketParser(form=form).feed(raw)
    return parsed


def body_in(value: object, codec: Codec) -> bytes:
    plain = json.dumps(value, ensure_ascii=False).encode()
    return plain if codec is Codec.JSON else hessian.json_to_hessian(plain)


def value_of(body: bytes, codec: Codec) -> object:
    return json.loads(body if codec is Codec.JSON else hessian.hessian_to_json(body))


def wire_of(cmd: Cmd, body: bytes, speech: Speech, opaque: int = 7) -> bytes:
    if speech.wire is Wire.RESP:
        return encode_command(b"GET", body) if cmd is Cmd.REQ else bulk(body)
    if speech.wire is Wire.TURBO9:
        return encode9(cmd, opaque, body)
    is_hessian = speech.codec is Codec.HESSIAN2
    return encode(cmd, opaque, body, extension=EXT_HESSIAN if is_hessian else 0)


def request_in(speech: Speech, value: object = ASKED) -> MoaRequest:
    body = body_in(value, speech.codec)
    return MoaRequest(ROUTE, body, speech, wire_of(Cmd.REQ, body, speech))


def reply_in(speech: Speech, value: object = REPLIED) -> MoaReply:
    body = body_in(value, speech.codec)
    return MoaReply(body, speech, wire_of(Cmd.RESP, body, speech))


@pytest.mark.parametrize("caller", SPEECHES, ids=str)
@pytest.mark.parametrize("callee", SPEECHES, ids=str)
def test_a_request_between_any_two(caller: Speech, callee: Speech) -> None:
    request = request_in(caller)
    frame = request_frame(request, callee, LIMIT)
    if caller == callee:
        assert frame is request.raw
    if callee.wire is Wire.RESP:
        body = frame.split(b"\r\n", 4)[4][:-2]
    else:
        form = Form.PACKET9 if callee is TURBO9 else Form.PACKET19
        asked = packet(frame, form)
        assert asked.cmd is Cmd.REQ
        assert asked.extension == (EXT_HESSIAN if callee is TURBO_HESSIAN else 0)
        body = asked.body
    assert value_of(body, callee.codec) == ASKED
    if caller.codec is callee.codec:
        assert body == request.body


@pytest.mark.parametrize("caller", SPEECHES, ids=str)
@pytest.mark.parametrize("callee", SPEECHES, ids=str)
def test_a_reply_between_any_two(caller: Speech, callee: Speech) -> None:
    reply = reply_in(callee)
    if caller.wire is Wire.RESP:
        raw = resp_reply(reply, LIMIT)
        body = raw.split(b"\r\n", 1)[1][:-2]
    else:
        form = Form.PACKET9 if caller is TURBO9 else Form.PACKET19
        asked = packet(wire_of(Cmd.REQ, b"?", caller, opaque=0xFFFFFFFE), form)
        raw = packet_reply(reply, asked, LIMIT)
        answer = packet(raw, form)
        assert (answer.cmd, answer.opaque) == (Cmd.RESP, 0xFFFFFFFE)
        body = answer.body
    assert value_of(body, caller.codec) == REPLIED
    if caller == callee:
        assert raw[4:] == reply.raw[4:]


def test_a_compressed_body_stays_so_for_the_same_protocol_only() -> None:
    plain = body_in(ASKED, Codec.JSON)
    raw = encode(Cmd.REQ, 7, compress(plain), extension=EXT_SNAPPY)
    request = MoaRequest(ROUTE, plain, TURBO_JSON, raw)
    assert request_frame(request, TURBO_JSON, LIMIT) == raw
    assert request_frame(request, RESP_JSON, LIMIT) == encode_command(b"GET", plain)
    reply = reply_of(packet(encode(Cmd.RESP, 7, compress(plain), extension=EXT_SNAPPY)), LIMIT)
    assert resp_reply(reply, LIMIT) == bulk(plain)


def test_a_request_that_has_no_counterpart_is_refused_by_its_value() -> None:
    asked = {"action": "/service/demo", "params": {"m": "echo", "args": [1, 2**70]}}
    plain = json.dumps(asked).encode()
    request = MoaRequest(ROUTE, plain, RESP_JSON, encode_command(b"GET", plain))
    with pytest.raises(CannotTranslate, match=r"\$\.params\.args\[1\].*64 bits"):
        request_frame(request, TURBO_HESSIAN, LIMIT)


def test_a_reply_that_has_no_counterpart_is_refused_by_its_value() -> None:
    body = hessian.encode(hessian.HessianMap([("ec", 200), ("em", ""), ("result", b"\0\1")]))
    reply = MoaReply(body, TURBO_HESSIAN, wire_of(Cmd.RESP, body, TURBO_HESSIAN))
    told = json.loads(resp_reply(reply, LIMIT).split(b"\r\n")[1])
    assert told["ec"] == Ec.SERIALIZATION
    assert "$.result" in told["em"]
    assert "binary" in told["em"]


def test_a_broken_body_is_refused() -> None:
    reply = MoaReply(b"Z", TURBO_HESSIAN, wire_of(Cmd.RESP, b"Z", TURBO_HESSIAN))
    assert b'"ec":302' in resp_reply(reply, LIMIT)
    unknown = reply_of(packet(encode(Cmd.RESP, 1, b"{}", extension=0x100)), LIMIT)
    assert b"unknown extension bits" in resp_reply(unknown, LIMIT)


def test_an_error_of_a_resp_server_has_no_body() -> None:
    (error,) = ReplyParser().feed(b"-ERR unknown command\r\n")
    reply = reply_of(error, LIMIT)
    assert reply.ec is None
    assert resp_reply(reply, LIMIT) == b"-ERR unknown command\r\n"
    answer = packet(packet_reply(reply, packet(encode(Cmd.REQ, 3, b"{}")), LIMIT))
    assert b"ERR unknown command" in answer.body


@pytest.mark.parametrize("caller", [TURBO_JSON, TURBO_HESSIAN, TURBO9], ids=str)
def test_our_own_answer_is_in_the_callers_words(caller: Speech) -> None:
    form = Form.PACKET9 if caller is TURBO9 else Form.PACKET19
    asked = packet(wire_of(Cmd.REQ, b"?", caller), form)
    answer = packet(packet_reply(Failure(Ec.TIMEOUT, "no reply"), asked, LIMIT), form)
    assert value_of(answer.body, caller.codec) == {"ec": 304, "em": "no reply", "result": None}


@pytest.mark.parametrize("codec", list(Codec))
def test_what_was_not_sent_is_recognized_in_every_codec(codec: Codec) -> None:
    speech = Speech(Wire.TURBO, codec)
    told = unsent_body("its service is down")
    body = told if codec is Codec.JSON else hessian.json_to_hessian(told)
    reply = MoaReply(body, speech, wire_of(Cmd.RESP, body, speech))
    assert reply.is_unsent
    assert reply.ec == Ec.REMOTING
    assert not reply_in(speech).is_unsent
    assert reply_in(speech).ec == Ec.SUCCESS


@pytest.mark.parametrize(
    ("protocols", "codec", "caller", "chosen"),
    [
        (("resp",), "json", RESP_JSON, RESP_JSON),
        (("resp",), "hessian2", TURBO_HESSIAN, RESP_JSON),
        (("turbo",), "json", RESP_JSON, TURBO_JSON),
        (("turbo",), "hessian2", RESP_JSON, TURBO_HESSIAN),
        (("turbo", "resp"), "hessian2", RESP_JSON, RESP_JSON),
        (("resp", "turbo"), "json", TURBO_HESSIAN, TURBO_JSON),
        (("turbo9",), "hessian2", TURBO_JSON, TURBO9),
        (("mesh", "turbo"), "json", RESP_JSON, TURBO_JSON),
        (("v9",), "json", TURBO_JSON, RESP_JSON),
    ],
)
def test_how_an_instance_is_spoken_to(
    protocols: tuple[str, ...], codec: str, caller: Speech, chosen: Speech
) -> None:
    instance = Instance(Address("10.0.0.1", 1), protocols=protocols, codec=codec)
    assert speech_of(instance, caller) == chosen


def test_a_command_is_a_request() -> None:
    command = Command((b"GET", b"{}"), encode_command(b"GET", b"{}"))
    request = request_of_command(ROUTE, command)
    assert request_frame(request, RESP_JSON, LIMIT) is command.raw
