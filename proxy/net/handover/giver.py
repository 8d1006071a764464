"""Gives an agent's sockets to another agent, one connection after the other.

Order and messages: docs/UPGRADE.md. A connection is *frozen* until what it began is finished,
then prepared in a batch, accepted, and committed; before the commit it is still ours, and goes
on here at once when anything fails. One that does not settle in its patience is thawed and
tried again later with more of it, so that a slow request holds up nobody but its own client.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import structlog

from proxy.net.handover.channel import Channel
from proxy.net.handover.codec import sockets_of, to_message
from proxy.net.handover.sides import GivingSide, IdleUpstream
from proxy.net.mesh_session import MeshSession
from proxy.net.moved import CannotMove, Moved
from proxy.net.served import Served
from proxy.wire.handover import MAX_DESCRIPTORS, MAX_LENGTH, FrameType, Received
from proxy.wire.handover import handover_pb2 as pb
from proxy.wire.mesh import ResponseHeader
from proxy.wire.mesh.headers import encode_response

_FROZEN_AT_ONCE = 16
"""Each of these clients waits for a batch to go there and back: two or three milliseconds."""
_BATCHES_AT_ONCE = 2
_BATCH_BYTES = 4 * 1024 * 1024
_MOST_BYTES = MAX_LENGTH - 1024 * 1024
"""Of what goes into a frame besides its other fields."""
_TICK_S = 0.02
_SPARE_DESCRIPTORS = 64

log = structlog.get_logger("handover")


@dataclass(frozen=True, slots=True)
class GiveSettings:
    """Times in seconds.

    A connection has `patience_s` to settle, and twice as long each time it is tried again;
    what has not moved after `deadline_s` stays here until it ends. The clients of a batch wait
    for the other agent's answer, `answer_s` at most: then it counts as dead.
    """

    deadline_s: float = 60.0
    patience_s: float = 0.1
    patience_max_s: float = 10.0
    answer_s: float = 5.0


class Progress(NamedTuple):
    """How far it is; `in_flight` are requests that connections wait for."""

    moved: int
    total: int
    in_flight: int
    left: int = 0


@dataclass(slots=True)
class _Frozen:
    session: Served
    until_s: float
    patience_s: float


@dataclass(slots=True)
class _Batch:
    sent_s: float
    sessions: dict[int, Served] = field(default_factory=dict)
    upstreams: list[IdleUpstream] = field(default_factory=list)


class Giver:
    """Gives until `on_end`, which is called once: with None, or with why it did not happen.

    After None the agent is *retired*: it has stepped back, finishes what it owes (`owes`), and
    `on_lost` says if the other agent dies. After a reason it serves, with all that was not
    committed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channel: Channel,
        side: GivingSide,
        settings: GiveSettings,
        on_progress: Callable[[Progress], None],
        on_end: Callable[[str | None], None],
    ) -> None:
        self.on_lost: Callable[[str], None] = lambda _why: None
        self._loop = loop
        self._channel = channel
        self._side = side
        self._settings = settings
        self._on_progress = on_progress
        self._on_end = on_end
        self._waiting: deque[tuple[int, float, float]] = deque()
        """Number, not before this time, patience."""
        self._frozen: dict[int, _Frozen] = {}
        self._ready: dict[int, Served] = {}
        self._batches: dict[int, _Batch] = {}
        self._last_batch = 0
        self._orphans: dict[int, MeshSession] = {}
        self._unacknowledged = 0
        self._sequence = 0
        self._seen: set[int] = set()
        self._moved = 0
        self._total = 0
        self._left: set[int] = set()
        self._needs_table = False
        self._has_shared = False
        self._has_stepped_back = False
        self._gave_upstreams = False
        self._has_ended = False
        self._flush_due = False
        self._deadline_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.max_mesh_state = 0
        """The highest form of a mesh connection's state that the taker reads; 0: none."""

    # From the beginning to the end

    def start(self, free_descriptors: int, *, needs_table: bool) -> None:
        """The taker has started, and can open so many descriptors."""
        self._needs_table = needs_table
        needed = 2 * len(self._side.sessions) + _SPARE_DESCRIPTORS
        if free_descriptors < needed:
            self._refuse(
                f"the other agent may open {free_descriptors} more descriptors, and {needed} "
                "are needed: raise its limit (LimitNOFILE)"
            )
            return
        self._channel.on_frame = self._on_frame
        self._channel.on_lost = self._on_channel_lost
        shared = self._side.shared()
        message = pb.Shared(names=list(shared), next_number=self._side.next_number)
        self._channel.send(message, list(shared.values()))
        self._has_shared = True
        self._deadline_s = self._loop.time() + self._settings.deadline_s
        self._timer = self._loop.call_later(self._settings.deadline_s, self._give_up_waiting)

    def _on_shared_accepted(self, why: str) -> None:
        if why:
            self._refuse(f"the other agent cannot take the listeners: {why}")
            return
        # The state first: who asks the other agent finds every count at least as high as here.
        state = self._side.state(is_last=False, with_table=self._needs_table)
        self._channel.send(pb.State(parts=state))
        self._channel.send(pb.Commit(batch=0), on_sent=self._step_back)
        if self._has_ended:
            return
        self._send_upstreams(is_last=False)
        if self._timer is not None:
            self._timer.cancel()
        self._tick()

    def _step_back(self) -> None:
        self._has_stepped_back = True
        self._side.step_back()

    def _tick(self) -> None:
        if self._has_ended:
            return
        now_s = self._loop.time()
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        if any(now_s - batch.sent_s > self._settings.answer_s for batch in self._batches.values()):
            self._fail(f"the other agent did not answer in {self._settings.answer_s:g} s")
            return
        if now_s >= self._deadline_s:
            self._give_up_waiting()
        for number, frozen in list(self._frozen.items()):
            if self._side.sessions.get(number) is not frozen.session:
                del self._frozen[number]
            elif now_s >= frozen.until_s:
                del self._frozen[number]
                frozen.session.thaw()
                self._try_later(number, frozen.patience_s)
        if self._has_stepped_back:
            self._see_sessions()
        self._freeze_more()
        self._on_progress(self.progress)
        self._end_when_done()

    def _see_sessions(self) -> None:
        """All of them; until we stepped back, new ones may have come."""
        sessions = self._side.sessions
        fresh = [number for number in sessions if number not in self._seen]
        fresh.sort(key=lambda number: not sessions[number].is_settled)
        self._seen.update(fresh)
        self._total += len(fresh)
        self._waiting.extend((number, 0.0, self._settings.patience_s) for number in fresh)

    @property
    def progress(self) -> Progress:
        under_way = len(self._frozen) + sum(s.owes for s in self._orphans.values())
        return Progress(self._moved, self._total, under_way, len(self._left))

    @property
    def owes(self) -> bool:
        """Whether anything is still worked on here, or stays here until it ends."""
        left = self._left & self._side.sessions.keys()
        return bool(left or any(s.owes for s in self._orphans.values()) or self._unacknowledged)

    def _end_when_done(self) -> None:
        under_way = self._waiting or self._frozen or self._ready or self._batches
        if under_way or self._has_ended or not self._has_stepped_back:
            return
        self._orphans = {n: s for n, s in self._orphans.items() if s.owes}
        if self._orphans or self._unacknowledged:
            return
        if not self._gave_upstreams:
            self._gave_upstreams = True
            self._send_upstreams(is_last=True)
            if self._batches:
                return
        left = len(self._left & self._side.sessions.keys())
        self._channel.send(pb.State(parts=self._side.state(is_last=True, with_table=False)))
        self._channel.send(pb.Done(moved=self._moved, left=left))
        self._on_progress(Progress(self._moved, self._total, 0, left))
        self._finish(None)

    def _give_up_waiting(self) -> None:
        """The deadline: what has not moved ends here, in its own time."""
        if not self._has_stepped_back:
            self._fail("the other agent did not accept the listeners in time")
            return
        self._left.update(number for number, _, _ in self._waiting)
        self._waiting.clear()
        for number, frozen in self._frozen.items():
            frozen.session.thaw()
            self._left.add(number)
        self._frozen.clear()

    # Connections

    def _freeze_more(self) -> None:
        now_s = self._loop.time()
        for _ in range(len(self._waiting)):
            if len(self._frozen) + len(self._ready) >= _FROZEN_AT_ONCE:
                return
            number, not_before_s, patience_s = self._waiting.popleft()
            session = self._side.sessions.get(number)
            if session is None:
                continue
            if now_s < not_before_s:
                self._waiting.append((number, not_before_s, patience_s))
                continue
            if isinstance(session, MeshSession) and not self.max_mesh_state:
                session.go_away()
                self._left.add(number)
                continue
            self._frozen[number] = _Frozen(session, now_s + patience_s, patience_s)
            session.freeze(partial(self._on_settled, number))

    def _try_later(self, number: int, patience_s: float) -> None:
        longer_s = min(2 * patience_s, self._settings.patience_max_s)
        self._waiting.append((number, self._loop.time() + patience_s, longer_s))

    def _on_settled(self, number: int) -> None:
        frozen = self._frozen.pop(number, None)
        if frozen is None:
            return
        self._ready[number] = frozen.session
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._ready and not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        while self._ready and len(self._batches) < _BATCHES_AT_ONCE and not self._has_ended:
            self._send_batch()

    def _send_batch(self) -> None:
        batch, size, count = _Batch(self._loop.time()), 0, 0
        moved: list[tuple[Moved, pb.Connection]] = []
        while self._ready and count <= MAX_DESCRIPTORS - 2 and size < _BATCH_BYTES:
            number, session = self._ready.popitem()
            if self._side.sessions.get(number) is not session:
                continue
            found = self._export(number, session)
            if found is not None:
                message = to_message(found)
                if size + message.ByteSize() > _MOST_BYTES and moved:
                    self._ready[number] = session  # for a batch of its own
                    break
                if message.ByteSize() > _MOST_BYTES:
                    self._stays(number, session, "its state is too large for a frame")
                    continue
                batch.sessions[number] = session
                moved.append((found, message))
                count += len(sockets_of(found))
                size += message.ByteSize()
        if moved:
            descriptors = [s.fileno() for found, _ in moved for s in sockets_of(found)]
            self._prepare(batch, pb.Prepare(connections=[m for _, m in moved]), descriptors)

    def _export(self, number: int, session: Served) -> Moved | None:
        try:
            return session.export()
        except CannotMove:
            session.thaw()
            self._try_later(number, self._settings.patience_s)
            return None

    def _stays(self, number: int, session: Served, why: str) -> None:
        log.warning("connection stays here", connection=number, why=why)
        session.thaw()
        self._left.add(number)

    def _prepare(self, batch: _Batch, message: pb.Prepare, descriptors: list[int]) -> None:
        self._last_batch += 1
        message.batch = self._last_batch
        self._batches[self._last_batch] = batch
        self._channel.send(message, descriptors)

    def _send_upstreams(self, *, is_last: bool) -> None:
        idle = self._side.idle_upstreams(is_last=is_last)
        for at in range(0, len(idle), MAX_DESCRIPTORS):
            part = idle[at : at + MAX_DESCRIPTORS]
            found = [
                pb.Upstream(
                    host=u.address.host,
                    port=u.address.port,
                    wire=u.wire.value,
                    local=u.is_local,
                    last_number=u.last_number,
                )
                for u in part
            ]
            descriptors = [u.sock.fileno() for u in part]
            batch = _Batch(self._loop.time(), upstreams=part)
            self._prepare(batch, pb.Prepare(upstreams=found), descriptors)

    # What the taker says

    def _on_frame(self, received: Received, fds: list[int] | None) -> None:
        message = received.message
        for fd in fds or []:
            os.close(fd)  # Nobody expects any.
        if isinstance(message, pb.Accepted):
            if message.batch == 0:
                self._on_shared_accepted(message.why)
            else:
                self._on_accepted(message)
        elif isinstance(message, pb.Acknowledge):
            self._unacknowledged = self._sequence - message.sequence
        elif isinstance(message, pb.Cancel):
            orphan = self._orphans.get(message.connection)
            if orphan is not None:
                orphan.give_up(message.request)
        elif received.type is FrameType.REFUSE and isinstance(message, pb.Refuse):
            self._fail(f"the other agent refuses: {message.why}")

    def _on_accepted(self, message: pb.Accepted) -> None:
        batch = self._batches.get(message.batch)
        if batch is None:
            return
        taken = set(message.taken)
        for number, session in batch.sessions.items():
            if number not in taken:
                session.thaw()
                self._left.add(number)
        batch.sessions = {n: s for n, s in batch.sessions.items() if n in taken}
        if message.why:
            log.warning("connections stay here", why=message.why)
            for upstream in batch.upstreams:
                upstream.keep()
            batch.upstreams.clear()
        commit = pb.Commit(batch=message.batch)
        self._channel.send(commit, on_sent=partial(self._let_go, message.batch))
        self._freeze_more()
        self._flush()

    def _let_go(self, number_of_batch: int) -> None:
        """The commit will be delivered: from here on they are the taker's alone."""
        batch = self._batches.pop(number_of_batch)
        for upstream in batch.upstreams:
            upstream.drop()
        for number, session in batch.sessions.items():
            self._moved += 1
            if self._side.sessions.get(number) is not session:
                continue
            session.let_go()
            if isinstance(session, MeshSession):
                self._orphans[number] = session
                session.relay_to(partial(self._relay, number))
        self._flush_soon()  # There is room for another batch.

    def _relay(self, number: int, request: int, header: ResponseHeader, body: bytes) -> None:
        """A reply that we still owed; in order, and acknowledged."""
        self._sequence += 1
        self._unacknowledged += 1
        self._channel.send(
            pb.Reply(
                sequence=self._sequence,
                connection=number,
                request=request,
                header=encode_response(header, len(body)),
                body=body,
            )
        )

    # When it does not happen

    def _refuse(self, why: str) -> None:
        """Nothing has begun, and the other agent may try again."""
        self._channel.send(pb.Refuse(why=why))
        if self._timer is not None:
            self._timer.cancel()
        if self._has_shared:
            self._side.stay()
        self._finish(why)

    def _on_channel_lost(self, why: str) -> None:
        if self._has_ended:
            self._unacknowledged = 0
            self.on_lost(why)
        else:
            self._fail(why)

    def abandon(self, why: str) -> None:
        """Stop giving, and go on with everything that was not committed."""
        self._fail(why)

    def _fail(self, why: str) -> None:
        """Go on with everything that was not committed."""
        if self._has_ended:
            return
        self._channel.close()
        for frozen in self._frozen.values():
            frozen.session.thaw()
        for session in self._ready.values():
            session.thaw()
        for batch in self._batches.values():
            for session in batch.sessions.values():
                session.thaw()
            for upstream in batch.upstreams:
                upstream.keep()
        self._frozen.clear()
        self._ready.clear()
        self._batches.clear()
        self._waiting.clear()
        self._unacknowledged = 0
        if self._has_stepped_back:
            self._side.step_forward()
        elif self._has_shared:
            self._side.stay()
        self._finish(why)

    def _finish(self, why: str | None) -> None:
        self._has_ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._on_end(why)
