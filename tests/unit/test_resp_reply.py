"""Replies of an upstream: vectors of RESP2 and RESP3, chunking, limits."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.resp import (
    NULL,
    Limits,
    ProtocolError,
    ReplyParser,
    array,
    bulk,
    encode_command,
    error,
    integer,
    simple,
)
from tests.unit.reference_resp import read_replies

VECTORS: list[tuple[bytes, bytes | None]] = [
    (b"+OK\r\n", b"OK"),
    (b"+\r\n", b""),
    (b"-ERR no\r\n", b"ERR no"),
    (b":-12\r\n", b"-12"),
    (b"$5\r\nhello\r\n", b"hello"),
    (b"$0\r\n\r\n", b""),
    (b"$4\r\n\r\n\r\n\r\n", b"\r\n\r\n"),
    (b"$-1\r\n", None),
    (b"*-1\r\n", None),
    (b"*0\r\n", None),
    (b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n", None),
    (b"_\r\n", None),
    (b"#t\r\n", b"t"),
    (b",1.5\r\n", b"1.5"),
    (
        b"(3492890328409238509324850943850943825024385\r\n",
        b"3492890328409238509324850943850943825024385",
    ),
    (b"!5\r\nERR x\r\n", b"ERR x"),
    (b"=7\r\ntxt:abc\r\n", b"txt:abc"),
    (b"%1\r\n+k\r\n*2\r\n:1\r\n$-1\r\n", None),
    (b"~2\r\n:1\r\n:2\r\n", None),
    (b">2\r\n+message\r\n+x\r\n", None),
    (b"|1\r\n+ttl\r\n:3\r\n$1\r\na\r\n", None),
]


@pytest.mark.parametrize(("raw", "payload"), VECTORS)
def test_reply_vectors(raw: bytes, payload: bytes | None) -> None:
    (reply,) = ReplyParser().feed(raw)
    assert (reply.raw, reply.kind, reply.payload) == (raw, raw[:1], payload)


def test_reply_split_at_every_byte() -> None:
    stream = b"".join(raw for raw, _ in VECTORS)
    whole = ReplyParser().feed(stream)
    assert [(r.raw, r.payload) for r in whole] == VECTORS
    for cut in range(len(stream) + 1):
        parser = ReplyParser()
        assert parser.feed(stream[:cut]) + parser.feed(stream[cut:]) == whole
        assert (parser.pending, parser.mid_frame) == (b"", False)


LEAVES = st.one_of(
    st.binary(max_size=30).map(bulk),
    st.text("ab c", max_size=9).map(simple),
    st.integers().map(integer),
    st.just(NULL),
    st.just(b"_\r\n"),
    st.binary(max_size=9).map(lambda b: b"=%d\r\n%b\r\n" % (len(b), b)),
)
REPLIES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: array(*items)),
        st.lists(st.tuples(inner, inner), max_size=3).map(
            lambda pairs: b"%%%d\r\n" % len(pairs) + b"".join(k + v for k, v in pairs)
        ),
        st.tuples(inner, inner, inner).map(lambda kv: b"|1\r\n" + b"".join(kv)),
    ),
    max_leaves=12,
)


@given(st.lists(REPLIES, max_size=5), st.lists(st.integers(0, 800), max_size=10))
def test_any_chunking_agrees_with_the_reference(replies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(replies)
    borders = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    parser = ReplyParser()
    got = [r.raw for a, b in itertools.pairwise(borders) for r in parser.feed(stream[a:b])]
    assert got == read_replies(stream) == replies


PIECES = st.sampled_from(
    b"*2~ $3~ abc~ +x~ +x\n -E\r \n :1~ %1~ |1~ _~ $?~ *-1~ *-2~ *1~ q $-1~ ++++++++++++++++++"
    .replace(b"~", b"\r\n").split(b" ")
)  # fmt: skip
SMALL = Limits(max_element=16, max_frame=40, max_depth=3)


@given(st.lists(PIECES, max_size=12).map(b"".join), st.lists(st.integers(0, 300), max_size=9))
def test_garbage_gives_the_same_replies_and_error_in_any_chunking(
    stream: bytes, cuts: list[int]
) -> None:
    def run(cuts: list[int]) -> tuple[list[bytes], str]:
        borders = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
        parser = ReplyParser(SMALL)
        raws: list[bytes] = []
        for a, b in itertools.pairwise(borders):
            try:
                raws += [r.raw for r in parser.feed(stream[a:b])]
            except ProtocolError:
                break
        return raws, str(parser.error)

    assert run(cuts) == run([])


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        (b"HTTP/1.1 200\r\n", "expected the type of a reply, got 'H'"),
        (b"$3000000000\r\n", "invalid bulk length: 3000000000"),
        (b"$-2\r\n", "invalid bulk length: -2"),
        (b"!-1\r\n", "invalid bulk length: -1"),
        (b"$?\r\n", "invalid bulk length"),
        (b"*1000000000\r\n", "1000000000 items cannot fit"),
        (b"*-2\r\n", "invalid multibulk length: -2"),
        (b"*1\r\n" * 17, "reply nested deeper than 16"),
        (b"+a\nb\r\n", "ends with LF alone"),
        (b"$1\r\nab\r\n", "expected CRLF after 1 bytes"),
        (b"+" + b"x" * 2097153, "line over the limit of 2097152 bytes"),
    ],
)
def test_broken_reply_is_refused(stream: bytes, text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        ReplyParser().feed(stream)
    assert text in str(caught.value)


def test_replies_before_an_error_come_first() -> None:
    parser = ReplyParser()
    assert [r.raw for r in parser.feed(b"+OK\r\nx")] == [b"+OK\r\n"]
    assert (str(parser.error), parser.pending) == ("expected the type of a reply, got 'x'", b"x")


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (encode_command(b"GET", b""), b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n"),
        (bulk(b"a\r\n"), b"$3\r\na\r\n\r\n"),
        (simple("a\r\nb"), b"+a  b\r\n"),
        (error("ERR \u00e9\n"), b"-ERR \xc3\xa9 \r\n"),
        (error(b"ERR \xff\r\n"), b"-ERR \xff  \r\n"),
        (integer(-7), b":-7\r\n"),
        (array(), b"*0\r\n"),
    ],
)
def test_encoders(encoded: bytes, expected: bytes) -> None:
    assert encoded == expected


@pytest.mark.parametrize("raw", [bulk(b"x" * 16), simple("x" * 14)])
@pytest.mark.parametrize("step", [1, 1000])
def test_limits_are_exact_in_one_chunk_and_in_many(raw: bytes, step: int) -> None:
    chunks = [raw[at : at + step] for at in range(0, len(raw), step)]
    for element, frame in ((16, len(raw)), (15, len(raw)), (16, len(raw) - 1)):
        parser = ReplyParser(Limits(max_element=element, max_frame=frame))
        if (element, frame) == (16, len(raw)):
            assert [r.raw for chunk in chunks for r in parser.feed(chunk)] == [raw]
        else:
            with pytest.raises(ProtocolError, match=r"over the limit|not within"):
                [parser.feed(chunk) for chunk in chunks]
