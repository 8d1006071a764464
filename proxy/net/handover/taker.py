"""Takes an agent's sockets from another agent (docs/UPGRADE.md).

What was accepted and not committed when the other agent is lost stays that one's: it is
forgotten here without a byte read or written.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import structlog

from proxy.core.message import Wire
from proxy.core.model import Address
from proxy.net.handover.channel import Channel, close_all
from proxy.net.handover.codec import descriptors_of, from_message
from proxy.net.handover.sides import TakingSide
from proxy.net.mesh_session import MeshSession
from proxy.wire.handover import HandoverError, Received
from proxy.wire.handover import handover_pb2 as pb
from proxy.wire.mesh.errors import PeerError
from proxy.wire.mesh.headers import decode_response

log = structlog.get_logger("handover")

_TOO_MANY = "too many open files: not all descriptors could be opened"


@dataclass(slots=True)
class _Batch:
    numbers: list[int] = field(default_factory=list)
    upstreams: list[tuple[Address, Wire, bool, int, socket.socket]] = field(default_factory=list)


class Taker:
    """Takes what comes over `channel`.

    `on_serving` is called when the listeners are ours, `on_end` once: with None when all has
    come, or with why not. What was committed until then is ours either way.
    """

    def __init__(
        self,
        channel: Channel,
        side: TakingSide,
        on_serving: Callable[[], None],
        on_end: Callable[[str | None], None],
    ) -> None:
        self.moved = 0
        self._channel = channel
        self._side = side
        self._on_serving = on_serving
        self._on_end = on_end
        self._batches: dict[int, _Batch] = {}
        self._mesh: dict[int, MeshSession] = {}
        self._is_ours = False
        self._has_ended = False

    def start(self, free_descriptors: int) -> None:
        """Say that we are ready; we can open so many descriptors more."""
        self._channel.on_frame = self._on_frame
        self._channel.on_lost = self._on_channel_lost
        self._channel.send(
            pb.Ready(descriptors=free_descriptors, needs_table=self._side.needs_table)
        )

    @property
    def is_serving(self) -> bool:
        """Whether the listeners are ours."""
        return self._is_ours

    def _on_frame(self, received: Received, fds: list[int] | None) -> None:
        message = received.message
        if fds and not isinstance(message, pb.Shared | pb.Prepare):
            close_all(fds)  # Nobody expects any.
        if isinstance(message, pb.Shared):
            self._on_shared(message, fds)
        elif isinstance(message, pb.Prepare):
            self._on_prepare(message, fds)
        elif isinstance(message, pb.Commit):
            self._on_commit(message.batch)
        elif isinstance(message, pb.State):
            self._side.take_state(dict(message.parts))
        elif isinstance(message, pb.Reply):
            self._on_reply(message)
        elif isinstance(message, pb.Done):
            self._end(None)
        elif isinstance(message, pb.Refuse):
            self._end(message.why)

    def _on_shared(self, message: pb.Shared, fds: list[int] | None) -> None:
        why = _TOO_MANY if fds is None else ""
        if fds is not None:
            try:
                shared = dict(zip(message.names, fds, strict=True))
                self._side.take_shared(shared, message.next_number)
            except (OSError, ValueError) as error:
                why = str(error) or type(error).__name__
                close_all(fds)
        self._channel.send(pb.Accepted(batch=0, why=why))

    def _on_prepare(self, message: pb.Prepare, fds: list[int] | None) -> None:
        if fds is None:
            self._channel.send(pb.Accepted(batch=message.batch, why=_TOO_MANY))
            return
        batch, why = _Batch(), ""
        try:
            sockets = [socket.socket(fileno=fd) for fd in fds]
        except OSError as error:
            close_all(fds)
            self._channel.send(pb.Accepted(batch=message.batch, why=str(error)))
            return
        for sock in sockets:
            sock.setblocking(False)
        at = 0
        for connection in message.connections:
            count = descriptors_of(connection)
            own, at = sockets[at : at + count], at + count
            try:
                if len(own) != count:
                    raise HandoverError(f"connection {connection.number}: {len(own)} descriptors")
                self._side.adopt(from_message(connection, own))
            except (HandoverError, ValueError) as error:
                why = str(error)
                for sock in own:
                    sock.close()
                continue
            batch.numbers.append(connection.number)
        for upstream, sock in zip(message.upstreams, sockets[at:], strict=False):
            address, last = Address(upstream.host, upstream.port), upstream.last_number
            try:
                batch.upstreams.append((address, Wire(upstream.wire), upstream.local, last, sock))
            except ValueError:
                sock.close()  # Of a protocol that this version does not speak.
        self._batches[message.batch] = batch
        self._channel.send(pb.Accepted(batch=message.batch, taken=batch.numbers, why=why))

    def _on_commit(self, number: int) -> None:
        if number == 0:
            self._is_ours = True
            self._side.serve()
            self._on_serving()
            return
        batch = self._batches.pop(number, None)
        if batch is None:
            return
        self.moved += len(batch.numbers)
        for connection in batch.numbers:
            session = self._side.sessions.get(connection)
            if isinstance(session, MeshSession):
                self._mesh[connection] = session
                session.on_foreign_cancelled = partial(self._cancel, connection)
            self._side.begin(connection)
        for address, wire, is_local, last, sock in batch.upstreams:
            self._side.take_upstream(address, wire, sock, last, is_local=is_local)

    def _cancel(self, connection: int, request: int) -> None:
        self._channel.send(pb.Cancel(connection=connection, request=request))

    def _on_reply(self, message: pb.Reply) -> None:
        session = self._mesh.get(message.connection)
        if session is not None:
            with suppress(PeerError):
                header, _length = decode_response(message.header)
                session.answer_foreign(message.request, header, message.body)
        self._channel.send(pb.Acknowledge(sequence=message.sequence))

    def abandon(self) -> None:
        """Take no more: what was not committed stays the other agent's, untouched."""
        self._has_ended = True
        self._forget("this agent was told to stop")

    def _on_channel_lost(self, why: str) -> None:
        self._forget("the agent that worked on it has gone")
        self._end(why)

    def _forget(self, why: str) -> None:
        for batch in self._batches.values():
            for number in batch.numbers:
                self._side.drop(number)
            for *_, sock in batch.upstreams:
                sock.close()
        self._batches.clear()
        for session in self._mesh.values():
            session.fail_foreign(why)
        self._mesh.clear()

    def _end(self, why: str | None) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._on_end(why)
