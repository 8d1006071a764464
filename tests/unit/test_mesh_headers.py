"""Headers: exact bytes, all values, and fields of a newer version that go on unchanged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.mesh import (
    BodyCodec,
    PeerError,
    Reason,
    RequestHeader,
    RequestReceived,
    ResponseHeader,
    UsageError,
    next_hop,
)
from proxy.wire.mesh import mesh_pb2 as pb
from proxy.wire.mesh.headers import (
    decode_goaway,
    decode_request,
    decode_response,
    decode_window,
    encode_goaway,
    encode_request,
    encode_response,
    encode_window,
)
from tests.unit.mesh_ends import exchange, pair

FULL = RequestHeader(
    service="/service/user-service",
    method="getName",
    group="g1",
    codec=BodyCodec.HESSIAN2,
    deadline_ms=0,
    attempt=2,
    traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    tracestate="v=1",
    source_app="shop",
    source_zone="z1",
    props={"hashid": "7", "ключ": "\U0001f600"},
)


def test_request_vector() -> None:
    header = RequestHeader("/s", "m", deadline_ms=300)
    raw = b"\x0a\x02/s" + b"\x12\x01m" + b"\x20\x01" + b"\x28\xac\x02" + b"\x60\x05"
    assert encode_request(header, 5) == raw
    assert decode_request(raw) == (header, 5)


def test_response_vector() -> None:
    header = ResponseHeader(504, "full", retryable=True, load=0)
    raw = b"\x08\xf0\x07" + b"\x12\x04full" + b"\x18\x01" + b"\x20\x01" + b"\x28\x00" + b"\x60\x07"
    assert encode_response(header, 7) == raw
    assert decode_response(raw) == (header, 7)


def test_every_field_of_the_proto_survives() -> None:
    header, length = decode_request(encode_request(FULL, 9))
    assert (header, length) == (FULL, 9)
    filled = {f.name for f, _ in pb.RequestHeader.FromString(header.received).ListFields()}
    assert filled == set(pb.RequestHeader.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize("deadline_ms", [None, 0, 1, 2**32 - 1])
def test_no_deadline_is_not_a_deadline_of_zero(deadline_ms: int | None) -> None:
    header = RequestHeader("/s", "m", deadline_ms=deadline_ms)
    assert decode_request(encode_request(header, 0))[0].deadline_ms == deadline_ms


def test_deadline_is_kept_within_what_the_field_holds() -> None:
    for given_ms, sent_ms in ((-5, 0), (2**40, 2**32 - 1)):
        header = RequestHeader("/s", "m", deadline_ms=given_ms)
        assert decode_request(encode_request(header, 0))[0].deadline_ms == sent_ms


def test_codec_of_a_newer_version_passes() -> None:
    assert decode_request(encode_request(replace(FULL, codec=77), 0))[0].codec == 77


def newer(name: str) -> Any:
    """The message class of a mesh.proto that is a version ahead: more fields, more numbers."""
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    for message in file.message_type:
        message.field.add(name="new_text", number=100, type=9, label=1)
        message.field.add(name="new_numbers", number=2000, type=13, label=3)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"moa.mesh.v1.{name}"))


def test_request_fields_of_a_newer_proto_survive_a_hop() -> None:
    message = newer("RequestHeader").FromString(encode_request(FULL, 4))
    message.new_text = "from the future"
    message.new_numbers.extend([1, 2, 3])
    header, _ = decode_request(message.SerializeToString())
    onward = next_hop(header, codec=1, deadline_ms=None, attempt=7, bits=lambda _: 5)
    onward = replace(onward, tracestate="", props={"only": "this"})
    after = newer("RequestHeader").FromString(encode_request(onward, 6))
    assert (after.new_text, list(after.new_numbers)) == ("from the future", [1, 2, 3])
    assert (after.service, after.attempt, after.body_length) == (FULL.service, 7, 6)
    assert (after.tracestate, dict(after.props)) == ("", {"only": "this"})


def test_response_fields_of_a_newer_proto_survive_a_hop() -> None:
    message = newer("ResponseHeader")(ec=200, em="gone", load=3, new_text="x", body_length=1)
    header, _ = decode_response(message.SerializeToString())
    after = newer("ResponseHeader").FromString(encode_response(replace(header, em="", load=4), 2))
    assert (after.new_text, after.em, after.load, after.body_length) == ("x", "", 4, 2)


def test_newer_fields_pass_through_a_relaying_agent() -> None:
    caller, inbound = pair()
    outbound, service = pair()
    message = newer("RequestHeader").FromString(encode_request(FULL, 0))
    message.new_text = "kept"
    caller.send_request(decode_request(message.SerializeToString())[0], b"body")
    (event,) = exchange(caller, inbound)
    assert isinstance(event, RequestReceived)
    outbound.send_request(event.header, event.body)
    (event,) = exchange(outbound, service)
    assert isinstance(event, RequestReceived)
    assert newer("RequestHeader").FromString(event.header.received).new_text == "kept"
    assert event.body == (b"body",)


@pytest.mark.parametrize("decode", [decode_request, decode_response, decode_goaway, decode_window])
@pytest.mark.parametrize("raw", [b"\x0a\xff", b"\xff" * 11, b"\x07"])
def test_what_is_no_protobuf_is_the_peers_fault(decode: Any, raw: bytes) -> None:
    with pytest.raises(PeerError, match="is not its Protobuf message") as caught:
        decode(raw)
    assert caught.value.reason is Reason.PROTOCOL_ERROR


def test_text_that_is_no_utf_8_is_the_peers_fault() -> None:
    with pytest.raises(PeerError):
        decode_request(b"\x0a\x02\xff\xfe")


@pytest.mark.parametrize(
    "header", [RequestHeader("\ud800", "m"), RequestHeader("/s", "m", attempt=-1)]
)
def test_values_that_no_header_can_hold_are_our_fault(header: RequestHeader) -> None:
    with pytest.raises(UsageError, match="request header cannot be encoded"):
        encode_request(header, 0)
    with pytest.raises(UsageError, match="response header cannot be encoded"):
        encode_response(ResponseHeader(2**31), 0)


def test_goaway_and_window() -> None:
    assert decode_goaway(encode_goaway(Reason.FLOOD, "x" * 1000)) == (6, "x" * 256)
    assert decode_goaway(encode_goaway(Reason.NO_ERROR, "\ud800")) == (0, "?")
    assert decode_goaway(b"\x08\x63") == (99, "")
    assert encode_window(300) == b"\x08\xac\x02"
    assert decode_window(b"\x08\xac\x02") == 300
    with pytest.raises(PeerError, match="no credit"):
        decode_window(b"")


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@given(
    st.builds(
        RequestHeader,
        TEXT,
        TEXT,
        TEXT,
        st.integers(0, 9),
        st.none() | st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        TEXT,
        TEXT,
        TEXT,
        TEXT,
        st.dictionaries(TEXT, TEXT, max_size=4),
    ),
    st.integers(0, 2**31),
)
def test_any_request_header_survives_two_hops(header: RequestHeader, length: int) -> None:
    once, _ = decode_request(encode_request(header, 1))
    assert decode_request(encode_request(once, length)) == (header, length)
