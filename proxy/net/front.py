"""Accepted sockets become sessions, of the protocol that their first bytes tell."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable
from functools import partial

from proxy.core.dispatch import Dialled, Verdict, judge_inbound, judge_outbound
from proxy.core.packets import Request, judge_packet_inbound, judge_packet_outbound
from proxy.net.backend import Backend
from proxy.net.board import Board
from proxy.net.local_call import LocalServices
from proxy.net.mesh_session import MeshSession, Prepare
from proxy.net.moved import Kind, Moved
from proxy.net.notes import Notes
from proxy.net.packet_session import PacketSession
from proxy.net.served import Direction, Peer, Served, SessionSettings
from proxy.net.session import HandOver, Session
from proxy.net.totals import totals
from proxy.wire.detect import Protocol
from proxy.wire.mesh import Settings
from proxy.wire.redis_server import Counters, SessionState
from proxy.wire.resp import Command
from proxy.wire.turbo import Packet

_PACKETS = {Kind.TURBO: Protocol.TURBO, Kind.TURBO9: Protocol.TURBO9}


class Front:
    """Owns the sessions; `on_end` tells that one of them has gone."""

    def __init__(
        self,
        settings: SessionSettings,
        forwarder: Backend,
        on_end: Callable[[], None],
        mesh: Settings | None = None,
        local: LocalServices | None = None,
        board: Board | None = None,
    ) -> None:
        """`mesh` is for clients that speak the mesh protocol; without `local` no connection
        may be inbound; on `board` is noted what is to outlive this process."""
        self.sessions: dict[int, Served] = {}
        self._settings = settings
        self._forwarder = forwarder
        self._on_end = on_end
        self._local = local
        self._mesh = mesh or Settings()
        self._is_leaving = False
        self._board = board
        self._adopted: dict[int, tuple[Session | PacketSession | MeshSession, Moved]] = {}
        """Those that have not begun yet."""
        self._ids = itertools.count(1)
        self._counters = Counters()

    def serve(self, sock: socket.socket, peer: Peer) -> int:
        """Begin to serve a connection, whose socket is ours from now on; its number."""
        number = next(self._ids)
        session = self._session(number, sock, peer)
        self._counters.connections += 1
        self.sessions[number] = session
        if self._board is not None:
            self._note(session, Kind.DETECTING)
        session.start()
        return number

    def _note(self, session: Session | PacketSession, kind: Kind, unread: bytes = b"") -> None:
        """Note from now on what the session does; `unread` was read before, and is its own."""
        board, client = self._board, session.client
        if board is not None and board.fits(client.sock.fileno()):
            session.notes = Notes(board, client.sock.fileno())
            session.notes.start(kind, session.facts, client, unread)

    def _session(self, number: int, sock: socket.socket, peer: Peer) -> Session:
        state = SessionState(
            number, self._counters, peer=str(peer.client), local=str(peer.original or "")
        )
        return Session(
            sock,
            peer,
            self._settings,
            self._forwarder,
            self._judge if peer.direction is Direction.OUTBOUND else _judge_inbound,
            state,
            lambda _session: self._forget(number),
            lambda taken: self._take_over(number, taken),
        )

    def go_away(self) -> None:
        """Ask the agents that are connected to send nothing new."""
        self._is_leaving = True
        for session in list(self.sessions.values()):
            if isinstance(session, MeshSession):
                session.go_away()

    # Connections that change hands (docs/UPGRADE.md)

    @property
    def next_number(self) -> int:
        """The number of the next session; takes it out of use."""
        return next(self._ids)

    def begin_at(self, number: int) -> None:
        """Number new sessions from here: those of another agent keep theirs."""
        self._ids = itertools.count(number)

    @property
    def counters(self) -> Counters:
        """What INFO tells."""
        return self._counters

    def adopt(self, moved: Moved, peer: Peer) -> None:
        """Make a session of what another agent had; nothing is read before `begin`.

        Its sockets are ours from now on. Raises StateError, and then they are not.
        """
        number = moved.number
        session: Session | PacketSession | MeshSession
        if moved.kind is Kind.MESH:
            session = self._mesh_session(number, self._taken(moved, peer), moved)
        elif moved.kind in _PACKETS:
            session = self._packet_session(number, self._taken(moved, peer))
            session.restore(moved)
        else:
            session = self._session(number, moved.client, peer)
            session.restore(moved)
        self._counters.connections += 1
        self.sessions[number] = session
        self._adopted[number] = session, moved
        if moved.server is None and not moved.to_client:
            # We may be killed before we read that it is ours alone. Who gave it knows by its
            # socket whether it still has it (`Possession.inherit`).
            self._note_taken(session, moved)

    def _note_taken(self, session: Session | PacketSession | MeshSession, moved: Moved) -> None:
        """Without notes it is served as well; only our own death would cost it."""
        if isinstance(session, MeshSession) or self._board is None or session.notes is not None:
            return
        try:
            now = totals(moved.client, dialled=False)
        except OSError:
            return
        session.client.count_from(now.read, now.written)
        self._note(session, moved.kind, moved.unread)

    def _taken(self, moved: Moved, peer: Peer) -> HandOver:
        """As if a session of this agent had found out what the client speaks."""
        session = self._session(moved.number, moved.client, peer)
        protocol = _PACKETS.get(moved.kind, Protocol.MESH)
        return session.as_hand_over(protocol, moved)

    def begin(self, number: int) -> None:
        """The connection is ours alone: go on with it."""
        if number not in self._adopted:
            return
        session, moved = self._adopted.pop(number)
        self._note_taken(session, moved)
        if isinstance(session, PacketSession):
            session.start()
        else:
            session.start_restored()
            if self._is_leaving and isinstance(session, MeshSession):
                session.go_away()

    def drop(self, number: int) -> None:
        """The connection stays another agent's: forget it without a word to anybody."""
        session, _moved = self._adopted.pop(number, (None, None))
        if session is not None:
            session.let_go()

    def _take_over(self, number: int, taken: HandOver) -> None:
        if taken.protocol is Protocol.MESH:
            mesh = self._mesh_session(number, taken)
            self.sessions[number] = mesh
            mesh.start()
            if self._is_leaving:
                mesh.go_away()
            return
        session = self._packet_session(number, taken)
        self.sessions[number] = session
        session.start()

    def _packet_session(self, number: int, taken: HandOver) -> PacketSession:
        is_outbound = taken.peer.direction is Direction.OUTBOUND
        return PacketSession(
            taken,
            self._settings,
            self._forwarder,
            self._judge_packet if is_outbound else _judge_packet_inbound,
            lambda _session: self._forget(number),
        )

    def _mesh_session(
        self, number: int, taken: HandOver, moved: Moved | None = None
    ) -> MeshSession:
        is_outbound = taken.peer.direction is Direction.OUTBOUND
        forwarder = self._forwarder
        prepare: Prepare = partial(forwarder.prepare, caller=taken.peer.caller)
        load: Callable[[], int | None] = _unknown
        if not is_outbound:
            assert self._local is not None
            service = self._local.service(taken.peer.original)
            prepare, load = service.prepare, service.load
        return MeshSession(
            taken,
            self._mesh,
            forwarder.metrics,
            forwarder.settings.max_body_bytes,
            prepare,
            load,
            lambda _session: self._forget(number),
            forwarder.loop.time(),
            moved,
        )

    def _forget(self, number: int) -> None:
        del self.sessions[number]
        self._adopted.pop(number, None)
        self._counters.connections -= 1
        self._on_end()

    def _judge(self, command: Command, session: Session) -> Verdict:
        self._counters.recv += 1
        return judge_outbound(
            command,
            self._forwarder.table,
            _dialled(session.peer),
            spoke_moa=session.spoke_moa,
            state=session.state,
        )

    def _judge_packet(self, packet: Packet, request: Request, session: PacketSession) -> Verdict:
        self._counters.recv += 1
        return judge_packet_outbound(
            packet,
            request,
            self._forwarder.table,
            _dialled(session.peer),
            spoke_moa=session.spoke_moa,
            is_first=not session.requests,
            counters=self._counters,
        )


def _unknown() -> None:
    return


def _dialled(peer: Peer) -> Dialled:
    return Dialled(peer.original is not None, peer.original_is_instance)


def _judge_inbound(command: Command, _session: Session) -> Verdict:
    return judge_inbound(command)


def _judge_packet_inbound(packet: Packet, request: Request, session: PacketSession) -> Verdict:
    return judge_packet_inbound(packet, request, is_first=not session.requests)
