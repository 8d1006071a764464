"""Binary packets: any chunking gives the same packets, no byte is lost, snappy is bounded."""

from __future__ import annotations

from contextlib import suppress

from tests.fuzz.harness import cut, fuzz, instrumented

with instrumented():
    from proxy.wire.turbo import (
        BodyError,
        Form,
        Packet,
        PacketLimits,
        PacketParser,
        ProtocolError,
        compress,
        decompress,
        encode,
        encode9,
        encode_pong,
        parse_ping,
        read_body,
    )

LIMITS = PacketLimits(max_body=300)


def check(data: bytes) -> None:
    """The first byte is the size of the chunks, the rest a stream of either form or a block."""
    size = data[0] % 23 + 1 if data else 1
    stream = data[1:]
    for form in Form:
        whole = outcome(form, [stream])
        assert outcome(form, cut(stream, size)) == whole, form
        for packet in whole[0]:
            check_packet(packet)
    check_block(stream)


def outcome(form: Form, chunks: list[bytes]) -> tuple[list[Packet], bytes | None, str]:
    """The packets, what is pending where there is no error, and the error."""
    parser = PacketParser(LIMITS, form)
    packets: list[Packet] = []
    fed = b""
    for chunk in chunks:
        if parser.error is not None:
            break
        fed += chunk
        try:
            packets += parser.feed(chunk)
        except ProtocolError:
            break
    assert b"".join(packet.raw for packet in packets) + parser.pending == fed
    if parser.error is not None:
        return packets, None, str(parser.error)
    assert len(parser.pending) < 19 + LIMITS.max_body + 2
    assert parser.mid_frame == bool(parser.pending)
    return packets, parser.pending, ""


def check_packet(packet: Packet) -> None:
    body = packet.body
    assert len(body) <= LIMITS.max_body
    again = (
        encode(packet.cmd, packet.opaque, body, version=packet.version, extension=packet.extension)
        if packet.form is Form.PACKET19
        else encode9(packet.cmd, packet.opaque, body)
    )
    assert again == packet.raw
    (other,) = PacketParser(LIMITS, packet.form).feed(packet.with_opaque(7))
    assert other.opaque == 7
    assert other.with_opaque(packet.opaque) == packet.raw
    (pong,) = PacketParser(LIMITS, packet.form).feed(encode_pong(packet))
    assert (pong.opaque, pong.body) == (packet.opaque, body)
    parse_ping(body)
    with suppress(BodyError):
        assert len(read_body(packet, LIMITS.max_body)) <= LIMITS.max_body


def check_block(block: bytes) -> None:
    assert decompress(compress(block), len(block)) == block
    with suppress(BodyError):
        plain = decompress(block, LIMITS.max_body)
        assert len(plain) <= LIMITS.max_body
        assert decompress(compress(plain), LIMITS.max_body) == plain


if __name__ == "__main__":
    fuzz(check)
