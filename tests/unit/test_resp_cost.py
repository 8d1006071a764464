"""The parsers look at each byte once: counted, not timed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.wire import chunks
from proxy.wire.resp import ReplyParser, RequestParser, bulk, encode_command, simple


class CountingBytes(bytes):
    """A chunk that counts the bytes that `find` may look at and that slices copy."""

    touched = 0

    def find(self, sub: bytes, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        stop = len(self) if end is None else min(end, len(self))
        found = bytes(self).find(sub, start, stop)
        CountingBytes.touched += (found if found >= 0 else stop) - min(start, stop) + 1
        return found

    def __getitem__(self, key: object) -> object:  # type: ignore[override]
        got = bytes.__getitem__(self, key)  # type: ignore[call-overload]
        if isinstance(got, bytes):
            CountingBytes.touched += len(got)
        return got


def touched_bytes(feed: Callable[[bytes], object], stream: bytes, chunk_size: int) -> int:
    CountingBytes.touched = 0
    for at in range(0, len(stream), chunk_size):
        feed(CountingBytes(stream[at : at + chunk_size]))
    return CountingBytes.touched


@pytest.mark.parametrize("chunk_size", [1, 7, 1000, 65536])
def test_request_bytes_touched_grow_with_the_body_alone(chunk_size: int) -> None:
    for body in (20_000, 200_000):
        stream = encode_command(b"GET", b"x" * body)
        assert touched_bytes(RequestParser().feed, stream, chunk_size) < 4 * len(stream) + 200


@pytest.mark.parametrize("make", [bulk, simple])
@pytest.mark.parametrize("chunk_size", [1, 7, 1000, 65536])
def test_reply_bytes_touched_grow_with_the_body_alone(
    make: Callable[[bytes], bytes], chunk_size: int
) -> None:
    for body in (20_000, 200_000):
        stream = make(b"x" * body)
        assert touched_bytes(ReplyParser().feed, stream, chunk_size) < 4 * len(stream) + 200


def test_many_arguments_in_small_chunks_stay_linear() -> None:
    stream = encode_command(*[b"x" * 200] * 1000)
    assert touched_bytes(RequestParser().feed, stream, 100) < 4 * len(stream)


def test_frame_is_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[int] = []

    class CountingReader(chunks.ChunkReader):
        __slots__ = ()

        def take(self) -> bytes:
            frame = super().take()
            joined.append(len(frame))
            return frame

    monkeypatch.setattr("proxy.wire.resp_request.ChunkReader", CountingReader)
    parser = RequestParser()
    stream = encode_command(b"GET", b"x" * 100_000)
    for at in range(0, len(stream), 1000):
        parser.feed(stream[at : at + 1000])
    assert joined == [len(stream)]


def test_small_chunks_cost_no_object_each() -> None:
    reader = chunks.ChunkReader()
    for _ in range(10_000):
        reader.push(b"ab", 0)
        reader.hold()
    assert len(reader._parts) == 1
    assert reader.held() == b"ab" * 10_000
