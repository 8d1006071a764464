"""The protocol is told by the first bytes, by few of them, and however they arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.detect import MAX_NEEDED, Protocol, detect

RESP_OPENINGS = [
    b"*2\r\n$3\r\nGET\r\n",
    b"*0\r\n",
    b"*-1\r\n",
    b"PING\r\n",
    b"ping\n",
    b"GET {}\r\n",
    b"Info\t\r\n",
    b"HELLO 3\r\n",
    b"COMMAND DOCS\r\n",
    b"QUIT\n",
]
OTHER_OPENINGS = [
    b"\x16\x03\x01\x02\x00\x01",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"POST / HTTP/1.1\r\n",
    b"PINGS\r\n",
    b"GETX",
    b"**",
    b"*a",
    b"\r\n",
    b"\0\0\0\0",
    b"SET a b\r\n",
    b"CLIENTS",
    b"COMMANDER",
    b"PRI * HTTP/2.0\r\n",
]


@pytest.mark.parametrize("opening", RESP_OPENINGS)
def test_resp_is_seen_at_the_first_byte_that_tells_and_stays(opening: bytes) -> None:
    verdicts = [detect(opening[:size]) for size in range(len(opening) + 1)]
    told = verdicts.index(Protocol.RESP)
    assert all(v is Protocol.UNDECIDED for v in verdicts[:told])
    assert all(v is Protocol.RESP for v in verdicts[told:])


@pytest.mark.parametrize("opening", OTHER_OPENINGS)
def test_anything_else_is_seen_as_such(opening: bytes) -> None:
    verdicts = [detect(opening[:size]) for size in range(len(opening) + 1)]
    assert verdicts[-1] is Protocol.OTHER
    assert Protocol.RESP not in verdicts


def test_http_is_found_out_by_its_line_and_not_here() -> None:
    assert detect(b"GET / HTTP/1.1\r\n") is Protocol.RESP


def test_nothing_is_no_protocol_yet() -> None:
    assert detect(b"") is Protocol.UNDECIDED


@given(st.binary(min_size=MAX_NEEDED, max_size=64))
def test_a_bounded_number_of_bytes_always_decides(first: bytes) -> None:
    assert detect(first) is not Protocol.UNDECIDED
    assert detect(first) is detect(first[:MAX_NEEDED])


@given(st.binary(max_size=MAX_NEEDED))
def test_a_decision_is_never_taken_back(first: bytes) -> None:
    verdicts = [detect(first[:size]) for size in range(len(first) + 1)]
    decided = [v for v in verdicts if v is not Protocol.UNDECIDED]
    assert len(set(decided)) <= 1
    assert verdicts == [Protocol.UNDECIDED] * (len(verdicts) - len(decided)) + decided
