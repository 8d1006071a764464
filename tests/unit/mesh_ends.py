"""Two mesh connections joined by a pipe that cuts, waits, hands over and breaks as told."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from proxy.wire.mesh import (
    CannotSend,
    Event,
    MeshConnection,
    RequestCancelled,
    RequestFailed,
    RequestHeader,
    RequestReceived,
    ResponseHeader,
    ResponseReceived,
    Settings,
    decode_state,
    encode_state,
    joined,
)

HEADER = RequestHeader("/service/demo", "echo")
OK = ResponseHeader(200)


def sent(connection: MeshConnection, max_bytes: int = 2**31) -> bytes:
    """Everything that it wants to send now."""
    return b"".join(connection.data_to_send(max_bytes))


def exchange(a: MeshConnection, b: MeshConnection, now_s: float = 0.0) -> list[Event]:
    """Carry bytes both ways until nobody has any; all events in their order."""
    events: list[Event] = []
    while a.wants_write or b.wants_write:
        # As a driver does: who does not want to write is not asked.
        if a.wants_write:
            events += b.receive_data(sent(a), now_s)
        if b.wants_write:
            events += a.receive_data(sent(b), now_s)
    return events


def pair(
    client: Settings | None = None, server: Settings | None = None
) -> tuple[MeshConnection, MeshConnection]:
    """A client and a server that have greeted each other."""
    ends = (
        MeshConnection.client(client or Settings(), 0.0),
        MeshConnection.server(server or Settings(), 0.0),
    )
    exchange(*ends)
    return ends


def moved(connection: MeshConnection, unsent: bytes = b"") -> MeshConnection:
    """The connection in another process: all that is left of it went there as bytes."""
    state = connection.export(unsent)
    raw = encode_state(state)
    assert decode_state(raw) == state
    return MeshConnection.restore(decode_state(raw))


@dataclass(frozen=True)
class Call:
    """One request of a plan: how large it is, and how large its answer."""

    request: int
    response: int
    cancel: bool = False


@dataclass
class Outcome:
    """What both drivers saw, and what passed over the wire in either direction."""

    client: list[Event] = field(default_factory=list)
    server: list[Event] = field(default_factory=list)
    upward: bytearray = field(default_factory=bytearray)
    downward: bytearray = field(default_factory=bytearray)
    bodies: dict[int, bytes] = field(default_factory=dict)
    answers: dict[int, bytes] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)
    refused: int = 0


class Pipe:
    """Runs a plan of calls; each choice comes from `rng`, each hand-over from `hand_over`."""

    def __init__(
        self,
        rng: Random,
        client: Settings,
        server: Settings,
        plan: list[Call],
        hand_over: Random | None = None,
        pings: int = 0,
    ) -> None:
        self.rng = rng
        self.pings = pings
        self.plan = list(reversed(plan))
        self.hand_over = hand_over
        self.client = MeshConnection.client(client, 0.0)
        self.server = MeshConnection.server(server, 0.0)
        self.up = bytearray()
        self.down = bytearray()
        self.now_s = 0.0
        self.to_cancel: list[int] = []
        self.owed: list[tuple[int, int]] = []
        self.sizes: dict[int, int] = {}
        self.out = Outcome()

    def step(self) -> bool:
        """One random step; False when there is nothing left to do."""
        doable = [name for name, ready in self._actions().items() if ready]
        if not doable:
            return False
        self.now_s += 0.01
        getattr(self, self.rng.choice(doable))()
        if self.hand_over is not None and self.hand_over.random() < 0.3:
            self.client = self._handed_over(self.client)
            self.server = self._handed_over(self.server)
        return True

    def _actions(self) -> dict[str, bool]:
        return {
            "send": bool(self.plan) and not self.client.closing,
            "write_up": self.client.wants_write and len(self.up) < 200_000,
            "write_down": self.server.wants_write and len(self.down) < 200_000,
            "read_up": bool(self.up),
            "read_down": bool(self.down),
            "answer": bool(self.owed),
            "cancel": bool(self.to_cancel),
            "ping": self.pings > 0,
        }

    def send(self) -> None:
        call = self.plan.pop()
        body = self.rng.randbytes(call.request)
        try:
            request_id = self.client.send_request(HEADER, self._cut(body))
        except CannotSend:
            self.out.refused += 1
            return
        self.out.bodies[request_id] = body
        self.sizes[request_id] = call.response
        if call.cancel:
            self.to_cancel.append(request_id)

    def ping(self) -> None:
        """Ask by either side, or let so much time pass that a side asks by itself, or ends."""
        self.pings -= 1
        choice = self.rng.randrange(3)
        if choice == 0:
            self.client.ping(self.now_s)
        elif choice == 1:
            self.server.ping(self.now_s)
        else:
            self.now_s += self.rng.choice((0.5, 4.0, 11.0))
            self.out.client += self.client.tick(self.now_s)
            self._serve(self.server.tick(self.now_s))

    def cancel(self) -> None:
        request_id = self.to_cancel.pop()
        ended = {getattr(event, "request_id", None) for event in self.out.client}
        if request_id not in ended:
            self.out.cancelled.add(request_id)
        self.out.client += self.client.cancel(request_id)

    def answer(self) -> None:
        request_id, size = self.owed.pop(self.rng.randrange(len(self.owed)))
        body = self.rng.randbytes(size)
        if self.server.send_response(request_id, OK, self._cut(body)):
            self.out.answers[request_id] = body

    def write_up(self) -> None:
        data = sent(self.client, self.rng.choice((1, 3000, 200_000)))
        self.up += data
        self.out.upward += data

    def write_down(self) -> None:
        data = sent(self.server, self.rng.choice((1, 3000, 200_000)))
        self.down += data
        self.out.downward += data

    def read_up(self) -> None:
        self._serve(self.server.receive_data(self._chunk(self.up), self.now_s))

    def _serve(self, events: list[Event]) -> None:
        self.out.server += events
        for event in events:
            if isinstance(event, RequestReceived):
                self.owed.append((event.request_id, self.sizes[event.request_id]))
            elif isinstance(event, RequestCancelled):
                self.owed = [o for o in self.owed if o[0] != event.request_id]

    def read_down(self) -> None:
        self.out.client += self.client.receive_data(self._chunk(self.down), self.now_s)

    def break_off(self) -> None:
        """Both ends see the connection close; bytes on the way are lost."""
        self.up.clear()
        self.down.clear()
        self.out.client += self.client.connection_lost()
        self.out.server += self.server.connection_lost()
        self.owed.clear()

    def _chunk(self, wire: bytearray) -> bytes:
        size = min(len(wire), self.rng.choice((1, 23, 900, 65_000, 300_000)))
        chunk = bytes(wire[:size])
        del wire[:size]
        return chunk

    def _cut(self, body: bytes) -> bytes | tuple[bytes, ...]:
        if self.rng.random() < 0.5:
            return body
        at = self.rng.randint(0, len(body))
        return body[:at], body[at:]

    def _handed_over(self, connection: MeshConnection) -> MeshConnection:
        assert self.hand_over is not None
        if self.hand_over.random() < 0.5:
            return moved(connection)
        unsent = sent(connection, self.hand_over.choice((1, 1000)))
        # What was pulled and not written goes along and leaves first, so the order of bytes
        # is that of a connection that pulled it just now.
        return moved(connection, unsent)


def check(out: Outcome, server_tells_all: bool = True) -> None:
    """Each request has exactly one end, and each body is what was sent."""
    ends: dict[int, list[Event]] = {}
    for event in out.client:
        if isinstance(event, ResponseReceived):
            ends.setdefault(event.request_id, []).append(event)
            assert joined(event.body) == out.answers[event.request_id]
        elif isinstance(event, RequestFailed):
            ends.setdefault(event.request_id, []).append(event)
    for request_id in out.bodies:
        count = len(ends.pop(request_id, []))
        assert count == (0 if request_id in out.cancelled else 1), request_id
    assert not ends
    seen = [event for event in out.server if isinstance(event, RequestReceived)]
    assert len({event.request_id for event in seen}) == len(seen)
    for event in seen:
        assert joined(event.body) == out.bodies[event.request_id]
