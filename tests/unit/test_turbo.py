"""Binary packets: vectors in both directions, chunking, limits, and what an error leaves."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire import chunks
from proxy.wire.turbo import (
    EXT_HESSIAN,
    EXT_SNAPPY,
    Cmd,
    Form,
    Packet,
    PacketLimits,
    PacketParser,
    ProtocolError,
    encode,
    encode9,
    encode_answer,
    encode_ping,
    encode_pong,
)

VECTORS = [
    ("00000001 01 0000 0000000000000000 00000002 7b7d", (1, Cmd.REQ, 0, 0, b"{}")),
    ("ffffffff 02 0001 0000000000000001 00000001 00", (2**32 - 1, Cmd.RESP, 1, 1, b"\0")),
    ("00000100 03 ffff 0000000000000003 00000000", (256, Cmd.PING, -1, 3, b"")),
    ("00000000 04 7fff ffffffffffffffff 00000003 0d0a0d", (0, Cmd.PONG, 32767, -1, b"\r\n\r")),
    ("12345678 05 0000 0000000000000002 00000000", (0x12345678, Cmd.INFO, 0, 2, b"")),
]
VECTORS9 = [
    ("00000001 01 00000002 7b7d 0d0a", (1, Cmd.REQ, b"{}")),
    ("ffffffff 02 00000004 0d0a0d0a 0d0a", (2**32 - 1, Cmd.RESP, b"\r\n\r\n")),
    ("00000007 05 00000000 0d0a", (7, Cmd.INFO, b"")),
]


@pytest.mark.parametrize(("hexed", "fields"), VECTORS)
def test_vectors_of_19_bytes(hexed: str, fields: tuple[int, Cmd, int, int, bytes]) -> None:
    raw = bytes.fromhex(hexed)
    opaque, cmd, version, extension, body = fields
    (packet,) = PacketParser().feed(raw)
    assert packet == Packet(Form.PACKET19, opaque, cmd, version, extension, raw)
    assert packet.body == body
    assert encode(cmd, opaque, body, version=version, extension=extension) == raw


@pytest.mark.parametrize(("hexed", "fields"), VECTORS9)
def test_vectors_of_9_bytes(hexed: str, fields: tuple[int, Cmd, bytes]) -> None:
    raw = bytes.fromhex(hexed)
    opaque, cmd, body = fields
    (packet,) = PacketParser(form=Form.PACKET9).feed(raw)
    assert packet == Packet(Form.PACKET9, opaque, cmd, 0, 0, raw)
    assert packet.body == body
    assert encode9(cmd, opaque, body) == raw


def test_body_is_seen_without_a_copy() -> None:
    (packet,) = PacketParser().feed(encode(Cmd.REQ, 1, b"x" * 100))
    assert packet.body_view.obj is packet.raw
    assert packet.body_view == b"x" * 100


def test_other_number_changes_nothing_else() -> None:
    for raw, form in (
        (encode(Cmd.REQ, 1, b"{}", version=3, extension=2), Form.PACKET19),
        (encode9(Cmd.REQ, 1, b"{}"), Form.PACKET9),
    ):
        (packet,) = PacketParser(form=form).feed(raw)
        assert packet.with_opaque(0xAABBCCDD) == b"\xaa\xbb\xcc\xdd" + raw[4:]


def test_ping_comes_back_as_it_was_sent() -> None:
    ping = encode_ping(9, 1_700_000_000_123)
    assert ping[19:] == b'{"timestamp":1700000000123}'
    (packet,) = PacketParser().feed(ping)
    assert encode_pong(packet) == encode(Cmd.PONG, 9, ping[19:])
    (old,) = PacketParser(form=Form.PACKET9).feed(encode9(Cmd.PING, 9, b'{"timestamp":1}'))
    assert encode_pong(old) == encode9(Cmd.PONG, 9, b'{"timestamp":1}')


def test_answer_has_number_version_and_form_of_the_request() -> None:
    (request,) = PacketParser().feed(encode(Cmd.REQ, 5, b"H", version=2, extension=EXT_HESSIAN))
    assert encode_answer(request, Cmd.RESP, b"Z", EXT_SNAPPY) == encode(
        Cmd.RESP, 5, b"Z", version=2, extension=EXT_SNAPPY
    )


STREAM = b"".join(
    encode(cmd, n, b"%d" % n * n, extension=n % 3)
    for n, cmd in enumerate(itertools.islice(itertools.cycle(Cmd), 30))
)
STREAM9 = b"".join(encode9(Cmd.REQ, n, b"\r\n" * n) for n in range(30))


@pytest.mark.parametrize(("stream", "form"), [(STREAM, Form.PACKET19), (STREAM9, Form.PACKET9)])
def test_stream_split_at_every_byte(stream: bytes, form: Form) -> None:
    whole = PacketParser(form=form).feed(stream)
    assert [packet.opaque for packet in whole] == list(range(30))
    assert b"".join(packet.raw for packet in whole) == stream
    for cut in range(len(stream) + 1):
        parser = PacketParser(form=form)
        packets = parser.feed(stream[:cut])
        held = stream[sum(len(packet.raw) for packet in packets) : cut]
        assert parser.pending == held
        assert parser.mid_frame == bool(held)
        assert packets + parser.feed(stream[cut:]) == whole
        assert not parser.mid_frame


@given(
    st.lists(
        st.builds(
            encode,
            st.sampled_from(Cmd),
            st.integers(0, 2**32 - 1),
            st.binary(max_size=200),
            version=st.integers(-(2**15), 2**15 - 1),
            extension=st.integers(-(2**63), 2**63 - 1),
        ),
        max_size=8,
    ),
    st.integers(1, 40),
)
def test_any_chunking_gives_the_same_packets(raws: list[bytes], size: int) -> None:
    stream = b"".join(raws)
    parser = PacketParser()
    seen = [p for at in range(0, len(stream), size) for p in parser.feed(stream[at : at + size])]
    assert [packet.raw for packet in seen] == raws
    assert parser.pending == b""


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("00000007 01 0000 0000000000000000 00200001", "2097153 is not within 0 and 2097152"),
        ("00000007 01 0000 0000000000000000 7fffffff", "2147483647 is not within"),
        ("00000007 01 0000 0000000000000000 ffffffff", "-1 is not within"),
        ("00000007 00 0000 0000000000000000 00000000", "unknown command 0 in packet 7"),
        ("00000007 06 0000 0000000000000000 00000000", "unknown command 6 in packet 7"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 19])
def test_bad_header_is_refused_when_it_is_read(header: str, text: str, chunk: int) -> None:
    raw = bytes.fromhex(header)
    parser = PacketParser()
    for at in range(0, 19 - chunk, chunk):
        assert parser.feed(raw[at : at + chunk]) == []
    with pytest.raises(ProtocolError, match=text):
        parser.feed(raw[19 - chunk :])
    assert parser.pending == raw
    with pytest.raises(ProtocolError, match=text):
        parser.feed(encode(Cmd.REQ, 1))


def test_length_of_the_old_form_has_the_same_limit() -> None:
    with pytest.raises(ProtocolError, match="4294967295 is not within"):
        PacketParser(form=Form.PACKET9).feed(bytes.fromhex("00000001 01 ffffffff"))


def test_old_form_needs_its_crlf() -> None:
    raw = encode9(Cmd.REQ, 3, b"{}")[:-2]
    for wrong in (b"\n\n", b"\r\r", b"xx"):
        parser = PacketParser(form=Form.PACKET9)
        with pytest.raises(ProtocolError, match="expected CRLF after 2 bytes of packet 3"):
            parser.feed(raw + wrong)


def test_packets_before_a_broken_one_are_returned_first() -> None:
    parser = PacketParser()
    good = encode(Cmd.REQ, 1, b"{}")
    bad = bytes.fromhex("00000007 09 0000 0000000000000000 00000000")
    assert [packet.raw for packet in parser.feed(good + bad + good)] == [good]
    assert parser.error is not None
    assert parser.pending == bad + good
    with pytest.raises(ProtocolError):
        parser.feed(b"")


def test_body_at_the_limit_passes() -> None:
    parser = PacketParser(PacketLimits(max_body=10))
    assert len(parser.feed(encode(Cmd.REQ, 1, b"x" * 10))) == 1
    with pytest.raises(ProtocolError, match="11 is not within 0 and 10"):
        parser.feed(encode(Cmd.REQ, 1, b"x" * 11))


def test_large_body_is_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[int] = []

    class CountingReader(chunks.ChunkReader):
        __slots__ = ()

        def take(self) -> bytes:
            frame = super().take()
            joined.append(len(frame))
            return frame

    monkeypatch.setattr("proxy.wire.turbo_parser.ChunkReader", CountingReader)
    parser = PacketParser()
    stream = encode(Cmd.REQ, 1, b"x" * 1_000_000)
    for at in range(0, len(stream), 10_000):
        parser.feed(stream[at : at + 10_000])
    assert joined == [len(stream)]
