"""A MOA service over RESP that says what it was asked, and an echo of plain bytes.

`crash_service.py HOST PORT RAW_PORT LOG`: a request's arguments are its id, how long it takes
(ms) and how many bytes the answer has besides; each execution is a line `method id` of LOG,
written with O_APPEND before the answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from tests.samples.demo_service import read_command


async def serve(log: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while command := await read_command(reader):
            if command[0].upper() == b"PING":
                writer.write(b"+PONG\r\n")
                continue
            params = json.loads(command[1])["params"]
            key, delay_ms, size = params["args"][:3]
            os.write(log, f"{params['m']} {key}\n".encode())
            if delay_ms:
                await asyncio.sleep(delay_ms / 1000)
            result = {"m": params["m"], "id": key, "more": "x" * size}
            body = json.dumps({"ec": 200, "em": "", "result": result}).encode()
            writer.write(b"$%d\r\n%s\r\n" % (len(body), body))
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def main() -> None:
    host, port, raw_port, path = sys.argv[1:]
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    await asyncio.start_server(lambda r, w: serve(log, r, w), host, int(port), limit=1 << 22)
    await asyncio.start_server(echo, host, int(raw_port))
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
