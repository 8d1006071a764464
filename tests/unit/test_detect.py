"""The protocol of a connection from its first bytes: vectors, look-alikes, and stability."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.detect import EVERY, MAX_NEEDED, Protocol, detect
from proxy.wire.turbo import Cmd, encode, encode9, encode_ping

REQUEST = b'{"action":"/a","params":{"m":"f","args":[]}}'
GET = b"*2\r\n$3\r\nGET\r\n$1\r\nx\r\n"
MESH_HELLO = b"MOA\x01" + bytes(20)

FIRST_MESSAGES = [
    (GET, Protocol.RESP),
    (b"*1\r\n$4\r\nPING\r\n", Protocol.RESP),
    (b"*-1\r\n", Protocol.RESP),
    (b"PING\r\n", Protocol.RESP),
    (b"quit\n", Protocol.RESP),
    (b"COMMAND DOCS\r\n", Protocol.RESP),
    (encode(Cmd.REQ, 1, REQUEST), Protocol.TURBO),
    (encode(Cmd.REQ, 0xFFFFFFFF, REQUEST, version=255, extension=3), Protocol.TURBO),
    (encode_ping(0, 1_700_000_000_000), Protocol.TURBO),
    (encode(Cmd.INFO, 7), Protocol.TURBO),
    (encode(Cmd.REQ, 1, b"\r\n{}"), Protocol.TURBO),
    (encode9(Cmd.REQ, 1, REQUEST), Protocol.TURBO9),
    (encode9(Cmd.REQ, 1, b" " * 65536 + REQUEST), Protocol.TURBO9),
    (encode9(Cmd.PING, 0xFFFFFFFF, b'{"timestamp":1}'), Protocol.TURBO9),
    (encode9(Cmd.INFO, 1), Protocol.TURBO9),
    (MESH_HELLO, Protocol.MESH),
]


@pytest.mark.parametrize(("message", "protocol"), FIRST_MESSAGES)
def test_first_message_tells_the_protocol(message: bytes, protocol: Protocol) -> None:
    assert detect(message, EVERY) is protocol
    assert detect(message, EVERY - {protocol}) is Protocol.OTHER


@pytest.mark.parametrize(
    "text", [b"*1\r\n", b"*22\r", b"GET ", b"PING", b"INFO", b"MOAx", b"\r\n\r\n"]
)
@pytest.mark.parametrize("cmd", [Cmd.REQ, Cmd.PING, Cmd.INFO])
def test_number_of_a_packet_may_spell_another_protocol(text: bytes, cmd: Cmd) -> None:
    opaque = int.from_bytes(text, "big")
    assert detect(encode(cmd, opaque, REQUEST), EVERY) is Protocol.TURBO
    assert detect(encode9(cmd, opaque, REQUEST), EVERY) is Protocol.TURBO9


def test_magic_of_the_mesh_wins_over_a_number_that_spells_it() -> None:
    assert detect(encode(Cmd.REQ, 0x4D4F4101, REQUEST), EVERY) is Protocol.MESH


@pytest.mark.parametrize(
    "packet",
    [
        encode(Cmd.RESP, 1, REQUEST),
        encode(Cmd.PONG, 1, b"{}"),
        encode(Cmd.REQ, 1, REQUEST, version=256),
        encode(Cmd.REQ, 1, REQUEST, version=-1),
        encode(Cmd.REQ, 1, REQUEST, extension=4),
        encode(Cmd.REQ, 1, REQUEST, extension=-1),
        encode(Cmd.REQ, 1)[:15] + struct.pack(">i", 2**24),
        encode(Cmd.REQ, 1)[:15] + struct.pack(">i", -1),
        encode9(Cmd.RESP, 1, REQUEST),
        encode9(Cmd.REQ, 1, b"[]"),
        encode9(Cmd.REQ, 1)[:9] + b"xx",
    ],
)
def test_what_no_client_begins_with_is_other(packet: bytes) -> None:
    assert detect(packet, EVERY) is Protocol.OTHER


def test_length_over_any_limit_is_still_a_packet() -> None:
    header = encode(Cmd.REQ, 1)[:15] + struct.pack(">i", 2**24 - 1)
    assert detect(header, EVERY) is Protocol.TURBO


@pytest.mark.parametrize(
    "first",
    [
        bytes.fromhex("1603010005010001fc0303"),
        b"GET/index.html",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"EHLO localhost\r\n",
        struct.pack("<iiii", 60, 1, 0, 2013) + bytes(44),
        bytes.fromhex("0000000804d2162f"),
        bytes.fromhex("0400000101000000160001000b43514c"),
        bytes.fromhex("003a000001000000013901"),
        bytes.fromhex("300c020101600702010304008000"),
        b"MOA\x02" + bytes(20),
        b"\xff" * 20,
        bytes(20),
    ],
    ids=[
        *("tls", "text", "http2", "ssh", "smtp", "mongodb", "postgres", "cassandra", "oracle"),
        *("ldap", "mesh2", "ones", "zeros"),
    ],
)
def test_other_protocols_are_other(first: bytes) -> None:
    assert detect(first, EVERY) is Protocol.OTHER


@pytest.mark.parametrize(("message", "protocol"), FIRST_MESSAGES)
def test_first_message_split_at_every_byte(message: bytes, protocol: Protocol) -> None:
    judged = [detect(message[:end], EVERY) for end in range(len(message) + 1)]
    undecided = judged.count(Protocol.UNDECIDED)
    assert judged == [Protocol.UNDECIDED] * undecided + [protocol] * (len(judged) - undecided)
    assert undecided <= MAX_NEEDED


def test_text_is_told_from_packets_by_the_fifth_byte() -> None:
    assert detect(GET[:4], EVERY) is Protocol.UNDECIDED
    assert detect(GET[:5], EVERY) is Protocol.RESP
    assert detect(b"SSH-", EVERY) is Protocol.UNDECIDED
    assert detect(b"SSH-2", EVERY) is Protocol.OTHER


def test_nothing_is_waited_for_on_account_of_a_protocol_that_is_not_spoken() -> None:
    assert detect(b"*2") is Protocol.RESP
    assert detect(b"GET ") is Protocol.RESP
    assert detect(b"hi") is Protocol.OTHER
    assert detect(b"MOA\x01") is Protocol.OTHER
    assert detect(b"MOA\x01", frozenset({Protocol.MESH})) is Protocol.MESH
    assert detect(b"MO", frozenset({Protocol.MESH})) is Protocol.UNDECIDED


BYTES = st.binary(max_size=24) | st.tuples(
    st.binary(min_size=4, max_size=4),
    st.sampled_from([b"\x01", b"\x03", b"\x05"]),
    st.lists(st.sampled_from([0, 0, 0, 0, 1, 2, 3, 13, 10, 123]), max_size=18).map(bytes),
).map(b"".join)


@given(BYTES, BYTES, st.sets(st.sampled_from(sorted(EVERY, key=str))).map(frozenset))
def test_answer_stays_whatever_follows(
    first: bytes, more: bytes, spoken: frozenset[Protocol]
) -> None:
    judged = detect(first, spoken)
    if judged is Protocol.UNDECIDED:
        assert len(first) < MAX_NEEDED
    else:
        assert detect(first + more, spoken) is judged


@given(BYTES)
def test_resp_alone_is_told_as_if_there_were_no_other(first: bytes) -> None:
    judged = detect(first, EVERY)
    alone = detect(first)
    if judged is Protocol.RESP:
        assert alone is Protocol.RESP
    if judged is Protocol.OTHER:
        assert alone is Protocol.OTHER
