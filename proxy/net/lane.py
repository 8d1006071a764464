"""A session's own connection to the address that its client dialled.

Opened when it is first needed, used by one command at a time in their order, and given up
whole when the session is spliced.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.model import Address
from proxy.net.dial import Dial
from proxy.net.resp_upstream import ReplyCallback, RespUpstream
from proxy.net.sockets import open_client
from proxy.net.stream import Stream
from proxy.net.upstream import LossCallback
from proxy.wire.resp import Limits, Reply

RETRY_AFTER_S = 1.0
"""An address that could not be reached is not tried again sooner."""

Use = Callable[[RespUpstream | None], None]


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """Bounds of a lane; times in seconds.

    `connect_timeout_s` is long, because plain traffic is owed what TCP would do without us;
    `patience_s` is short: a command that we can answer ourselves waits no longer.
    """

    limits: Limits
    connect_timeout_s: float
    patience_s: float
    mark: int


class Lane:
    """Owns at most one connection to `target`.

    `on_server_first` gets bytes that answer no command; `on_hangup` tells that the server has
    ended an idle connection, and whether with a reset.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        target: Address | None,
        source: str | None,
        settings: LaneSettings,
        on_server_first: Callable[[bytes], None],
        on_hangup: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._target = target
        self._source = source
        self._settings = settings
        self.on_server_first = on_server_first
        self.on_hangup = on_hangup
        self._upstream: RespUpstream | None = None
        self._dial: Dial | None = None
        self._queue: deque[Use] = deque()
        self._failed_until_s = 0.0
        self._closed = False

    @property
    def is_open(self) -> bool:
        return self._upstream is not None

    @property
    def is_wanted(self) -> bool:
        """Whether there is a connection, or one on the way."""
        return self._upstream is not None or self._dial is not None or bool(self._queue)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is under way: no connection on its way, no answer to come."""
        busy = self._upstream is not None and self._upstream.is_busy
        return not (busy or self._dial is not None or self._queue)

    @property
    def idle_stream(self) -> Stream | None:
        """The connection, when there is one and it is settled."""
        return self._upstream.stream if self._upstream is not None else None

    def stop_dialling(self) -> None:
        """Give up a connection that nobody needs yet."""
        self._queue.clear()
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None

    def adopt(self, sock: socket.socket) -> None:
        """Use this connection, which is idle, as if it had been opened here."""
        self._on_dialled(sock)

    def detach(self) -> None:
        """Another process has the connection: forget it."""
        self._closed = True
        self._queue.clear()
        if self._upstream is not None:
            self._upstream.stream.detach()
            self._upstream = None

    def request(
        self,
        raw: bytes,
        on_reply: ReplyCallback,
        on_loss: LossCallback,
        on_unreachable: Callable[[], None],
    ) -> None:
        """Send one command when its turn has come; exactly one of the three is called."""

        def replied(reply: Reply) -> None:
            on_reply(reply)
            self._serve_queue()

        def lost(why: str) -> None:
            self._upstream = None
            on_loss(why)
            self._serve_queue()

        patience: asyncio.TimerHandle | None = None

        def send(upstream: RespUpstream | None) -> None:
            if patience is not None:
                patience.cancel()
            if upstream is None:
                on_unreachable()
            else:
                upstream.send(raw, replied, lost)

        def lose_patience() -> None:
            if self._upstream is None and send in self._queue:
                self._queue.remove(send)
                on_unreachable()

        if self._upstream is None:
            patience = self._loop.call_later(self._settings.patience_s, lose_patience)
        self.use(send)

    def use(self, use: Use) -> None:
        """Call back in turn with the idle connection, or with None when it cannot be had."""
        self._queue.append(use)
        self._serve_queue()

    def hold(self) -> None:
        """Read nothing more until the connection is used or taken: its bytes stay in order."""
        if self._upstream is not None and not self._upstream.is_busy:
            self._upstream.stream.pause_reading()

    def take(self, use: Use) -> None:
        """As `use`, but the connection is the caller's from then on."""

        def hand_over(upstream: RespUpstream | None) -> None:
            self._upstream = None
            use(upstream)

        self.use(hand_over)

    def _serve_queue(self) -> None:
        while self._queue and not self._closed:
            if self._upstream is not None:
                if self._upstream.is_busy:
                    return
                self._upstream.stream.resume_reading()
                self._queue.popleft()(self._upstream)
            elif self._target is None or self._loop.time() < self._failed_until_s:
                self._queue.popleft()(None)
            else:
                self._connect(self._target)
                return

    def _connect(self, target: Address) -> None:
        if self._dial is not None:
            return
        try:
            sock = open_client(target, mark=self._settings.mark, source=self._source)
        except OSError as e:
            self._loop.call_soon(self._on_dialled, e)
            return
        timeout_s = self._settings.connect_timeout_s
        address = (target.host, target.port)
        self._dial = Dial(self._loop, sock, address, timeout_s, self._on_dialled)

    def _on_dialled(self, result: socket.socket | OSError) -> None:
        self._dial = None
        if isinstance(result, OSError):
            self._failed_until_s = self._loop.time() + RETRY_AFTER_S
        else:
            assert self._target is not None
            self._upstream = RespUpstream(self._loop, result, self._target, self._settings.limits)
            self._upstream.on_unsolicited = self._tell_server_first
            self._upstream.on_idle_loss = self._on_idle_loss
        self._serve_queue()

    def _tell_server_first(self, data: bytes) -> None:
        self.on_server_first(data)

    def _on_idle_loss(self) -> None:
        was_reset = self._upstream is not None and self._upstream.was_reset
        self._upstream = None
        self.on_hangup(was_reset)

    def abort(self) -> None:
        """Close with a reset, as the client did."""
        if self._upstream is not None:
            self._upstream.stream.abort()
        self.close()

    def close(self) -> None:
        """Nothing is called back any more."""
        self._closed = True
        self._queue.clear()
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None
