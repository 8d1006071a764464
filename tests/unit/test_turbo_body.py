"""Bodies of binary packets: snappy within bounds, broken blocks, the time in a PING."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.turbo import (
    EXT_HESSIAN,
    EXT_SNAPPY,
    BodyError,
    Cmd,
    Packet,
    PacketParser,
    compress,
    decompress,
    encode,
    parse_ping,
    ping_body,
    read_body,
)

LIMIT = 2 * 1024 * 1024
# Written by hand after snappy's format_description.txt: a literal, then copies.
BLOCKS = [
    ("00", b""),
    ("05 10 68656c6c6f", b"hello"),
    ("06 00 61 05 01", b"aaaaaa"),
    ("40 00 61 fa 0100", b"a" * 64),
    ("8501 00 61 fe 0100 fe 0100 0e 0100", b"a" * 133),
]


def packet(body: bytes, extension: int) -> Packet:
    (parsed,) = PacketParser().feed(encode(Cmd.REQ, 1, body, extension=extension))
    return parsed


@pytest.mark.parametrize(("hexed", "plain"), BLOCKS)
def test_snappy_vectors(hexed: str, plain: bytes) -> None:
    assert decompress(bytes.fromhex(hexed), LIMIT) == plain


@given(st.binary(max_size=500) | st.binary(max_size=5).map(lambda piece: piece * 300))
def test_snappy_both_ways(plain: bytes) -> None:
    assert decompress(compress(plain), len(plain)) == plain


def test_body_is_decompressed_when_its_packet_says_so() -> None:
    block = compress(b"{}" * 100)
    assert read_body(packet(block, EXT_SNAPPY), LIMIT) == b"{}" * 100
    assert read_body(packet(block, EXT_SNAPPY | EXT_HESSIAN), LIMIT) == b"{}" * 100
    assert read_body(packet(block, 0), LIMIT) == block
    assert read_body(packet(block, EXT_HESSIAN), LIMIT) == block


@pytest.mark.parametrize("extension", [4, 1 << 40, -1, -(2**63)])
def test_unknown_extension_bits_make_a_body_unreadable(extension: int) -> None:
    with pytest.raises(BodyError, match="unknown extension bits 0x"):
        read_body(packet(b"{}", extension), LIMIT)


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (b"", "no length"),
        (b"\x80", "no length"),
        (b"\xff\xff\xff\xff\xff\x01", "no length"),
        (b"\xff\xff\xff\xff\x1f", "no length"),
        (b"\x81\x80\x80\x01" + b"x" * 200_000, "over the limit of 2097152"),
        (b"\xff\xff\xff\xff\x0f" + b"x" * 10, "over the limit"),
        (b"\x80\x80\x80\x01\x00a", "6 bytes cannot hold 2097152 bytes"),
        (b"\x05\x10hell", "broken snappy body"),
        (b"\x05\x10hello!", "broken snappy body"),
        (b"\x04\x10hello", "broken snappy body"),
        (b"\x06\x00a\x05\x02", "broken snappy body"),
    ],
)
def test_broken_blocks_are_refused(block: bytes, text: str) -> None:
    with pytest.raises(BodyError, match=text):
        decompress(block, LIMIT)


def test_limit_counts_what_a_block_holds() -> None:
    block = compress(b"x" * 1000)
    assert len(decompress(block, 1000)) == 1000
    with pytest.raises(BodyError, match="holds 1000 bytes, over the limit of 999 bytes"):
        decompress(block, 999)


@pytest.mark.parametrize("claim", [b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x01"])
def test_claimed_size_is_judged_before_anything_is_allocated(
    claim: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("cramjam.snappy.decompress_raw")
    with pytest.raises(BodyError):
        decompress(claim + b"\x00a", LIMIT)


@given(st.binary(max_size=64))
def test_any_block_has_a_clear_answer(block: bytes) -> None:
    try:
        plain = decompress(block, 256)
    except BodyError:
        return
    assert len(plain) <= 256


def test_ping_carries_unix_milliseconds() -> None:
    assert ping_body(1_700_000_000_123) == b'{"timestamp":1700000000123}'
    assert parse_ping(ping_body(1_700_000_000_123)) == 1_700_000_000_123


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"timestamp":"1"}',
        b'{"timestamp":true}',
        b'{"timestamp":1.5}',
        b'{"timestamp":1}' + b" " * 300,
        b"[" * 250,
    ],
)
def test_ping_without_a_time_is_no_error(body: bytes) -> None:
    assert parse_ping(body) is None
