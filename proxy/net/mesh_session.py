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
from proxy.net.moved import CannotMove, Kind, Moved
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
    ResponseHeader,
    Settings,
    decode_state,
    encode_state,
)
from proxy.wire.moa import Ec


class Call(Protocol):
    """A request on its way; its outcome comes once, unless it is cancelled."""

    def start(self) -> None: ...

    def cancel(self) -> None: ...


Prepare = Callable[[MoaRequest, Callable[[Outcome], None]], Call]
Relay = Callable[[int, ResponseHeader, bytes], None]


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
        moved: Moved | None = None,
    ) -> None:
        """`load` is told in replies: requests in flight at the instance, None if unknown.

        With `moved` it goes on where another agent stopped. Raises StateError when that is
        nothing that this version can go on with.
        """
        self._number = taken.number
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
        self._calls: dict[int, tuple[Call, Codec]] = {}
        self._foreign: dict[int, Codec] = {}
        """Requests that the agent before this one still works on."""
        self.on_foreign_cancelled: Callable[[int], None] = lambda _number: None
        self._held_back: list[tuple[int, Codec, ResponseHeader, bytes]] = []
        """Replies that came while it was about to leave."""
        self._relay: Relay | None = None
        """Who gets replies now that the connection is another agent's."""
        self._on_settled: Callable[[], None] | None = None
        if moved is None:
            connection = MeshConnection.server(settings, now_s)
        else:
            connection = MeshConnection.restore(decode_state(moved.mesh))
            self._foreign = {number: Codec(codec) for number, codec in moved.owed.items()}
            self.service, self.requests = moved.service, moved.requests
            self.started_s = moved.started_s
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
            self._cancel(event.request_id)

    def _cancel(self, number: int) -> None:
        if (found := self._calls.pop(number, None)) is not None:
            found[0].cancel()
        elif self._foreign.pop(number, None) is not None:
            self.on_foreign_cancelled(number)

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
        self._calls[number] = call, codec
        call.start()

    def _answer(self, number: int, codec: Codec, outcome: Outcome) -> None:
        self._calls.pop(number, None)
        header, body = mesh_reply(outcome, codec, self._load(), self._max_body)
        if self._relay is not None:
            self._relay(number, header, body)
        elif self._link.is_held:
            self._held_back.append((number, codec, header, body))
        else:
            self._respond(number, codec, header, body)

    def _respond(self, number: int, codec: Codec, header: ResponseHeader, body: bytes) -> None:
        connection = self._link.connection
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
        for number in (*self._calls, *self._foreign):
            self._cancel(number)
        self._on_end(self)

    # Changing hands (docs/UPGRADE.md): at once, and what is owed is sent on

    def freeze(self, on_settled: Callable[[], None]) -> None:
        """Read and send nothing; calls back from the loop once `export` can be called."""
        self._on_settled = on_settled
        self._link.is_held = True
        self.client.hold()
        self._loop.call_soon(self._tell_settled)

    def _tell_settled(self) -> None:
        if self._on_settled is not None and self.is_settled:
            self._on_settled()

    @property
    def is_settled(self) -> bool:
        """Whether it could change hands now; one that is ending does not."""
        connection = self._link.connection
        return not (self._link.has_ended or connection.closing or self._foreign)

    def thaw(self) -> None:
        """Go on as if nothing had been."""
        self._on_settled = None
        self._link.is_held = False
        self.client.unhold()
        held_back, self._held_back = self._held_back, []
        for number, codec, header, body in held_back:
            self._respond(number, codec, header, body)
        if not self._link.has_ended:
            self._link.flush()

    def export(self) -> Moved:
        """All that another agent needs to go on; replies owed follow by `let_go`'s relay.

        Raises CannotMove when it is ending, or owes what the agent before this one works on.
        """
        if not self.is_settled:
            raise CannotMove(f"the mesh connection of {self.peer.client} is ending")
        state = self._link.connection.export(self.client.hand_out())
        return Moved(
            number=self._number,
            kind=Kind.MESH,
            direction=self.peer.direction,
            client=self.client.sock,
            original=self.peer.original,
            caller=self.peer.caller,
            service=self.service,
            requests=self.requests,
            started_s=self.started_s,
            mesh=encode_state(state),
            owed={number: codec.value for number, codec in self._owed()},
        )

    def _owed(self) -> list[tuple[int, Codec]]:
        waiting = [(number, codec) for number, (_call, codec) in self._calls.items()]
        return waiting + [(number, codec) for number, codec, _, _ in self._held_back]

    def relay_to(self, relay: Relay) -> None:
        """Give replies to `relay` from `let_go` on, those that were held back first."""
        self._relay = relay
        held_back, self._held_back = self._held_back, []
        for number, _codec, header, body in held_back:
            relay(number, header, body)

    def let_go(self) -> None:
        """Another agent has it: forget the connection, and go on working on what is owed."""
        self._on_settled = None
        self._link.detach()
        self._on_end(self)

    def start_restored(self) -> None:
        """Go on where the other agent stopped."""
        self._link.start()

    @property
    def owes(self) -> bool:
        """Whether a request is still worked on here."""
        return bool(self._calls)

    def give_up(self, number: int) -> None:
        """Nobody waits for this reply any more."""
        self._cancel(number)

    def answer_foreign(self, number: int, header: ResponseHeader, body: bytes) -> None:
        """The reply to a request that the agent before this one worked on."""
        codec = self._foreign.pop(number, None)
        if codec is not None:
            self._respond(number, codec, header, body)

    def fail_foreign(self, why: str) -> None:
        """The agent before this one died with what it worked on."""
        foreign, self._foreign = self._foreign, {}
        for number, codec in foreign.items():
            em = f"{self.service}: {why}; the request may have been executed"
            self._answer(number, codec, Failure(Ec.REMOTING, em))

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
