"""One connection to a server that speaks RESP, with at most one request on it at a time.

Old servers answer one request at a time and must not be pipelined to (docs/PROTOCOL.md §1).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from proxy.core.model import Address
from proxy.net.stream import Stream
from proxy.net.upstream import LossCallback, Outgoing
from proxy.wire.resp import Limits, ProtocolError, Reply, ReplyParser, encode_command

ReplyCallback = Callable[[Reply], None]

_PUSH = b">"
_ERROR = b"-"
_PING = encode_command(b"PING")


class RespUpstream:
    """Owns a connected socket; see `send`.

    `on_unsolicited` gets bytes that answer no request: of a server that speaks first, or that
    says more than was asked (RESP3's pushes). Without it they end the connection.
    `on_idle_loss` tells that the connection ended while no request was on it. `used_s` and
    `heard_s` are its pool's: when it last carried a request, and when it last answered.
    """

    capacity = 1
    is_congested = False
    """What one request may leave unsent is bounded by its size."""

    __slots__ = (
        "_extra",
        "_limits",
        "_on_loss",
        "_on_reply",
        "_parser",
        "address",
        "heard_s",
        "is_lost",
        "on_idle_loss",
        "on_room",
        "on_unsolicited",
        "stream",
        "used_s",
        "was_reset",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        address: Address,
        limits: Limits,
    ) -> None:
        self.address = address
        self.used_s = 0.0
        self.heard_s = 0.0
        self.on_idle_loss: Callable[[], None] = lambda: None
        self.on_room: Callable[[], None] = lambda: None
        self.on_unsolicited: Callable[[bytes], None] | None = None
        self.was_reset = False
        """Whether it ended with an error and not with a FIN."""
        self._limits = limits
        self._parser = ReplyParser(limits)
        self._extra = b""
        self._on_reply: ReplyCallback | None = None
        self._on_loss: LossCallback | None = None
        self.is_lost = False
        self.stream = Stream(loop, sock)
        self.stream.on_data = self._on_data
        self.stream.on_eof = self._on_eof
        self.stream.on_close = self._on_close
        self.stream.resume_reading()

    @property
    def is_busy(self) -> bool:
        return self._on_reply is not None

    def looks_alive(self) -> bool:
        """Whether the kernel knows of no end: the loop may not have told us of a FIN yet."""
        return not self.is_lost and self.stream.is_quiet()

    def send(self, request: Outgoing, on_reply: ReplyCallback, on_loss: LossCallback) -> int:
        """Write one request; exactly one of the two is called, unless `close` comes first.

        `on_reply` may send the next request at once. `on_loss` gets why there is no reply; by
        then bytes of the request have been handed to the kernel.
        """
        assert isinstance(request, bytes)
        self._on_reply, self._on_loss = on_reply, on_loss
        self.stream.write(request)
        return 0

    @property
    def last_number(self) -> int:
        return 0

    def number_after(self, _last_number: int) -> None:
        """Requests have none."""

    def forget(self, _number: int) -> bool:
        """A late reply could not be told from the next one: only `close` is left."""
        return False

    def ping(self, on_answer: Callable[[bool], None], on_loss: LossCallback) -> None:
        """Ask whether the server is there; an error is an answer, too."""
        self.send(_PING, lambda reply: on_answer(reply.kind != _ERROR), on_loss)

    def _on_data(self, data: bytes) -> None:
        if self._on_reply is None and self.on_unsolicited is not None:
            self.on_unsolicited(data)
            return
        try:
            replies = self._parser.feed(data)
        except ProtocolError as e:
            self._lose(f"{self.address} broke the protocol: {e}")
            return
        if not replies:
            return
        on_reply = self._on_reply
        more = len(replies) > 1 or self._parser.mid_frame or self._parser.error is not None
        if on_reply is None or more or replies[0].kind == _PUSH:
            self._on_more_than_asked(replies)
            return
        self._on_reply = self._on_loss = None
        on_reply(replies[0])

    def _on_more_than_asked(self, replies: list[Reply]) -> None:
        on_reply, on_unsolicited = self._on_reply, self.on_unsolicited
        if on_reply is None or on_unsolicited is None:
            self._lose(f"{self.address} sent more than it was asked for")
            return
        answer = next((reply for reply in replies if reply.kind != _PUSH), None)
        if answer is None:
            on_unsolicited(b"".join(reply.raw for reply in replies))
            return
        at = replies.index(answer)
        if at:
            on_unsolicited(b"".join(reply.raw for reply in replies[:at]))
        self._extra = b"".join(reply.raw for reply in replies[at + 1 :]) + self._parser.pending
        self._parser = ReplyParser(self._limits)
        self._on_reply = self._on_loss = None
        on_reply(answer)
        # Unless the stream was taken meanwhile, and they with it.
        extra, self._extra = self._extra, b""
        if extra and not self.is_lost:
            on_unsolicited(extra)

    def _on_eof(self) -> None:
        self._lose(f"{self.address} closed the connection")

    def _on_close(self, error: OSError | None) -> None:
        self.was_reset = error is not None
        reason = f": {error.strerror}" if error is not None else ""
        self._lose(f"{self.address} ended the connection{reason}")

    def _lose(self, why: str) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        on_loss, self._on_reply, self._on_loss = self._on_loss, None, None
        self.stream.hang_up()
        if on_loss is not None:
            on_loss(why)
        else:
            self.on_idle_loss()

    def close(self) -> None:
        """End the connection; nothing is called back.

        A server that does not take a request which nobody waits for must not hold it here.
        """
        self.is_lost = True
        self._on_reply = self._on_loss = None
        self.stream.hang_up()

    def take_stream(self) -> tuple[Stream, bytes]:
        """Give up the stream, with bytes that were read and not used, to be spliced."""
        self.is_lost = True
        extra, self._extra = self._extra, b""
        return self.stream, extra + self._parser.pending
