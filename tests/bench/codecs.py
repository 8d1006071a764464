"""What each codec costs for one request: CPU time, and the bytes that it makes anew.

`requests/s` is of one core: the inverse of the CPU time of a request (`process_time`, the best of
several rounds, so that other work on the machine matters little). A loop over many requests is
timed; what a request needs is made before.

`copied` is the most memory that a request holds at once beyond its input, by tracemalloc, divided
by the size of the body: 1 is one copy of the body. Python has no count of bytes copied; a copy
that is freed before the next is made counts once. With bodies of 16 KB, so that the bodies'
bytes outweigh the objects around them.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from proxy.wire import hessian
from proxy.wire.detect import Protocol, detect
from proxy.wire.mesh import MeshConnection, RequestHeader, ResponseHeader, Settings
from proxy.wire.moa import parse_ec
from proxy.wire.moa_scan import scan_route
from proxy.wire.resp import ReplyParser, RequestParser, bulk, encode_command
from proxy.wire.turbo import EXT_HESSIAN, Cmd, PacketParser, encode

_ROUND_S = 0.05
_COPIED_BODY = 16 * 1024
_HEADER = RequestHeader("/service/one", "echo")
_OK = ResponseHeader(200)
_PROTOCOLS = frozenset({Protocol.RESP, Protocol.TURBO, Protocol.TURBO9, Protocol.MESH})

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class CodecCost:
    """One codec with bodies of one size; `copied` is in bodies."""

    what: str
    body_bytes: int
    us: float
    per_s: float
    copied: float


def codec_costs(body_sizes: list[int], rounds: int) -> list[CodecCost]:
    """Measure every codec with bodies of each size."""
    costs = []
    for size in body_sizes:
        copied = {name: _copied(work) for name, work in _works(_COPIED_BODY).items()}
        for name, work in _works(size).items():
            us = 1e6 * min(_cpu_s(work) for _ in range(rounds))
            costs.append(CodecCost(name, size, us, 1e6 / us, copied[name]))
    return costs


def _works(size: int) -> dict[str, Work]:
    """One request's work for each codec, with bodies of about `size` bytes."""
    request = _request(size)
    reply = json.dumps({"ec": 200, "em": "", "result": "x" * size}).encode()
    in_hessian, reply_in_hessian = hessian.json_to_hessian(request), hessian.json_to_hessian(reply)
    command, packet = encode_command(b"GET", request), encode(Cmd.REQ, 1, request)
    hessian_packet = encode(Cmd.REQ, 1, in_hessian, extension=EXT_HESSIAN)
    values = hessian.decode(in_hessian)
    many = json.dumps({"ec": 200, "em": "", "result": list(range(size // 5))}).encode()
    many_in_hessian = hessian.json_to_hessian(many)
    return {
        "detection": partial(detect, command[:64], _PROTOCOLS),
        "RESP request: frame and route": partial(_resp_request, RequestParser(), command),
        "RESP reply: frame and ec": partial(_resp_reply, ReplyParser(), bulk(reply)),
        "packet of JSON: frame and route": partial(_packet, PacketParser(), packet, scan_route),
        "packet of Hessian: frame and route": partial(
            _packet, PacketParser(), hessian_packet, hessian.scan_route
        ),
        "packet, written": partial(encode, Cmd.REQ, 1, request),
        "Hessian reply: ec": partial(hessian.scan_ec, reply_in_hessian),
        "Hessian, decoded": partial(hessian.decode, in_hessian),
        "Hessian, encoded": partial(hessian.encode, values),
        "JSON to Hessian, one text": partial(hessian.json_to_hessian, request),
        "Hessian to JSON, one text": partial(hessian.hessian_to_json, in_hessian),
        "JSON to Hessian, numbers": partial(hessian.json_to_hessian, many),
        "Hessian to JSON, numbers": partial(hessian.hessian_to_json, many_in_hessian),
        "mesh, request and response, both sides": _mesh(request, reply),
    }


def _request(size: int) -> bytes:
    value = {"action": "/service/one", "params": {"m": "echo", "args": ["x" * size]}}
    return json.dumps(value).encode()


def _resp_request(parser: RequestParser, raw: bytes) -> object:
    return scan_route(parser.feed(raw)[0].args[1])


def _resp_reply(parser: ReplyParser, raw: bytes) -> object:
    reply = parser.feed(raw)[0]
    return parse_ec(reply.raw[reply.begin : reply.end])


def _packet(parser: PacketParser, raw: bytes, route: Callable[[bytes], object]) -> object:
    return route(parser.feed(raw)[0].body)


def _mesh(request: bytes, reply: bytes) -> Work:
    client, server = MeshConnection.client(Settings(), 0.0), MeshConnection.server(Settings(), 0.0)

    def carry() -> None:
        while client.wants_write or server.wants_write:
            if client.wants_write:
                server.receive_data(b"".join(client.data_to_send()), 0.0)
            if server.wants_write:
                client.receive_data(b"".join(server.data_to_send()), 0.0)

    def work() -> None:
        number = client.send_request(_HEADER, (request,))
        carry()
        server.send_response(number, _OK, (reply,))
        carry()

    carry()
    return work


def _cpu_s(work: Work) -> float:
    """CPU seconds of one request, from a loop of about `_ROUND_S`."""
    count = 1
    while True:
        begin_s = time.process_time()
        for _ in range(count):
            work()
        took_s = time.process_time() - begin_s
        if took_s >= _ROUND_S:
            return took_s / count
        count *= 2 if took_s < _ROUND_S / 8 else max(2, int(_ROUND_S / took_s) + 1)


def _copied(work: Work) -> float:
    work()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        work()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (peak - before) / _COPIED_BODY
