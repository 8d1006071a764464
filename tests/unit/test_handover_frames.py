"""Frames of the hand-over protocol: any cut of the bytes, and what is refused."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.handover import (
    MAX_DESCRIPTORS,
    MAX_VERSION,
    FrameReader,
    FrameType,
    HandoverError,
    encode,
    settle,
)
from proxy.wire.handover import handover_pb2 as pb

MESSAGES = (
    (pb.Hello(min_version=1, max_version=3, features=["x"], pid=7), 0),
    (pb.Shared(names=["outbound4", "pins"], next_number=9), 2),
    (pb.Prepare(batch=1, connections=[pb.Connection(number=5, unread=b"\0" * 300)]), 1),
    (pb.Commit(batch=0), 0),
    (pb.Done(moved=3), 0),
)
WHOLE = b"".join(encode(message, descriptors) for message, descriptors in MESSAGES)


def test_layout_of_a_frame() -> None:
    wire = encode(pb.Commit(batch=2), 3)
    assert wire == b"MOAH" + struct.pack(">HHII", MAX_VERSION, FrameType.COMMIT, 3, 2) + b"\x08\x02"


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_any_cut_gives_the_same_frames(cuts: list[int]) -> None:
    at = sorted({0, len(WHOLE), *cuts})
    reader, seen = FrameReader(), []
    for begin, end in itertools.pairwise(at):
        seen += reader.feed(WHOLE[begin:end])
    assert [(frame.message, frame.descriptors) for frame in seen] == list(MESSAGES)


@pytest.mark.parametrize(
    ("wire", "words"),
    [
        (b"GET / HTTP/1.1\r\n", "magic b'GET '"),
        (b"MOAH" + struct.pack(">HHII", 1, FrameType.COMMIT, 0, 1 << 31), "a frame of 2147483648"),
        (
            b"MOAH" + struct.pack(">HHII", 1, FrameType.PREPARE, MAX_DESCRIPTORS + 1, 0),
            "201 descriptors",
        ),
        (b"MOAH" + struct.pack(">HHII", 9, 99, 0, 0), "frame type 99 of version 9"),
        (b"MOAH" + struct.pack(">HHII", 1, FrameType.COMMIT, 0, 1) + b"\xff", "COMMIT: "),
    ],
    ids=["magic", "length", "descriptors", "type", "message"],
)
def test_what_is_no_frame_is_refused(wire: bytes, words: str) -> None:
    with pytest.raises(HandoverError, match=words):
        FrameReader().feed(wire)


def test_unknown_fields_are_passed_over() -> None:
    newer = pb.Commit(batch=4).SerializeToString() + b"\xfa\x7f\x03new"
    wire = b"MOAH" + struct.pack(">HHII", 1, FrameType.COMMIT, 0, len(newer)) + newer
    assert FrameReader().feed(wire)[0].message.ListFields()[0][1] == 4


@pytest.mark.parametrize(
    ("low", "high", "version"),
    [(1, 1, 1), (1, 9, MAX_VERSION), (MAX_VERSION + 1, 99, None), (0, 0, None)],
)
def test_lower_common_version_is_spoken(low: int, high: int, version: int | None) -> None:
    assert settle(low, high) == version
