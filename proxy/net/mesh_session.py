"""One client's connection that speaks the mesh protocol: an agent's, as nearly all are.

Takes over from `Session` when the first bytes say so. On the inbound listener requests go to
the local service, on the outbound one they are routed as any other client's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from proxy.core.mesh_calls import Origin, mesh_reply, request_of
from proxy.core.message import CODECS, Codec, Failure, MoaRequest, Outcome
from proxy.core.model import Address
from proxy.net.mesh_link import MeshLink
from proxy.net.served import Mode
from proxy.net.session import HandOver
from proxy.obs.metrics import Metrics
from proxy.wire.detect import Protocol as Spoken
from proxy.wire.mesh import (
    CannotSend,
    Event,
    MeshConnection,
    Refusal,
    RequestCancelled,
    RequestReceived,
    Settings,
)
from proxy.wire.moa import Ec


class Call(Protocol):
    """A request on its way; its outcome comes once, unless it is cancelled."""

    def start(self) -> None: ...

    def cancel(self) -> None: ...


Prepare = Callable[[MoaRequest, Callable[[Outcome], None]], Call]


class MeshSession:
    """Serves one client until it ends; `on_end` is called once."""

    def __init__(
        self,
        taken: HandOver,
        settings: Settings,
        metrics: Metrics,
        max_body: int,
        prepare: Prepare,
        load: Callable[[], int | None],
        on_end: Callable[[MeshSession], None],
        now_s: float,
    ) -> None:
        """`load` is told in replies: requests in flight at the instance, None if unknown."""
        self.peer = taken.peer
        self.mode = Mode.MOA
        self.protocol = Spoken.MESH
        self.service = ""
        self.origin: Origin | None = None
        """Where the latest request comes from: one connection brings those of many callers."""
        self.requests = 0
        self.started_s = now_s
        self.client = taken.client
        self._first = taken.first
        self._metrics = metrics
        self._max_body = max_body
        self._prepare = prepare
        self._load = load
        self._on_end = on_end
        self._loop = taken.loop
        self._calls: dict[int, Call] = {}
        connection = MeshConnection.server(settings, now_s)
        self._link = MeshLink(
            taken.loop, taken.client, connection, self._on_event, self._on_link_end
        )
        # What was dialled meanwhile, because the client was silent, is not needed.
        taken.lane.close()

    def start(self) -> None:
        """Begin with the bytes that were read already; calls `on_end` when it is over."""
        first, self._first = self._first, b""
        self._link.start(first)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._on_request(event)
        elif isinstance(event, RequestCancelled):
            call = self._calls.pop(event.request_id, None)
            if call is not None:
                call.cancel()

    def _on_request(self, event: RequestReceived) -> None:
        self.requests += 1
        self._metrics.mesh_served += 1
        self.service = event.header.service
        self.origin = Origin(event.header.source_app, event.header.source_zone)
        number, codec = event.request_id, CODECS.get(event.header.codec, Codec.JSON)
        if event.deadline_s is not None and event.deadline_s <= self._loop.time():
            em = f"{self.service}: the deadline had passed when the request arrived"
            self._answer(number, codec, Failure(Ec.TIMEOUT, em))
            return
        request = request_of(event)
        if isinstance(request, Failure):
            self._answer(number, codec, request)
            return
        call = self._prepare(request, partial(self._answer, number, codec))
        self._calls[number] = call
        call.start()

    def _answer(self, number: int, codec: Codec, outcome: Outcome) -> None:
        self._calls.pop(number, None)
        connection = self._link.connection
        header, body = mesh_reply(outcome, codec, self._load(), self._max_body)
        try:
            connection.send_response(number, header, body)
        except CannotSend as error:
            # Short enough for the room that is kept for errors.
            ec = Ec.SERIALIZATION if error.refusal is Refusal.TOO_LARGE else Ec.THREAD_POOL_IS_FULL
            failure = Failure(ec, f"the reply cannot be sent: {error}"[:200])
            connection.send_response(number, *mesh_reply(failure, codec, None, self._max_body))
        self._link.flush()

    def go_away(self) -> None:
        """Take no new requests; what is open goes on, then the connection ends."""
        self._link.connection.close("the agent is leaving")
        self._link.flush()

    def _on_link_end(self, _why: str) -> None:
        for call in self._calls.values():
            call.cancel()
        self._calls.clear()
        self._on_end(self)

    # From outside

    @property
    def upstream(self) -> Address | None:
        """The service that the client dialled."""
        return self.peer.original

    @property
    def is_idle(self) -> bool:
        """Never once it has said GOAWAY: it ends by itself when its peer has heard that."""
        connection = self._link.connection
        return not (connection.open_requests or connection.closing or connection.wants_write)

    def close(self) -> None:
        """End it now; requests under way are not answered."""
        self._link.end("closed by us")
