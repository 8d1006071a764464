"""Frames on the wire: exact bytes, any chunking, limits, and what is held of half a frame."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.mesh import Frame, FrameParser, FrameType, PeerError, Reason, encode_frame, joined
from proxy.wire.mesh.frames import HEAD_SIZE, MAX_FRAME_BODY

VECTOR = bytes.fromhex(
    "4d4f4101 01 02 0000 00000003 00000005 0102030405060708".replace(" ", "")
) + (b"hdrhello")


def parse(stream: bytes) -> list[Frame]:
    return FrameParser().feed(stream)


def plain(frames: list[Frame]) -> list[tuple[int, int, int, bytes, bytes]]:
    return [(f.kind, f.flags, f.request_id, f.header, joined(f.body)) for f in frames]


def test_vector_in_both_directions() -> None:
    assert encode_frame(FrameType.RESPONSE, 0x0102030405060708, b"hdr", b"hello", 1) == VECTOR
    assert plain(parse(VECTOR)) == [(2, 1, 0x0102030405060708, b"hdr", b"hello")]


def test_types_have_the_numbers_of_the_document() -> None:
    names = ["REQUEST", "RESPONSE", "PING", "PONG", "GOAWAY", "CANCEL", "HELLO", "WINDOW"]
    assert [kind.name for kind in FrameType] == names
    assert [kind.value for kind in FrameType] == list(range(1, 9))


def test_reserved_unknown_flags_and_unknown_types_are_let_through() -> None:
    strange = bytearray(VECTOR)
    strange[4], strange[5], strange[6:8] = 0xF0, 200, b"\xff\xff"
    assert plain(parse(bytes(strange))) == [
        (200, 0xF0, 0x0102030405060708, b"hdr", b"hello"),
    ]


STREAM = (
    VECTOR
    + encode_frame(FrameType.PING, 7)
    + encode_frame(FrameType.REQUEST, 1, b"h" * 300, b"")
    + encode_frame(FrameType.REQUEST, 1, b"", b"b" * 5000)
)


def test_frame_split_at_every_byte() -> None:
    whole = plain(parse(STREAM))
    assert len(whole) == 4
    for cut in range(len(STREAM) + 1):
        parser = FrameParser()
        frames = parser.feed(STREAM[:cut])
        assert parser.mid_frame == bool(parser.pending)
        assert plain(frames + parser.feed(STREAM[cut:])) == whole
        assert not parser.mid_frame


FRAMES = st.builds(
    encode_frame,
    st.sampled_from(FrameType),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=40),
    st.one_of(st.binary(max_size=40), st.sampled_from((b"x" * 4096, b"y" * 10_000))),
    st.integers(0, 255),
)


@given(st.lists(FRAMES, max_size=6).map(b"".join), st.lists(st.integers(0, 2**20)))
def test_any_chunking_gives_the_same_frames_and_pending(stream: bytes, cuts: list[int]) -> None:
    stream += b"MOA"
    borders = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    parser = FrameParser()
    frames: list[Frame] = []
    for a, b in itertools.pairwise(borders):
        frames += parser.feed(stream[a:b])
        follower = FrameParser()
        assert follower.feed(parser.pending) == []
        assert follower.pending == parser.pending
    assert plain(frames) == plain(parse(stream))
    assert parser.pending == b"MOA"


@pytest.mark.parametrize(
    ("stream", "reason", "text"),
    [
        (b"*1\r\n$4\r\nPING\r\n", Reason.PROTOCOL_ERROR, r"frame begins with b'\*'"),
        (b"MOA\x02" + bytes(20), Reason.PROTOCOL_ERROR, r"frame begins with b'MOA\\x02'"),
        (VECTOR[:8] + b"\x00\x00\x40\x01" + VECTOR[12:], Reason.TOO_LARGE, "header of 16385"),
        (VECTOR[:12] + b"\x00\x01\x00\x01" + VECTOR[16:], Reason.TOO_LARGE, "65537 bytes of body"),
        (VECTOR[:12] + b"\xff\xff\xff\xff" + VECTOR[16:], Reason.TOO_LARGE, "4294967295 bytes"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1000])
def test_what_is_refused(stream: bytes, reason: Reason, text: str, chunk: int) -> None:
    parser = FrameParser()

    def feed() -> None:
        for at in range(0, len(stream), chunk):
            parser.feed(stream[at : at + chunk])

    with pytest.raises(PeerError, match=text) as caught:
        feed()
    assert caught.value.reason is reason
    assert (parser.pending, parser.mid_frame) == (b"", False)


def test_wrong_magic_is_told_at_the_first_wrong_byte() -> None:
    parser = FrameParser()
    assert parser.feed(b"MO") == []
    with pytest.raises(PeerError, match=r"b'MOX'"):
        parser.feed(b"X")


def test_frames_before_the_error_come_first_and_the_error_stays() -> None:
    parser = FrameParser()
    assert plain(parser.feed(VECTOR + b"nonsense")) == plain(parse(VECTOR))
    assert parser.error is not None
    for _ in range(2):
        with pytest.raises(PeerError, match="frame begins"):
            parser.feed(VECTOR)


def test_large_body_is_not_copied_where_a_chunk_lies_in_it() -> None:
    parser = FrameParser()
    chunk = b"x" * 8000
    parser.feed(encode_frame(FrameType.REQUEST, 1, b"", b"x" * 24_000)[:HEAD_SIZE])
    parser.feed(chunk)
    parser.feed(chunk)
    (frame,) = parser.feed(chunk)
    assert [piece is chunk for piece in frame.body] == [True, True, True]


def test_single_bytes_cost_no_object_each() -> None:
    parser = FrameParser()
    stream = encode_frame(FrameType.REQUEST, 1, b"h" * 1000, b"x" * MAX_FRAME_BODY)
    frames = [frame for byte in stream for frame in parser.feed(bytes((byte,)))]
    assert plain(frames) == plain(parse(stream))
    assert len(frames[0].body) == 1
