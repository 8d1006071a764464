"""One client's connection that carries binary packets: many requests, replies in any order.

Takes over from `Session` when the first bytes say so. A packet is routed, passed on to the
dialled address, or answered, by itself; nothing has to wait for anything but room: requests
at once, bytes of them, and a client that reads.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.core.dispatch import Answer, Forward, Splice, ToOriginal, Verdict, died_with
from proxy.core.heavy import Done, Job
from proxy.core.message import Failure, MoaRequest, Outcome
from proxy.core.model import Address
from proxy.core.packets import (
    Request,
    found_request,
    head_of,
    judge_packet_again,
    read_request,
    refuse,
)
from proxy.core.translate import packet_failure, packet_reply
from proxy.net.backend import Backend, Call
from proxy.net.client_session import ClientSession
from proxy.net.moved import Kind
from proxy.net.packet_lane import PacketLane
from proxy.net.packet_reader import PacketReader
from proxy.net.served import Mode, SessionSettings
from proxy.net.session import HandOver
from proxy.net.stream import Stream
from proxy.wire.detect import Protocol
from proxy.wire.moa import Ec
from proxy.wire.turbo import Cmd, Form, Packet, PacketLimits

_FORMS = {Protocol.TURBO: Form.PACKET19, Protocol.TURBO9: Form.PACKET9}
_KINDS = {Protocol.TURBO: Kind.TURBO, Protocol.TURBO9: Kind.TURBO9}


class PacketSession(ClientSession):
    """Serves one client until it ends; `on_end` is called once."""

    def __init__(
        self,
        taken: HandOver,
        settings: SessionSettings,
        forwarder: Backend,
        judge: Callable[[Packet, Request, PacketSession], Verdict],
        on_end: Callable[[PacketSession], None],
    ) -> None:
        super().__init__(
            taken.number, taken.peer, taken.client, settings, forwarder, lambda: on_end(self)
        )
        self.protocol = taken.protocol
        self.notes = taken.notes
        self._judge = judge
        self._first = taken.first
        form = _FORMS[taken.protocol]
        self._reader = PacketReader(
            forwarder.loop,
            taken.client,
            form,
            PacketLimits(settings.max_packet),
            self._slow_after_s,
            self._on_slow_packet,
        )
        self._calls: dict[Call, int] = {}
        """What is on its way, with the size of each."""
        self._called_bytes = 0
        self._is_awaited = taken.lane.is_wanted
        replies = PacketLimits(settings.lane.limits.max_element)
        patience_s = settings.lane.patience_s
        self._lane = PacketLane(forwarder.loop, taken.lane, form, replies, patience_s, self)
        self._to_server = b""
        self._in_question: Packet | None = None
        """Another process looks for its route, and those behind it wait."""
        self._is_pumping = False

    def start(self) -> None:
        """Begin with the bytes that were read already; calls `on_end` when it is over."""
        self.client.on_data = self._on_data
        self.client.on_eof = self._pump
        self.client.on_close = self._on_client_close
        self.client.on_drain = self._on_client_drain
        moved, self._moved = self._moved, None
        if moved is not None:
            self.client.write(moved.to_client)
            if moved.server is not None:
                self._lane.adopt(moved.server, moved.to_server)
                if self.notes is not None:
                    self.notes.far_is_idle(self._lane.stream)
            self._begun_before = moved.begun
            for head in moved.lost_packets:
                packet = head_of(head, self._reader.form)
                em = died_with(self.service)
                self.client.write(packet_failure(Failure(Ec.REMOTING, em), packet))
        elif self._is_awaited:
            # What the dialled server does with it is ours to hear from now on.
            self._lane.open()
        first, self._first = self._first, b""
        self._on_data(first)

    # Reading the client

    def _on_data(self, data: bytes) -> None:
        if self._is_splicing:
            self._to_server += data
            self._throttle()
            return
        self._reader.feed(data)
        self._throttle()
        self._pump()

    def _throttle(self) -> None:
        """Stop reading a client that is far ahead, and go on when it no longer is."""
        ahead = (
            bool(self._reader.packets)
            or len(self._to_server) > self._settings.max_pending_bytes
            or self.client.is_congested
            or self._reader.error is not None
        )
        if ahead:
            self.client.pause_reading()
        elif not self._is_closing and not self._has_ended and self._spliced is None:
            self.client.resume_reading()

    def _slow_after_s(self) -> float:
        if self._expects_moa or self.requests:
            return self._settings.request_read_timeout_s
        # What waits for an answer to half a packet speaks something else.
        return self._settings.detect_wait_s

    def _on_slow_packet(self) -> None:
        if self._is_over():
            return
        if not self._expects_moa and not self.requests and self._in_question is None:
            self._begin_splice(b"")
        else:
            self._metrics.slow_requests += 1
            self._end_client()

    def _on_client_drain(self) -> None:
        self._lane.resume()
        self._pump()

    def _on_client_close(self, error: OSError | None) -> None:
        for exchange in list(self._calls):
            exchange.cancel()
        self._calls.clear()
        self._reader.packets.clear()
        self._in_question = None
        self._lane.close(was_reset=error is not None)
        self._end()

    # Packets, each by itself

    def _pump(self) -> None:
        """Serve packets as far as there is room."""
        if self._is_pumping:
            return
        self._is_pumping = True
        try:
            # What had begun had room before; it is noted again before anything else happens.
            while (
                self._reader.packets
                and (self._begun_before or self._has_room())
                and not self._is_held()
            ):
                self._serve(self._reader.packets.popleft())
        finally:
            self._is_pumping = False
        if self._is_over():
            return
        self._throttle()
        if self._on_settled is not None:
            self._tell_settled()
            return
        if self._in_question is not None:
            return
        if not self._reader.packets and not self._calls and not self._lane.owes:
            self._after_pump()

    def _is_over(self) -> bool:
        return self._is_splicing or self._is_closing or self._has_ended

    def _is_held(self) -> bool:
        frozen = self._on_settled is not None
        return frozen or self._in_question is not None or self._is_over()

    def _has_room(self) -> bool:
        return (
            len(self._calls) < self._settings.packets_at_once
            and self._called_bytes <= self._settings.max_pending_bytes
            and not self.client.is_congested
            and not (self._lane.is_open and self._lane.is_congested)
        )

    def _after_pump(self) -> None:
        """Nothing is owed: is there anything to come?"""
        error, is_moa = self._reader.error, self._expects_moa
        if error is not None:
            self._metrics.protocol_errors += 1
            if is_moa or self.requests:
                self.client.write(refuse(self._reader.begun, self._reader.form, str(error)))
                self._end_client()
            else:
                self._begin_splice(b"")
        elif self.client.peer_done:
            if not is_moa and (self._lane.is_open or self._reader.mid_frame):
                # The dialled server must see our client's end, and what came just before it.
                self._begin_splice(b"")
            else:
                self._end_client()

    def _serve(self, packet: Packet) -> None:
        request = read_request(packet, self._settings.max_packet)
        if isinstance(request, Job):
            job, self._in_question = request, packet
            self._forwarder.worker.ask(job, lambda done: self._on_found(packet, job, done))
        else:
            self._follow(packet, request)

    def _on_found(self, packet: Packet, job: Job, done: Done) -> None:
        if self._in_question is None:
            return  # The client has gone, or its bytes went elsewhere.
        self._in_question = None
        self._follow(packet, found_request(packet, job, done))
        self._pump()

    def _follow(self, packet: Packet, request: Request) -> None:
        verdict = self._judge(packet, request, self)
        if isinstance(verdict, Splice):
            self._begin_splice(packet.raw)
            return
        policies = self._forwarder.settings.policies
        if self._begun_before:
            self._begun_before -= 1
            verdict = judge_packet_again(packet, request, verdict, policies)
        self.requests += 1
        is_request = packet.cmd is Cmd.REQ
        if self.notes is not None and is_request:
            is_kept = isinstance(request, MoaRequest) and bool(
                policies.of(request.route.uri).idempotent
            )
            self.notes.owe(packet.opaque, packet.raw, is_kept=is_kept)
        if isinstance(verdict, Answer):
            self._reply(packet, verdict.reply)
        elif isinstance(verdict, Forward):
            self._forward(packet, verdict)
        else:
            self._pass_on(packet, verdict)
        if self.notes is not None and not is_request:
            # Who asks for a sign of life rather gets two than none.
            self.notes.pass_over(len(packet.raw))

    def _reply(self, packet: Packet, data: bytes) -> None:
        """Write the answer to a packet of the client's."""
        if self.notes is not None:
            self.notes.settle(packet.opaque, self.client.bytes_out + len(data))
        self.client.write(data)

    def _forward(self, packet: Packet, verdict: Forward) -> None:
        self._has_asked_for(verdict.request.route.uri)
        size = len(packet.raw)

        def on_outcome(outcome: Outcome) -> None:
            self._calls.pop(exchange, None)
            self._called_bytes -= size
            self._reply(packet, packet_reply(outcome, packet, self._max_body))
            self._pump()

        exchange = self._forwarder.prepare(verdict.request, on_outcome, self.peer.caller)
        self._calls[exchange] = size
        self._called_bytes += size
        exchange.start()

    # The dialled address

    def _pass_on(self, packet: Packet, verdict: ToOriginal) -> None:
        self._passes_on(verdict.uri)

        def unreachable() -> None:
            if verdict.instead is None:
                self.client.abort()
            else:
                self._reply(packet, verdict.instead())
                self._pump()

        self._lane.send(packet, unreachable, is_patient=verdict.instead is None)

    def on_lane_packet(self, packet: Packet) -> None:
        if packet.cmd is Cmd.RESP:
            self._reply(packet, packet.raw)
        else:
            self.client.write(packet.raw)
        if self.notes is not None and not self._lane.is_mid_packet:
            self.notes.far_is_idle(self._lane.stream)
        if self.client.is_congested:
            self._lane.pause()
        self._pump()

    def on_lane_drain(self) -> None:
        self._pump()

    def on_lane_end(self, why: str, unanswered: list[Packet], *, was_reset: bool) -> None:
        """Who waits is told; a client that only the dialled server serves ends as that did."""
        em = f"{self.peer.original} {why} before it replied; the request may have been executed"
        for packet in unanswered:
            self._reply(packet, packet_failure(Failure(Ec.REMOTING, em), packet))
        if self._expects_moa or self._calls:
            self._pump()
        elif was_reset:
            self.client.abort()
        else:
            self._end_client()

    def on_lane_broken(self, rest: bytes) -> None:
        if self._expects_moa or self._calls:
            self._metrics.protocol_errors += 1
            self.client.abort()
            self._lane.close(was_reset=True)
            return
        self._begin_splice(b"", rest)

    # Traffic that is not MOA

    def _unparsed(self) -> bytes:
        asked, self._in_question = self._in_question, None
        first = asked.raw if asked is not None else b""
        rest, self._to_server = self._to_server + first + self._reader.take_all(), b""
        return rest

    def _begin_splice(self, to_server: bytes, to_client: bytes = b"") -> None:
        """What the client sends is not ours: join it with the address that it dialled."""
        self._is_splicing = True
        self._to_server = to_server + self._unparsed()
        self.mode = Mode.RAW
        self.protocol = Protocol.OTHER
        self._lane.take(lambda server, read: self._joined(server, to_client + read))

    def _joined(self, server: Stream | None, to_client: bytes) -> None:
        if not self._has_ended:
            to_server, self._to_server = self._to_server, b""
            self._join(server, to_server, to_client)

    # Changing hands (docs/UPGRADE.md)

    def _stop_timers(self) -> None:
        self._reader.stop_timer()

    def _resume_timers(self) -> None:
        self._reader.resume_timer()

    @property
    def _owes_nothing(self) -> bool:
        is_under_way = self._calls or self._in_question is not None
        return not is_under_way and self._lane.is_settled and self._reader.error is None

    @property
    def _far(self) -> Stream | None:
        return self._lane.stream

    def _detach_far(self) -> None:
        self._lane.detach()

    def _give_up_dialling(self) -> None:
        return  # A packet waits for it.

    @property
    def _kind(self) -> Kind:
        return _KINDS.get(self.protocol, Kind.RAW)

    @property
    def _unserved(self) -> bytes:
        return self._reader.peek_all()

    # From outside

    @property
    def _asked(self) -> Address | None:
        instances = (exchange.instance for exchange in self._calls)
        return next((found.address for found in instances if found is not None), None)

    @property
    def is_idle(self) -> bool:
        return self.mode is not Mode.RAW and not (
            self._calls
            or self._in_question
            or self._reader.packets
            or self._lane.owes
            or self._reader.mid_frame
        )
