"""Two connections joined byte for byte, with back-pressure and half-close both ways."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.net.stream import Stream

HALF_CLOSED_IDLE_S = 1800.0
"""How long a side may be silent after the other has said all: a client that has left looks the
same as one that waits for its answer, and a server may never end."""


class Splice:
    """Passes bytes between two streams until both have ended, then calls `on_end` once.

    What was read before is passed first: `to_server`, `to_client`. A reset on one side is a
    reset on the other; a FIN is a FIN.
    """

    __slots__ = ("_client", "_idle_timer", "_on_end", "_open", "_server")

    def __init__(
        self,
        client: Stream,
        server: Stream,
        *,
        to_server: bytes,
        to_client: bytes,
        on_end: Callable[[], None],
    ) -> None:
        self._client = client
        self._server = server
        self._on_end = on_end
        self._open = 2
        self._idle_timer: asyncio.TimerHandle | None = None
        self._join(client, server)
        self._join(server, client)
        server.write(to_server)
        client.write(to_client)
        for stream, other in ((client, server), (server, client)):
            if stream.peer_done:
                other.write_eof()
                self._watch_silence(moved=-1)
            elif not other.is_congested:
                stream.resume_reading()
            else:
                stream.pause_reading()

    def _join(self, source: Stream, sink: Stream) -> None:
        def on_data(data: bytes) -> None:
            sink.write(data)
            if sink.is_congested:
                source.pause_reading()

        def on_eof() -> None:
            if sink.is_closed or sink.peer_done:
                # Both directions have ended: let what is buffered leave, then close.
                sink.close()
                source.close()
            else:
                sink.write_eof()
                self._watch_silence(moved=-1)

        def on_close(error: OSError | None) -> None:
            if error is not None:
                sink.abort()
            else:
                sink.close()
            self._open -= 1
            if not self._open:
                if self._idle_timer is not None:
                    self._idle_timer.cancel()
                self._on_end()

        source.on_data = on_data
        source.on_eof = on_eof
        source.on_close = on_close
        sink.on_drain = source.resume_reading

    def _watch_silence(self, moved: int) -> None:
        now_moved = self._client.bytes_in + self._server.bytes_in
        if now_moved == moved:
            self.abort()
        else:
            self._idle_timer = asyncio.get_running_loop().call_later(
                HALF_CLOSED_IDLE_S, self._watch_silence, now_moved
            )

    @property
    def server(self) -> Stream:
        """The other end of the client's connection."""
        return self._server

    def hold(self) -> None:
        """Read nothing of either side: the pair may leave soon."""
        self._client.hold()
        self._server.hold()

    def unhold(self) -> None:
        self._client.unhold()
        self._server.unhold()

    def detach(self) -> None:
        """Another process has both: forget them; `on_end` is not called."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._client.detach()
        self._server.detach()

    def abort(self) -> None:
        self._client.abort()
        self._server.abort()
