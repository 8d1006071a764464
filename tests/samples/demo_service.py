#!/usr/bin/env python3
"""A plain MOA service to copy from: standard library only, and it knows nothing of an agent.

    python3 demo_service.py --port 5000
    redis-cli -p 5000 get '{"action":"/service/demo","params":{"m":"echo","args":["hello"]}}'

Protocol (docs/PROTOCOL.md, "MOA over RESP"): any Redis client sends GET; the key is the
request as JSON, the value is the reply as JSON. Like the servers of the original system it
answers one request at a time per connection; several connections run side by side.

With `--register redis://host:6379` it enters itself into the registry, repeats that as its
heartbeat, and takes itself out at SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote, urlsplit

MAX_ELEMENT_BYTES = 2 * 1024 * 1024
MAX_ARGUMENTS = 64
HEARTBEAT_S = 5.0
REGISTRY_TIMEOUT_S = 2.0
DRAIN_S = 5.0
"""How long requests that run at SIGTERM may take to end."""

OK, NO_URI, NOT_FOUND, NO_METHOD, FAILED = 200, 401, 501, 502, 503


class BadFrame(Exception):
    """The peer does not speak RESP: say so and hang up."""


class DemoService:
    """The methods of the service; each takes the request's positional `args`."""

    def __init__(self, uri: str, name: str) -> None:
        self.uri = uri
        self.name = name
        self.address = ""
        self.received = self.processed = self.failed = 0
        self._body = b""

    async def echo(self, *args: Any) -> Any:
        """The arguments back: one alone, several as a list."""
        return args[0] if len(args) == 1 else list(args)

    async def whoami(self) -> dict[str, str]:
        """Which process answered."""
        return {"address": self.address, "name": self.name}

    async def sleep(self, ms: float) -> float:
        """Answer after `ms` milliseconds."""
        await asyncio.sleep(ms / 1000)
        return ms

    async def fail(self, message: str = "asked to fail") -> None:
        """Raise, as a service with a bug does."""
        raise RuntimeError(message)

    async def big(self, size: int) -> str:
        """A text of `size` bytes."""
        if not 0 <= size <= MAX_ELEMENT_BYTES:
            raise ValueError(f"size {size} is not within 0..{MAX_ELEMENT_BYTES}")
        return "x" * size

    async def digest(self, *_args: Any) -> str:
        """The SHA-256 of the request's body, as it came."""
        return hashlib.sha256(self._body).hexdigest()

    async def handle(self, body: bytes, came_as: bytes = b"") -> bytes:
        """Answer one request; whatever goes wrong becomes an `ec`, never a closed connection.

        `came_as`: the body as it was on the wire, when that was no JSON.
        """
        self.received += 1
        # Methods run from here to their first wait without another request between.
        self._body = came_as or body
        code, message, result = await self._call(body)
        if code == OK:
            self.processed += 1
        else:
            self.failed += 1
        return json.dumps({"ec": code, "em": message, "result": result}).encode()

    async def _call(self, body: bytes) -> tuple[int, str, Any]:
        try:
            request = json.loads(body)
            action = str(request["action"]).partition("#")[0]
            params = request.get("params") or {}
            name, args = str(params.get("m", "")), list(params.get("args") or [])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return NO_URI, f"not a MOA request: {error!r}", None
        if action != self.uri:
            return NOT_FOUND, f"service {action} is not served here, only {self.uri}", None
        method = self._method(name)
        if method is None:
            return NO_METHOD, f"{self.uri} has no method {name!r}", None
        try:
            return OK, "", await method(*args)
        except Exception as error:
            return FAILED, f"{type(error).__name__}: {error}", None

    def _method(self, name: str) -> Callable[..., Awaitable[Any]] | None:
        known = (self.echo, self.whoami, self.sleep, self.fail, self.big, self.digest)
        methods = {method.__name__: method for method in known}
        return methods.get(name.lower())  # old servers match it without case

    def info(self) -> bytes:
        """The counters that INFO answers with."""
        moa = {"recv": self.received, "proc": self.processed, "error": self.failed}
        return json.dumps({"moa": moa}).encode()


