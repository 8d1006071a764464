"""RESP: any chunking gives the same frames, and no byte is lost."""

from __future__ import annotations

from tests.fuzz.harness import cut, fuzz, instrumented

with instrumented():
    from proxy.wire.resp import Limits, ProtocolError, ReplyParser, RequestParser

LIMITS = Limits(max_element=600, max_frame=1500, max_inline=200, max_args=8, max_depth=4)


def check(data: bytes) -> None:
    """The first byte is the size of the chunks, the rest the stream."""
    size = data[0] % 23 + 1 if data else 1
    stream = data[1:]
    for parser in (RequestParser, ReplyParser):
        whole = outcome(parser(LIMITS), [stream])
        assert outcome(parser(LIMITS), cut(stream, size)) == whole, parser


def outcome(
    parser: RequestParser | ReplyParser, chunks: list[bytes]
) -> tuple[list[bytes], bytes | None, str]:
    """The frames, what is pending, and the error; pending is told only where none is.

    After an error the parser takes no more, so how much is pending depends on the chunks.
    """
    frames: list[bytes] = []
    fed = 0
    for chunk in chunks:
        if parser.error is not None:
            break
        fed += len(chunk)
        try:
            frames += [getattr(frame, "skipped", b"") + frame.raw for frame in parser.feed(chunk)]
        except ProtocolError:
            break
    stream = b"".join(chunks)[:fed]
    if not isinstance(parser, RequestParser) or len(stream) < 64 * 1024:
        assert b"".join(frames) + parser.pending == stream
    if parser.error is not None:
        return frames, None, str(parser.error)
    assert len(parser.pending) <= LIMITS.max_frame + len(stream)
    return frames, parser.pending, ""


if __name__ == "__main__":
    fuzz(check)
