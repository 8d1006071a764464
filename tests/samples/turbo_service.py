#!/usr/bin/env python3
"""A plain MOA service that speaks binary packets, to copy from; it knows nothing of an agent.

    python3 -m tests.samples.turbo_service --port 5000 --codec json

Protocol: docs/PROTOCOL.md §2. Requests of one connection run at once, and replies leave in
the order in which they are ready. With `--form 9` it speaks the packets of 2015; with
`--codec hessian2` bodies are Hessian, and a body in another codec is refused with 302.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import struct
from typing import NamedTuple

from tests.samples import hessian_lite
from tests.samples.demo_service import DemoService

REQ, RESP, PING, PONG, INFO = range(1, 6)
EXT_HESSIAN = 2
MAX_BODY = 2 * 1024 * 1024


class Head(NamedTuple):
    """What stands before a body; `version` and `extension` are 0 in the shorter form."""

    opaque: int
    cmd: int
    version: int
    extension: int
    size: int


async def read_packet(reader: asyncio.StreamReader, form: str) -> tuple[Head, bytes]:
    """One packet; raises IncompleteReadError at the end, ValueError for what is none."""
    if form == "19":
        head = Head(*struct.unpack(">IBhqi", await reader.readexactly(19)))
    else:
        opaque, cmd, size = struct.unpack(">IBI", await reader.readexactly(9))
        head = Head(opaque, cmd, 0, 0, size)
    if not (REQ <= head.cmd <= INFO and 0 <= head.size <= MAX_BODY):
        raise ValueError(f"no packet: {head}")
    body = await reader.readexactly(head.size)
    if form == "9" and await reader.readexactly(2) != b"\r\n":
        raise ValueError("no CRLF behind the body")
    return head, body


def write_packet(form: str, to: Head, cmd: int, body: bytes, extension: int = 0) -> bytes:
    """The answer to a packet."""
    if form == "9":
        return struct.pack(">IBI", to.opaque, cmd, len(body)) + body + b"\r\n"
    return struct.pack(">IBhqi", to.opaque, cmd, to.version, extension, len(body)) + body


class TurboService:
    """Serves connections with the methods of `DemoService`."""

    def __init__(self, service: DemoService, form: str, codec: str) -> None:
        self._service = service
        self._form = form
        self._codec = codec

    async def on_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    head, body = await read_packet(reader, self._form)
                    if head.cmd == REQ:
                        tasks.create_task(self._answer(writer, head, body))
                    elif head.cmd == PING:
                        writer.write(write_packet(self._form, head, PONG, body))
                    elif head.cmd == INFO:
                        info = self._service.info()
                        writer.write(write_packet(self._form, head, INFO, info))
        except* (ValueError, ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer_hessian(self, body: bytes) -> bytes:
        """The reply as JSON; a body that cannot be read costs its sender only this request."""
        try:
            plain = json.dumps(hessian_lite.read(body)).encode()
        except Exception as error:
            em = f"no Hessian 2: {error!r}"
            return json.dumps({"ec": 302, "em": em, "result": None}).encode()
        return await self._service.handle(plain, came_as=body)

    async def _answer(self, writer: asyncio.StreamWriter, head: Head, body: bytes) -> None:
        is_hessian = bool(head.extension & EXT_HESSIAN)
        if is_hessian != (self._codec == "hessian2"):
            reply = json.dumps(
                {"ec": 302, "em": f"expected {self._codec}", "result": None}
            ).encode()
        elif is_hessian:
            reply = await self._answer_hessian(body)
        else:
            reply = await self._service.handle(body)
        if is_hessian:
            reply = hessian_lite.write(json.loads(reply))
        extension = EXT_HESSIAN if is_hessian else 0
        writer.write(write_packet(self._form, head, RESP, reply, extension))
        await writer.drain()


async def serve(options: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    demo = DemoService(options.service, options.name)
    service = TurboService(demo, options.form, options.codec)
    listener = await asyncio.start_server(service.on_connection, options.host, options.port)
    port = listener.sockets[0].getsockname()[1]
    demo.address = f"{options.host}:{port}"
    print(f"ready {demo.address}", flush=True)
    await stop.wait()
    listener.close()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="a plain MOA service, binary packets")
    parser.add_argument("--host", default="127.0.0.1", help="numeric address to listen on")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--service", default="/service/demo")
    parser.add_argument("--name", default="demo", help="what whoami says")
    parser.add_argument("--form", choices=["19", "9"], default="19")
    parser.add_argument("--codec", choices=["json", "hessian2"], default="json")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
