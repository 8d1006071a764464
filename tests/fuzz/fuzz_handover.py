"""Frames of a hand-over: HandoverError, or the same frames however the bytes are cut."""

from __future__ import annotations

from tests.fuzz.harness import fuzz, instrumented

with instrumented():
    from proxy.wire.handover import FrameReader, HandoverError, Received, encode


def read(data: bytes, size: int) -> tuple[list[Received], str]:
    reader, frames = FrameReader(), []
    try:
        for at in range(0, len(data), size):
            frames += reader.feed(data[at : at + size])
    except HandoverError as error:
        return frames, str(error)
    return frames, ""


def check(data: bytes) -> None:
    """Run one input; raises when a promise is broken."""
    if not data:
        return
    slow, slow_error = read(data[1:], 1 + data[0])
    fast, fast_error = read(data[1:], len(data))
    if not fast_error:
        assert (slow, slow_error) == (fast, "")
    for frame in fast:
        again = FrameReader().feed(encode(frame.message, frame.descriptors))
        assert again[0].message == frame.message


if __name__ == "__main__":
    fuzz(check)
