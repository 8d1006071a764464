"""Detection: an answer once given stays, is given in time, and agrees with the parsers."""

from __future__ import annotations

import itertools
from contextlib import suppress

from tests.fuzz.harness import fuzz, instrumented

with instrumented():
    from proxy.wire.detect import EVERY, MAX_NEEDED, RESP_ALONE, Protocol, detect
    from proxy.wire.turbo import Cmd, Form, Packet, PacketLimits, PacketParser, ProtocolError

FROM_CLIENT = (Cmd.REQ, Cmd.PING, Cmd.INFO)


def check(data: bytes) -> None:
    for spoken in (EVERY, RESP_ALONE, EVERY - RESP_ALONE, frozenset({Protocol.TURBO9})):
        judged = [detect(data[:end], spoken) for end in range(min(len(data), MAX_NEEDED + 2) + 1)]
        for one, longer in itertools.pairwise(judged):
            assert one in (Protocol.UNDECIDED, longer), (one, longer)
        assert Protocol.UNDECIDED not in judged[MAX_NEEDED:]
        assert {*judged} <= {*spoken, Protocol.UNDECIDED, Protocol.OTHER}
    judged_all = detect(data, EVERY)
    for form, protocol in ((Form.PACKET19, Protocol.TURBO), (Form.PACKET9, Protocol.TURBO9)):
        agrees_with_parser(data, form, protocol, judged_all)


def agrees_with_parser(data: bytes, form: Form, protocol: Protocol, judged: Protocol) -> None:
    parser = PacketParser(PacketLimits(max_body=2**24), form)
    packets: list[Packet] = []
    with suppress(ProtocolError):
        packets = parser.feed(data)
    if not packets and parser.error is not None:
        # Only what follows the body can still be wrong, and only in the shorter form.
        assert judged is not protocol or "expected CRLF" in str(parser.error), parser.error
    if not packets or data.startswith(b"MOA\x01"):
        return
    first = packets[0]
    is_usual = first.cmd in FROM_CLIENT and 0 <= first.version < 256 and first.extension >> 2 == 0
    if form is Form.PACKET9:
        is_usual &= first.body[:1] in (b"", b"{") and len(first.body) < 2**24
    if is_usual and len(first.raw) <= len(data):
        assert judged is protocol, (judged, first)


if __name__ == "__main__":
    fuzz(check)