class Server:
    """The connections of one service."""

    def __init__(self, service: DemoService) -> None:
        self._service = service
        self._busy: set[asyncio.StreamWriter] = set()
        self._open: set[asyncio.StreamWriter] = set()

    async def on_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve one connection until the client leaves."""
        self._open.add(writer)
        try:
            while command := await read_command(reader):
                self._busy.add(writer)
                writer.write(await self._answer(command))
                await writer.drain()
                self._busy.discard(writer)
                if command[0].upper() == b"QUIT":
                    break
        except BadFrame as error:
            writer.write(b"-ERR Protocol error: %s\r\n" % str(error).encode())
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._busy.discard(writer)
            self._open.discard(writer)
            writer.close()

    async def _answer(self, command: list[bytes]) -> bytes:
        name = command[0].upper()
        if name == b"GET" and len(command) == 2:
            body = await self._service.handle(command[1])
            return b"$%d\r\n%s\r\n" % (len(body), body)
        if name == b"PING":
            return b"+PONG\r\n"
        if name == b"INFO":
            return b"+%s\r\n" % self._service.info()
        if name == b"HELLO":
            return hello(command)
        if name in (b"SELECT", b"QUIT") or command[:2] == [b"CLIENT", b"SETINFO"]:
            return b"+OK\r\n"
        return b"-ERR unknown command '%s'\r\n" % name[:64].replace(b"\r", b"").replace(b"\n", b"")

    async def drain(self) -> None:
        """Let running requests end, then close every connection."""
        await self._until_empty(self._busy)
        for writer in list(self._open):
            writer.close()
        await self._until_empty(self._open)

    async def _until_empty(self, writers: set[asyncio.StreamWriter]) -> None:
        deadline_s = time.monotonic() + DRAIN_S
        while writers and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)


def hello(command: list[bytes]) -> bytes:
    """Greet as Redis does; redis-py 8 does not connect to a server that refuses HELLO 3.

    The replies of this service are the same bytes in RESP2 and RESP3.
    """
    version = command[1] if len(command) > 1 else b"2"
    if version not in (b"2", b"3"):
        return b"-NOPROTO unsupported protocol version\r\n"
    head = b"%3\r\n" if version == b"3" else b"*6\r\n"
    return (
        head + b"$6\r\nserver\r\n$3\r\nmoa\r\n$5\r\nproto\r\n:" + version
        + b"\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"
    )  # fmt: skip


async def read_command(reader: asyncio.StreamReader) -> list[bytes]:
    """Read `*2\\r\\n$3\\r\\nGET\\r\\n$<n>\\r\\n<json>\\r\\n`, or an inline `PING\\r\\n`.

    Returns [] when the client has closed; raises BadFrame.
    """
    while True:
        line = await read_line(reader)
        if not line:
            return []
        if not line.startswith(b"*"):
            words = line.split()
        else:
            count = number(line[1:], MAX_ARGUMENTS)
            words = [await read_bulk(reader) for _ in range(count)]
        if words:  # empty lines and empty arrays are passed over, as redis-server does
            return words


async def read_bulk(reader: asyncio.StreamReader) -> bytes:
    line = await read_line(reader)
    if not line.startswith(b"$"):
        raise BadFrame("expected '$'")
    size = number(line[1:], MAX_ELEMENT_BYTES)
    return (await reader.readexactly(size + 2))[:-2]


async def read_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError:
        raise BadFrame("too big inline request") from None


def number(text: bytes, limit: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise BadFrame("invalid length") from None
    if not 0 <= value <= limit:
        raise BadFrame("invalid length")
    return value


# One change of the registry is one script, so that a reader never sees half of it
# (docs/PROTOCOL.md, "Registry on Redis").
CHANGE = """
local set, version_key, heartbeats, marks, offline = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local name, address = ARGV[1], ARGV[2]
local version, now = redis.call('GET', version_key), redis.call('TIME')
local now_ms = string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000))
local function publish()
  local incarnation, counter = string.match(version or '', '^(%d+)%-(%d+)$')
  if not incarnation then incarnation, counter = now[1] .. string.format('%06d', now[2]), 0 end
  version = incarnation .. '-' .. string.format('%d', counter + 1)
  redis.call('SET', version_key, version)
  redis.call('PUBLISH', 'moa:changed', name .. ' ' .. version)
