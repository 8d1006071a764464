"""The generated code and the values beside it say the same."""

from __future__ import annotations

from google.protobuf.internal import api_implementation

from proxy.wire.mesh import BodyCodec, Reason
from proxy.wire.mesh import mesh_pb2 as pb


def test_enums_are_those_of_the_proto() -> None:
    for ours, prefix, proto in (
        (BodyCodec, "BODY_CODEC_", pb.BodyCodec),
        (Reason, "GO_AWAY_CODE_", pb.GoAwayCode),
    ):
        assert {prefix + member.name: member.value for member in ours} == dict(proto.items())


def test_protobuf_runs_in_c() -> None:
    assert api_implementation.Type() == "upb"
