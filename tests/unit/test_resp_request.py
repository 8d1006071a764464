"""Commands of a client: vectors, chunking, limits, and what is left after an error."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.resp import Command, Limits, ProtocolError, RequestParser, encode_command
from tests.unit.reference_resp import read_commands

GET = b"*2\r\n$3\r\nGET\r\n$5\r\nhello\r\n"


def parse(stream: bytes, limits: Limits | None = None) -> list[Command]:
    return RequestParser(limits or Limits()).feed(stream)


def chunked(stream: bytes, cuts: list[int]) -> list[bytes]:
    borders = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[a:b] for a, b in itertools.pairwise(borders)]


@pytest.mark.parametrize(
    ("stream", "args"),
    [
        (GET, (b"GET", b"hello")),
        (b"*2\r\n$3\r\nget\r\n$0\r\n\r\n", (b"get", b"")),
        (b"*1\r\n$4\r\nPING\r\n", (b"PING",)),
        (b"*2\r\n$3\r\nGET\r\n$4\r\n\r\n\r\n\r\n", (b"GET", b"\r\n\r\n")),
        (b"PING\r\n", (b"PING",)),
        (b"PING\n", (b"PING",)),
        (b"  ECHO \"a b\\x41\\n\" 'it\\'s'\r\n", (b"ECHO", b"a bA\n", b"it's")),
        (b'SET a"b c" x\r\n', (b"SET", b"ab c", b"x")),
        (b"ECHO \"\" ''\r\n", (b"ECHO", b"", b"")),
        (b"ECHO a\0 b\r\n", (b"ECHO", b"a")),
        (b'\vECHO a\vb "c"\vd\r\n', (b"ECHO", b"a\vb", b"c", b"d")),
    ],
)
def test_command_vectors(stream: bytes, args: tuple[bytes, ...]) -> None:
    assert parse(stream) == [Command(args, stream)]


def test_name_is_upper_case_and_raw_keeps_the_client_s_case() -> None:
    (command,) = parse(b"*1\r\n$4\r\nping\r\n")
    assert (command.name, command.args, command.raw[8:12]) == (b"PING", (b"ping",), b"ping")


def test_empty_frames_are_ignored_and_kept_for_a_fallback_to_bytes() -> None:
    ignored = b"\r\n\n*0\r\n*-1\r\n  \r\n"
    assert parse(ignored + GET) == [Command((b"GET", b"hello"), GET, ignored)]


def test_ignored_bytes_are_bounded() -> None:
    parser = RequestParser()
    for _ in range(1000):
        assert parser.feed(b"\r\n" * 500) == []
        assert len(parser.pending) <= 64 * 1024
    assert not parser.mid_frame


def test_pipeline_of_a_thousand_keeps_order() -> None:
    stream = b"".join(encode_command(b"GET", b"%d" % n) for n in range(1000))
    commands = parse(stream)
    assert [c.args[1] for c in commands] == [b"%d" % n for n in range(1000)]
    assert b"".join(c.raw for c in commands) == stream


STREAM = (
    GET + b"\r\nPING\r\n" + b"*0\r\n" + b'ECHO "x y"\r\n' + encode_command(b"a" * 600, b"", b"b")
)


def test_command_split_at_every_byte() -> None:
    whole = parse(STREAM)
    assert len(whole) == 4
    for cut in range(len(STREAM) + 1):
        parser = RequestParser()
        assert parser.feed(STREAM[:cut]) + parser.feed(STREAM[cut:]) == whole
        assert parser.pending == b""


def test_single_bytes_give_the_same_commands() -> None:
    parser = RequestParser()
    got = [c for byte in STREAM for c in parser.feed(bytes((byte,)))]
    assert got == parse(STREAM)


@given(
    st.lists(st.lists(st.binary(max_size=40), min_size=0, max_size=20), max_size=6),
    st.lists(st.integers(0, 5000), max_size=12),
)
def test_any_chunking_agrees_with_the_reference(
    commands: list[list[bytes]], cuts: list[int]
) -> None:
    stream = b"".join(encode_command(*args) for args in commands)
    parser = RequestParser()
    got = [c for chunk in chunked(stream, cuts) for c in parser.feed(chunk)]
    assert [(c.args, c.raw) for c in got] == read_commands(stream)


def run(stream: bytes, cuts: list[int], limits: Limits) -> tuple[list[Command], str | None, bytes]:
    """Commands, error text, and pending bytes up to the chunk that showed an error."""
    parser = RequestParser(limits)
    commands: list[Command] = []
    for chunk in chunked(stream, cuts):
        try:
            commands += parser.feed(chunk)
        except ProtocolError:
            break
        if parser.error:
            break
    return commands, str(parser.error) if parser.error else None, parser.pending


PIECES = st.sampled_from(
    b'*2~|*1~|*0~|*-1~|*9~|*02~|*x~|$3~GET~|$5~hello~|$30~|$-1~|~|\n|\r|PING~|"a b" c\n|"|\'|\0|'
    b"*|$|$4~PING~|$3~abcXX|*1\n|xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx".replace(
        b"~", b"\r\n"
    ).split(b"|")
)
SMALL = Limits(max_element=16, max_frame=48, max_inline=32, max_args=4)


@given(st.lists(PIECES, max_size=12).map(b"".join), st.lists(st.integers(0, 300), max_size=9))
def test_garbage_gives_the_same_commands_and_error_in_any_chunking(
    stream: bytes, cuts: list[int]
) -> None:
    whole = run(stream, [], SMALL)
    split = run(stream, cuts, SMALL)
    assert split[:2] == whole[:2]
    seen = b"".join(c.skipped + c.raw for c in split[0]) + split[2]
    assert stream.startswith(seen)
    assert split[1] or seen == stream


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        (b"*x\r\n", "invalid multibulk length: 'x\\r\\n' is not"),
        (b"*1_0\r\n", "invalid multibulk length"),
        (b"*1\n", "invalid multibulk length"),
        (b"*1025\r\n", "invalid multibulk length: 1025 is over the limit of 1024"),
        (b"*" + b"1" * 40, "too big multibulk count string"),
        (b"*1\r\n:3\r\n", "expected '$', got ':'"),
        (b"*1\r\n$-1\r\n", "invalid bulk length: -1"),
        (b"*1\r\n$03\r\n", "invalid bulk length"),
        (b"*1\r\n$+3\r\n", "invalid bulk length"),
        (b"*1\r\n$3000000000\r\n", "invalid bulk length: 3000000000 is not within"),
        (b"*3\r\n$2097152\r\n" + b"x" * 2097152 + b"\r\n$2097152\r\n", "over the limit of 4194304"),
        (b"*1\r\n$3\r\nabcd\r\n", "expected CRLF after 3 bytes of bulk, got 'd\\r'"),
        (b'ECHO "a\r\n', "unbalanced quotes in request"),
        (b"ECHO 'a'b\r\n", "unbalanced quotes in request"),
        (b"x" * 65537, "too big inline request"),
    ],
)
def test_broken_stream_is_refused_with_a_text_for_the_client(stream: bytes, text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse(stream)
    assert text in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()


def test_length_of_3_gb_is_refused_before_any_of_it_is_kept() -> None:
    parser = RequestParser()
    with pytest.raises(ProtocolError):
        parser.feed(b"*2\r\n$3\r\nGET\r\n$3000000000\r\n")
    held = parser.pending
    with pytest.raises(ProtocolError):
        parser.feed(b"x" * 1_000_000)
    assert parser.pending == held


def test_commands_before_an_error_come_first_then_the_error() -> None:
    parser = RequestParser()
    assert [c.raw for c in parser.feed(GET + GET + b"*x\r\nrest")] == [GET, GET]
    assert parser.error is not None
    assert parser.pending == b"*x\r\nrest"
    with pytest.raises(ProtocolError, match="invalid multibulk length"):
        parser.feed(b"")


def test_pending_is_the_unread_part_of_an_unfinished_command() -> None:
    parser = RequestParser()
    parser.feed(GET + GET[:9])
    assert (parser.pending, parser.mid_frame) == (GET[:9], True)
    parser.feed(GET[9:])
    assert (parser.pending, parser.mid_frame) == (b"", False)


def test_a_whole_frame_in_one_chunk_is_not_copied() -> None:
    (command,) = parse(big := encode_command(b"GET", b"x" * 100_000))
    assert command.raw is big


@pytest.mark.parametrize("args", [(b"GET", b"x" * 16), (b"PUT", b"y" * 16)])
@pytest.mark.parametrize("step", [1, 1000])
def test_limits_are_exact_in_one_chunk_and_in_many(args: tuple[bytes, ...], step: int) -> None:
    stream = encode_command(*args)
    chunks = [stream[at : at + step] for at in range(0, len(stream), step)]
    for element, frame in ((16, len(stream)), (15, len(stream)), (16, len(stream) - 1)):
        parser = RequestParser(Limits(max_element=element, max_frame=frame))
        if (element, frame) == (16, len(stream)):
            assert [c.raw for chunk in chunks for c in parser.feed(chunk)] == [stream]
        else:
            with pytest.raises(ProtocolError, match="invalid bulk length"):
                [parser.feed(chunk) for chunk in chunks]