end
local function members()
  local found = {}
  for _, member in ipairs(redis.call('SMEMBERS', set)) do
    if string.match(member, '^[^?]*') == address then found[#found + 1] = member end
  end
  return found
end

local member, changed = ARGV[3], false
for _, old in ipairs(members()) do
  if old ~= member then
    redis.call('SREM', set, old)
    redis.call('ZREM', heartbeats, old)
    changed = true
  end
end
redis.call('HDEL', offline, address)
if member ~= '' then
  if redis.call('SADD', set, member) == 1 then changed = true end
  redis.call('ZADD', heartbeats, now_ms, member)
else
  for _, field in ipairs(redis.call('HKEYS', marks)) do
    if string.match(field, '^[^ ]*') == address then redis.call('HDEL', marks, field) end
  end
end
if not changed and (version or member == '') then return {version or '', 0} end
publish()
return {version, 1}
"""


class Registration:
    """This process's entry in the registry."""

    def __init__(self, url: str, service: str, member: str) -> None:
        self._url = urlsplit(url)
        self._service = service
        self._member = member

    async def heartbeat(self) -> None:
        """Enter now and again every HEARTBEAT_S; a registry that is away is asked again."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self.register()

    async def register(self) -> None:
        await self._run(["SADD", "moa:services", self._service], self._change(self._member))

    async def deregister(self) -> None:
        await self._run(self._change(""))

    def _change(self, member: str) -> list[str]:
        kinds = ("service", "version", "heartbeat", "marks", "offline")
        keys = [f"moa:{kind}:{{{self._service}}}" for kind in kinds]
        address = self._member.partition("?")[0]
        return ["EVAL", CHANGE, str(len(keys)), *keys, self._service, address, member]

    async def _run(self, *commands: list[str]) -> None:
        try:
            async with asyncio.timeout(REGISTRY_TIMEOUT_S):
                await self._talk(*commands)
        except (OSError, TimeoutError, BadFrame, asyncio.IncompleteReadError) as error:
            where = f"{self._url.hostname}:{self._url.port or 6379}"
            print(f"registry {where}: {commands[-1][0]}: {error!r}", file=sys.stderr, flush=True)

    async def _talk(self, *commands: list[str]) -> None:
        url = self._url
        reader, writer = await asyncio.open_connection(url.hostname, url.port or 6379)
        try:
            start = []
            if url.password:
                user = [unquote(url.username)] if url.username else []
                start.append(["AUTH", *user, unquote(url.password)])
            if url.path.strip("/"):
                start.append(["SELECT", url.path.strip("/")])
            for command in [*start, *commands]:
                writer.write(encode(command))
                answer = await read_line(reader)
                if answer.startswith(b"-") or not answer:
                    raise BadFrame(answer.decode(errors="replace").strip() or "closed")
        finally:
            writer.close()


def encode(words: list[str]) -> bytes:
    encoded = [word.encode() for word in words]
    elements = [b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded]
    return b"*%d\r\n%s" % (len(words), b"".join(elements))


async def serve(options: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number_ in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number_, stop.set)
    service = DemoService(options.service.partition("#")[0], options.name)
    connections = Server(service)
    listener = await asyncio.start_server(
        connections.on_connection, options.host, options.port, backlog=1024
    )
    port = listener.sockets[0].getsockname()[1]
    host = f"[{options.host}]" if ":" in options.host else options.host
    service.address = f"{host}:{port}"
    member = f"{service.address}?{options.params}" if options.params else service.address
    registration = (
        Registration(options.register, options.service, member) if options.register else None
    )
    if registration is not None:
        await registration.register()
    print(f"ready {service.address}", flush=True)
    async with asyncio.TaskGroup() as tasks:
        beat = tasks.create_task(registration.heartbeat()) if registration is not None else None
        await stop.wait()
        if beat is not None:
            beat.cancel()
    if registration is not None:
        await registration.deregister()
    listener.close()
    await connections.drain()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="a plain MOA service")
    parser.add_argument("--host", default="127.0.0.1", help="numeric address to listen on")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--service", default="/service/demo", help="uri or uri#group")
    parser.add_argument("--name", default="demo", help="what whoami says")
    parser.add_argument(
        "--register", metavar="URL", help="redis://[user:password@]host[:port][/db]"
    )
    parser.add_argument("--params", default="", help="of the member, as in 'weight=50&zone=a'")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
