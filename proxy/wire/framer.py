"""Runs a frame parser over the chunks of one stream: pending bytes, order, and the error."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Generic, Protocol, TypeVar

from proxy.wire.chunks import ChunkReader
from proxy.wire.resp_types import ProtocolError


class _Framed(Protocol):
    @property
    def raw(self) -> bytes: ...


FrameT = TypeVar("FrameT", bound=_Framed)


class Framer(Generic[FrameT]):
    """Turns chunks into frames, and remembers the error that ended the stream.

    `whole(data, at)` reads a frame that lies in one chunk, or returns None where it is in
    doubt; `read()` is the generator that decides, for frames that straddle chunks and for
    every error. It calls `reader.take` and returns the frame, or None for one that is ignored.
    """

    __slots__ = ("_read", "_reader", "_reading", "_whole", "error")

    def __init__(
        self,
        reader: ChunkReader,
        whole: Callable[[bytes, int], FrameT | None],
        read: Callable[[], Generator[None, None, FrameT | None]],
    ) -> None:
        self._reader = reader
        self._whole = whole
        self._read = read
        self._reading: Generator[None, None, FrameT | None] | None = None
        self.error: ProtocolError | None = None

    def feed(self, data: bytes) -> list[FrameT]:
        """The frames that `data` completes, oldest first; see `RequestParser.feed`."""
        if self.error is not None:
            raise self.error
        frames: list[FrameT] = []
        at = 0 if self._reading is not None else self._read_whole(data, 0, frames)
        if at == len(data):
            return frames
        self._reader.push(data, at)
        try:
            self._read_rest(data, frames)
        except ProtocolError as error:
            self.error = error
            self._reading = None
            if not frames:
                raise
        finally:
            self._reader.hold()
        return frames

    def _read_whole(self, data: bytes, at: int, frames: list[FrameT]) -> int:
        """Read frames as long as they lie in `data` as a whole; return where that ends."""
        size = len(data)
        while at < size and (frame := self._whole(data, at)) is not None:
            frames.append(frame)
            at += len(frame.raw)
        return at

    def _read_rest(self, data: bytes, frames: list[FrameT]) -> None:
        """Read from the reader's cursor on, where a frame begins or goes on."""
        reader = self._reader
        while reader.chunk_at < len(data):
            reading = self._reading or self._read()
            try:
                next(reading)
            except StopIteration as done:
                self._reading = None
                if done.value is not None:
                    frames.append(done.value)
                reader.push(data, self._read_whole(data, reader.chunk_at, frames))
            else:
                self._reading = reading
                return
