"""One client's connection: its commands in order, each with its verdict and its reply.

Phases: *detecting* until the first bytes tell the protocol; *moa* while commands are judged
one by one; *raw* once bytes are spliced to the address that was dialled. Replies leave in
the order of the commands, whatever the order in which they become known.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from proxy.core.dispatch import Answer, Forward, Splice, ToOriginal, Verdict, judge_again
from proxy.core.model import Address
from proxy.core.translate import resp_reply
from proxy.net.backend import Backend, Call
from proxy.net.client_session import ClientSession
from proxy.net.lane import Lane
from proxy.net.moved import Kind, Moved, RedisState
from proxy.net.notes import Notes
from proxy.net.resp_upstream import RespUpstream
from proxy.net.served import Mode, Peer, SessionSettings
from proxy.net.stream import Stream
from proxy.wire.detect import Protocol, detect
from proxy.wire.moa import Ec, error_body
from proxy.wire.redis_server import SessionState
from proxy.wire.resp import Command, ProtocolError, Reply, RequestParser, bulk, error

_QUEUED_COMMANDS = 1024
"""Commands read ahead of the one that is served; beyond, the client is not read."""


SPOKEN = frozenset({Protocol.RESP, Protocol.TURBO, Protocol.TURBO9, Protocol.MESH})
"""What is served; all but RESP is handed over."""

_HANDED_OVER = SPOKEN - {Protocol.RESP}


class HandOver(NamedTuple):
    """A client that does not speak RESP, with `first` as its first bytes."""

    number: int
    loop: asyncio.AbstractEventLoop
    client: Stream
    lane: Lane
    peer: Peer
    protocol: Protocol
    first: bytes
    notes: Notes | None


class _Slot:
    """A place in the order of replies."""

    __slots__ = ("exchange", "reply", "size")

    def __init__(self, size: int = 0) -> None:
        self.size = size
        """Of its command, with what came before it."""
        self.reply: bytes | None = None
        self.exchange: Call | None = None


class Session(ClientSession):
    """Serves one accepted connection until it ends; `on_end` is called once."""

    def __init__(
        self,
        sock: socket.socket,
        peer: Peer,
        settings: SessionSettings,
        forwarder: Backend,
        judge: Callable[[Command, Session], Verdict],
        state: SessionState,
        on_end: Callable[[Session], None],
        on_other: Callable[[HandOver], None],
    ) -> None:
        """`on_other` takes over a client that turns out to speak another protocol of ours."""
        super().__init__(
            state.client_id,
            peer,
            Stream(forwarder.loop, sock),
            settings,
            forwarder,
            lambda: on_end(self),
        )
        self.state = state
        self.mode = Mode.DETECTING
        self._judge = judge
        self._on_other = on_other
        self._parser = RequestParser(settings.limits)
        self._commands: deque[Command] = deque()
        self._queued_bytes = 0
        self._unread = b""
        """Bytes that no parser has seen: before detection, and on the way to a splice."""
        self._slots: deque[_Slot] = deque()
        self._lane = Lane(
            forwarder.loop,
            peer.original,
            peer.source,
            settings.lane,
            self._on_server_first,
            self._on_lane_hangup,
        )
        self._is_pumping = False
        self._slow_timer: asyncio.TimerHandle | None = None
        self._silence_timer: asyncio.TimerHandle | None = None

    # Reading the client

    def start(self) -> None:
        """Begin to serve; calls `on_end` when it is over."""
        self.client.on_data = self._on_client_data
        self.client.on_eof = self._on_client_eof
        self.client.on_close = self._on_client_close
        self.client.on_drain = self._pump
        self._start_silence_timer()
        self.client.resume_reading()

    def _start_silence_timer(self) -> None:
        """The server may be the one that speaks first."""
        if self.mode is Mode.DETECTING and not self._unread and not self._expects_moa:
            self._silence_timer = self._loop.call_later(
                self._settings.detect_wait_s, self._lane.use, self._on_silence
            )

    def _on_silence(self, upstream: RespUpstream | None) -> None:
        """Nobody has spoken, and the dialled server was asked for: now we hear it."""
        if upstream is None and self.mode is Mode.DETECTING and not self._is_splicing:
            # connect() should have failed, and did not only because of us.
            self.client.abort()

    def _on_client_data(self, data: bytes) -> None:
        if self._is_splicing:
            self._unread += data
            self._throttle()
        elif self.mode is Mode.DETECTING:
            self._detect(self._unread + data)
        else:
            self._parse(data)

    def _detect(self, first: bytes) -> None:
        protocol = detect(first, SPOKEN)
        self._unread = first
        self._cancel_silence_timer()
        if protocol is Protocol.UNDECIDED:
            self._start_slow_timer()
        elif protocol is Protocol.OTHER:
            self._begin_splice(first)
        elif protocol in _HANDED_OVER:
            self._hand_over(protocol, first)
        else:
            self.protocol = protocol
            self._cancel_slow_timer()
            self.mode = Mode.MOA
            self._unread = b""
            if self.notes is not None:
                self.notes.become(Kind.RESP)
            self._parse(first)

    def _hand_over(self, protocol: Protocol, first: bytes) -> None:
        """From here on the client is another session's; nothing of it is ended."""
        self._cancel_slow_timer()
        self.mode = Mode.MOA
        self._unread = b""
        self._has_ended = True
        self._on_settled = None
        self.client.on_drain = lambda: None
        if protocol is Protocol.MESH:
            self.client.forget()
        elif self.notes is not None:
            self.notes.become(Kind(protocol.value))
        self._on_other(self._as_taken(protocol, first))

    def _as_taken(self, protocol: Protocol, first: bytes) -> HandOver:
        number, client, lane = self._number, self.client, self._lane
        return HandOver(number, self._loop, client, lane, self.peer, protocol, first, self.notes)

    def _parse(self, data: bytes) -> None:
        try:
            commands = self._parser.feed(data)
        except ProtocolError:
            commands = []  # What broke it is in the parser's `error`; see _after_pump.
        if self._parser.has_dropped and self.notes is not None:
            self.notes.lose_track()
        for command in commands:
            self._commands.append(command)
            self._queued_bytes += len(command.raw)
        mid_frame = self._parser.mid_frame
        if commands or not mid_frame:
            self._cancel_slow_timer()
        if mid_frame:
            self._start_slow_timer()
        if self._is_closing:
            self._throttle()  # The pump, which does it otherwise, has stopped.
        self._pump()

    def _throttle(self) -> None:
        """Stop reading a client that is far ahead, and go on when it no longer is."""
        ahead = (
            self._queued_bytes + len(self._unread) > self._settings.max_pending_bytes
            or len(self._commands) > _QUEUED_COMMANDS
            or self.client.is_congested
            or self._parser.error is not None
        )
        if ahead:
            self.client.pause_reading()
        elif not self._is_closing and not self._has_ended:
            self.client.resume_reading()

    def _start_slow_timer(self) -> None:
        """A request must be complete within a bounded time of its first byte."""
        if self._slow_timer is not None:
            return
        timeout_s = self._settings.request_read_timeout_s
        if not self._expects_moa and not self._is_mid_array():
            # What waits for an answer to so little, or to half a line, speaks something else.
            timeout_s = self._settings.detect_wait_s
        self._slow_timer = self._loop.call_later(timeout_s, self._on_slow_request)

    def _is_mid_array(self) -> bool:
        return self.mode is not Mode.DETECTING and self._parser.pending.startswith(b"*")

    def _cancel_slow_timer(self) -> None:
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None

    def _cancel_silence_timer(self) -> None:
        if self._silence_timer is not None:
            self._silence_timer.cancel()
            self._silence_timer = None

    def _on_slow_request(self) -> None:
        self._slow_timer = None
        if self._is_splicing:
            return
        if self.client.is_paused:
            # It is we who do not read; the client may have sent the rest long ago.
            self._start_slow_timer()
            return
        if not self._expects_moa:
            self._begin_splice(self._unparsed())
            return
        self._metrics.slow_requests += 1
        self._answer_last(error("ERR Protocol error: the request did not arrive in time"))

    def _on_client_eof(self) -> None:
        """Half-close: what was asked is still answered."""
        if self._is_splicing:
            return
        if self.mode is Mode.DETECTING and not self._expects_moa:
            self._begin_splice(self._unparsed())
        elif self.mode is Mode.DETECTING:
            self._end_client()
        else:
            self._pump()

    def _on_client_close(self, error: OSError | None) -> None:
        for slot in self._slots:
            if slot.exchange is not None:
                slot.exchange.cancel()
        self._slots.clear()
        self._commands.clear()
        if error is not None:
            self._lane.abort()
        else:
            self._lane.close()
        self._end()

    # Commands and replies, in order

    def _pump(self) -> None:
        """Serve commands as far as the depth of the pipeline and the client's reading allow."""
        if self._is_pumping:
            return
        self._is_pumping = True
        try:
            while (
                self._commands
                and len(self._slots) < self._settings.pipeline_depth
                and not self.client.is_congested
                and not (self._is_splicing or self._is_closing or self._has_ended)
                and self._on_settled is None
            ):
                command = self._commands.popleft()
                self._queued_bytes -= len(command.raw)
                self._serve(command)
        finally:
            self._is_pumping = False
        if self._is_splicing:
            self._splice_when_settled()
        elif not self._has_ended and not self._is_closing:
            self._after_pump()

    def _after_pump(self) -> None:
        self._throttle()
        if self._on_settled is not None:
            self._tell_settled()
            return
        if self._commands or self._slots:
            return
        if self._parser.error is not None:
            self._on_protocol_error(self._parser.error)
        elif self.client.peer_done and self._is_servers_to_end():
            self._begin_splice(self._unparsed())
        elif self.client.peer_done:
            self._end_client()

    def _is_servers_to_end(self) -> bool:
        """Whether the dialled server must see our client's end, and what came just before it."""
        return not self._expects_moa and (self._lane.is_open or bool(self._parser.pending))

    def _on_protocol_error(self, problem: ProtocolError) -> None:
        self._metrics.protocol_errors += 1
        if self._expects_moa:
            self._answer_last(error(f"ERR Protocol error: {problem}"))
        else:
            self._begin_splice(self._unparsed())

    def _answer_last(self, reply: bytes) -> None:
        """Say why, after every reply that is owed, and close."""
        slot = _Slot()
        self._slots.append(slot)
        self._is_closing = True
        self._fulfil(slot, reply)

    def _serve(self, command: Command) -> None:
        verdict = self._judge(command, self)
        if isinstance(verdict, Splice):
            self._begin_splice(command.skipped + command.raw + self._unparsed())
            return
        if self._begun_before:
            self._begun_before -= 1
            verdict = judge_again(command, verdict, self._forwarder.settings.policies)
        self.requests += 1
        slot = _Slot(len(command.skipped) + len(command.raw))
        self._slots.append(slot)
        if self.notes is not None:
            self.notes.begin(slot.size)
        if isinstance(verdict, Answer):
            self._is_closing = self.state.closing
            if command.name != b"PING":
                self.describe()
            self._fulfil(slot, verdict.reply)
        elif isinstance(verdict, Forward):
            self._has_asked_for(verdict.request.route.uri)
            exchange = self._forwarder.prepare(
                verdict.request,
                lambda outcome: self._fulfil(slot, resp_reply(outcome, self._max_body)),
                self.peer.caller,
            )
            slot.exchange = exchange
            exchange.start()
        else:
            self._pass_on(command, verdict, slot)

    def _pass_on(self, command: Command, verdict: ToOriginal, slot: _Slot) -> None:
        """Send one command to the address that was dialled."""
        self._passes_on(verdict.uri)

        def unreachable() -> None:
            if verdict.instead is None:
                self.client.abort()
            else:
                self._fulfil(slot, verdict.instead())

        def lost(why: str) -> None:
            if not verdict.uri:
                # Not ours to explain: the client sees what we saw.
                self.client.abort()
                return
            em = f"{verdict.uri}: {why} before it replied; the request may have been executed"
            self._fulfil(slot, bulk(error_body(Ec.REMOTING, em)))

        def replied(reply: Reply) -> None:
            if self.notes is not None:
                self.notes.far_is_idle(self._lane.idle_stream)
            self._fulfil(slot, reply.raw)

        self._lane.request(command.raw, replied, lost, unreachable)

    def _fulfil(self, slot: _Slot, reply: bytes) -> None:
        slot.reply = reply
        slot.exchange = None
        while self._slots and self._slots[0].reply is not None:
            head = self._slots.popleft()
            if self.notes is not None:
                self.notes.done += head.size
            self.client.write(head.reply or b"")
        if self._is_closing and not self._slots:
            self._end_client()
        else:
            self._pump()

    # Traffic that is not MOA

    def _unparsed(self) -> bytes:
        """Take every byte that was read and not served."""
        rest = self._unserved
        self._commands.clear()
        self._queued_bytes = 0
        self._unread = b""
        return rest

    def _on_server_first(self, data: bytes) -> None:
        """Bytes that answer no command: this is no MOA server."""
        if self._has_ended:
            return
        self.client.write(data)
        if not self._is_splicing:
            self._begin_splice(self._unparsed())

    def _on_lane_hangup(self, was_reset: bool) -> None:
        """The dialled server ended an idle connection: a client that only it serves is hung up."""
        if self.spoke_moa or self.peer.original_is_instance or self._slots:
            return
        if was_reset:
            self.client.abort()
        else:
            self._end_client()

    def _begin_splice(self, to_server: bytes) -> None:
        """Join the client with the dialled address, once every reply that is owed is sent."""
        self._is_splicing = True
        self._unread = to_server
        self._cancel_silence_timer()
        self._cancel_slow_timer()
        self._lane.hold()
        if not self._is_pumping:
            self._splice_when_settled()

    def _splice_when_settled(self) -> None:
        if not self._slots and self.mode is not Mode.RAW and not self._has_ended:
            self.mode = Mode.RAW
            self.protocol = Protocol.OTHER
            self._lane.take(self._joined)

    def _joined(self, upstream: RespUpstream | None) -> None:
        if self._has_ended:
            return
        server, to_client = upstream.take_stream() if upstream is not None else (None, b"")
        to_server, self._unread = self._unread, b""
        self._join(server, to_server, to_client)

    # Changing hands (docs/UPGRADE.md)

    def _stop_timers(self) -> None:
        self._cancel_slow_timer()
        self._cancel_silence_timer()

    def _resume_timers(self) -> None:
        if self._unread or self._parser.mid_frame:
            self._start_slow_timer()
        self._start_silence_timer()

    @property
    def _owes_nothing(self) -> bool:
        return not self._slots and self._lane.is_settled and self._parser.error is None

    @property
    def _far(self) -> Stream | None:
        return self._lane.idle_stream

    def _detach_far(self) -> None:
        self._lane.detach()

    def _give_up_dialling(self) -> None:
        if self.mode is Mode.DETECTING and not self._is_splicing:
            self._lane.stop_dialling()

    @property
    def _kind(self) -> Kind:
        return Kind.DETECTING if self.mode is Mode.DETECTING else Kind.RESP

    @property
    def _unserved(self) -> bytes:
        commands = b"".join(c.skipped + c.raw for c in self._commands)
        return self._unread + commands + self._parser.pending

    @property
    def _client_state(self) -> RedisState:
        return RedisState.of(self.state)

    def as_hand_over(self, protocol: Protocol, moved: Moved) -> HandOver:
        """What a session of this other protocol begins with, instead of this one."""
        self._has_ended = True
        return self._as_taken(protocol, moved.unread)

    def restore(self, moved: Moved) -> None:
        super().restore(moved)
        moved.redis.apply(self.state)
        self._unread = moved.unread

    def start_restored(self) -> None:
        """Go on where the other agent stopped."""
        moved, self._moved = self._moved, None
        assert moved is not None
        self.client.on_data = self._on_client_data
        self.client.on_eof = self._on_client_eof
        self.client.on_close = self._on_client_close
        self.client.on_drain = self._pump
        if moved.kind is Kind.RAW:
            assert moved.server is not None
            self.mode, self.protocol, self._is_splicing = Mode.RAW, Protocol.OTHER, True
            to_client = moved.to_client + moved.from_server
            server = Stream(self._loop, moved.server)
            self._splice(server, moved.to_server + moved.unread, to_client)
            self._unread = b""
            return
        self.client.write(moved.to_client)
        if moved.server is not None:
            self._lane.adopt(moved.server)
            if self.notes is not None:
                self.notes.far_is_idle(self._lane.idle_stream)
        first, self._unread = self._unread, b""
        self._begun_before = moved.begun
        if moved.kind is Kind.DETECTING:
            if first:
                self._detect(first)
            else:
                self._start_silence_timer()
        else:
            self.mode, self.protocol = Mode.MOA, Protocol.RESP
            self._parse(first)
        if not self._has_ended and not self._is_splicing:
            self._throttle()

    # From outside

    @property
    def _asked(self) -> Address | None:
        exchange = self._slots[0].exchange if self._slots else None
        instance = exchange.instance if exchange is not None else None
        return instance.address if instance is not None else None

    @property
    def is_idle(self) -> bool:
        return self.mode is not Mode.RAW and not (
            self._slots or self._commands or self._unread or self._parser.mid_frame
        )
