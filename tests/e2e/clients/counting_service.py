"""A MOA service that writes down every request before it answers: what was really executed.

`--log FILE` gets a line `method id` for each execution, with O_APPEND, so that it survives
kill -9. `--mode FILE` is read for each request: `304` answers that, `slow MS` waits first,
anything else is well. Old fashioned: one request at a time on a connection.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path
from typing import Any

from tests.samples.demo_service import read_command


class CountingService:
    def __init__(self, log: int, mode: Path) -> None:
        self._log = log
        self._mode = mode

    async def on_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while command := await read_command(reader):
                writer.write(await self._answer(command))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, command: list[bytes]) -> bytes:
        if command[0].upper() == b"PING":
            return b"+PONG\r\n"
        params: dict[str, Any] = json.loads(command[1])["params"]
        os.write(self._log, f"{params['m']} {params['args'][0]}\n".encode())
        word, _, amount = self._mode.read_text().partition(" ")
        if word == "slow":
            await asyncio.sleep(int(amount) / 1000)
        ec = 304 if word == "304" else 200
        body = json.dumps({"ec": ec, "em": "", "result": None}).encode()
        return b"$%d\r\n%s\r\n" % (len(body), body)


async def serve(options: argparse.Namespace) -> None:
    log = os.open(options.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    service = CountingService(log, Path(options.mode))
    server = await asyncio.start_server(service.on_connection, options.host, options.port)
    print("ready", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--mode", required=True)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
