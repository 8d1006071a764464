"""What a client's connection has in common, whatever protocol of ours it speaks: what is known
of it, how it is joined with the address that it dialled, and how it changes hands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from proxy.core.model import Address
from proxy.net.backend import Backend
from proxy.net.facts import facts_of
from proxy.net.moved import CannotMove, Kind, Moved, RedisState
from proxy.net.notes import Notes
from proxy.net.served import Mode, Peer, SessionSettings
from proxy.net.splice import Splice
from proxy.net.stream import Stream
from proxy.wire.detect import Protocol

_NO_STATE = RedisState()


class ClientSession(ABC):
    """Serves one client until it ends.

    What a protocol adds is abstract here; `_stop_timers` and `_end_far` are called when all is
    over, and may be called again.
    """

    def __init__(
        self,
        number: int,
        peer: Peer,
        client: Stream,
        settings: SessionSettings,
        forwarder: Backend,
        on_end: Callable[[], None],
    ) -> None:
        """`on_end` is called once."""
        self.peer = peer
        self.mode = Mode.MOA
        self.protocol = Protocol.UNDECIDED
        self.spoke_moa = False
        self.service = ""
        self.requests = 0
        self.started_s = forwarder.loop.time()
        self.client = client
        self.notes: Notes | None = None
        """The same as the client's, when there is a board."""
        self._number = number
        self._loop = forwarder.loop
        self._settings = settings
        self._forwarder = forwarder
        self._metrics = forwarder.metrics
        self._max_body = forwarder.settings.max_body_bytes
        self._on_end = on_end
        self._spliced: Splice | None = None
        self._is_splicing = False
        self._is_closing = False
        self._has_ended = False
        self._on_settled: Callable[[], None] | None = None
        """While it is frozen."""
        self._moved: Moved | None = None
        """Between `restore` and the start."""
        self._begun_before = 0
        """Requests at the head of the input that another agent had begun before it died."""

    # What a protocol adds

    @abstractmethod
    def _pump(self) -> None:
        """Serve what was read, as far as there is room."""

    @abstractmethod
    def _stop_timers(self) -> None:
        """Blame nobody for being slow any more, or for a while."""

    @abstractmethod
    def _resume_timers(self) -> None:
        """After `_stop_timers`."""

    @property
    @abstractmethod
    def _owes_nothing(self) -> bool:
        """Whether no request is under way, here or at the dialled address."""

    @property
    @abstractmethod
    def _far(self) -> Stream | None:
        """The connection to the dialled address, idle when nothing is owed."""

    @abstractmethod
    def _detach_far(self) -> None:
        """Another process has that connection: forget it."""

    @abstractmethod
    def _give_up_dialling(self) -> None:
        """Let go of a connection on its way that nobody needs yet: the session may leave soon."""

    @property
    @abstractmethod
    def _kind(self) -> Kind:
        """What the client speaks, when it is not joined with the dialled address."""

    @property
    @abstractmethod
    def _unserved(self) -> bytes:
        """Read of the client and not served, from the beginning of a request."""

    @property
    def _client_state(self) -> RedisState:
        """What the client has set on its connection."""
        return _NO_STATE

    # What is known of it

    @property
    def _expects_moa(self) -> bool:
        """Whether the far end of this connection is known to be a MOA server, or is nobody."""
        return self.peer.original_is_instance or self.peer.original is None or self.spoke_moa

    def _has_asked_for(self, service: str) -> None:
        """The client speaks MOA, and this is the service that it asks for now."""
        if not self.spoke_moa or service != self.service:
            self.spoke_moa = True
            self.service = service
            self.describe()

    def _passes_on(self, service: str) -> None:
        """A request goes to the dialled address; `service` is empty when it names none."""
        self._metrics.passed_on += 1
        if service and service != self.service:
            self.service = service
            self.describe()

    @property
    def facts(self) -> bytes:
        """Who the client is and what it has said of itself, for the board."""
        return facts_of(self, self._number, self._client_state)

    def describe(self) -> None:
        """Note the facts, some of which have changed."""
        if self.notes is not None:
            self.notes.describe(self.facts)

    # Its end

    def close(self) -> None:
        """End it now; a request under way is not answered."""
        if self._spliced is not None:
            self._spliced.abort()
        else:
            self.client.abort()

    def _end_client(self) -> None:
        self._is_closing = True
        self.client.close()

    def _end(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._stop_timers()
            self._on_end()

    # Traffic that is not MOA

    def _join(self, server: Stream | None, to_server: bytes, to_client: bytes) -> None:
        """Splice the client with the dialled address, of which `to_client` was read."""
        if server is None:
            # A protocol that we do not know has no error reply: a reset, never a clean FIN.
            self.client.abort()
            return
        self._metrics.spliced += 1
        if self._on_settled is not None:
            server.hold()
        self._splice(server, to_server, to_client)
        self._tell_settled()

    def _splice(self, server: Stream, to_server: bytes, to_client: bytes) -> None:
        if self.notes is not None:
            self.notes.join(self.client, server, len(to_server), len(to_client))
        self._spliced = Splice(
            self.client, server, to_server=to_server, to_client=to_client, on_end=self._end
        )

    # Changing hands (docs/UPGRADE.md)

    def freeze(self, on_settled: Callable[[], None]) -> None:
        """Finish what has begun and begin nothing; calls back from the loop once `export` can
        be called, unless the client leaves before."""
        self._on_settled = on_settled
        self._stop_timers()
        self.client.hold()
        if self._spliced is not None:
            self._spliced.hold()
        else:
            self._give_up_dialling()
        self._loop.call_soon(self._tell_settled)

    def thaw(self) -> None:
        """Go on as if nothing had been."""
        if self._on_settled is None or self._has_ended:
            return
        self._on_settled = None
        self.client.unhold()
        if self._far is not None:
            self._far.unhold()
        if self._spliced is not None:
            self._spliced.unhold()
        elif not self._is_splicing:
            self._resume_timers()
            self._pump()

    @property
    def is_settled(self) -> bool:
        """Whether it could change hands now."""
        if self._has_ended or self._is_closing:
            return False
        if self._is_splicing:
            return self._spliced is not None
        return self._owes_nothing

    def _tell_settled(self) -> None:
        if self._on_settled is not None and self.is_settled:
            self._on_settled()

    def export(self) -> Moved:
        """All that another agent needs to go on. Raises CannotMove when it is not settled."""
        if not self.is_settled:
            raise CannotMove(f"the connection of {self.peer.client} is not settled")
        is_spliced = self._spliced is not None
        server = self._spliced.server if self._spliced is not None else self._far
        if server is not None:
            server.hold()
        return Moved(
            number=self._number,
            kind=Kind.RAW if is_spliced else self._kind,
            direction=self.peer.direction,
            client=self.client.sock,
            server=server.sock if server is not None else None,
            original=self.peer.original,
            caller=self.peer.caller,
            unread=b"" if is_spliced else self._unserved,
            to_client=self.client.hand_out(),
            to_server=server.hand_out() if server is not None else b"",
            spoke_moa=self.spoke_moa,
            service=self.service,
            requests=self.requests,
            started_s=self.started_s,
            redis=self._client_state,
        )

    def let_go(self) -> None:
        """Another agent has it: forget it, and say nothing to anybody."""
        self._on_settled = None
        self.client.detach()
        if self._moved is not None and self._moved.server is not None:
            self._moved.server.close()
        if self._spliced is not None:
            self._spliced.detach()
        self._detach_far()
        self._end()

    def restore(self, moved: Moved) -> None:
        """Be what `moved` was; the start goes on where the other agent stopped."""
        self.spoke_moa, self.service = moved.spoke_moa, moved.service
        self.requests, self.started_s = moved.requests, moved.started_s
        self._moved = moved

    @property
    def upstream(self) -> Address | None:
        """Where one of its requests, or its bytes, go."""
        is_there = self._far is not None or self._spliced is not None
        return self._asked or (self.peer.original if is_there else None)

    @property
    @abstractmethod
    def _asked(self) -> Address | None:
        """The instance that works on a request of the client's."""

    @property
    @abstractmethod
    def is_idle(self) -> bool:
        """Whether it owes nothing and holds no part of a request."""
