"""What the tests of proxy/net share: both event loops, socket pairs, and a scripted server."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Callable

from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.core.policy import DEFAULT_POLICY, Policies, ServicePolicy
from proxy.core.routing import Router
from proxy.net.forward import Forwarder, ForwardSettings
from proxy.net.front import Front
from proxy.net.lane import LaneSettings
from proxy.net.local_call import LocalServices
from proxy.net.pool_types import PoolSettings
from proxy.net.served import SessionSettings
from proxy.net.stream import Stream
from proxy.obs.metrics import Metrics
from proxy.wire.mesh import Settings
from proxy.wire.resp import Command, Limits, RequestParser
from proxy.wire.turbo import Cmd, Form, Packet, PacketParser, encode_answer

LIMITS = Limits()
WITHIN_S = 5.0


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one loopback connection, both non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for end in (near, far):
        end.setblocking(False)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def fill(sock: socket.socket) -> int:
    """Send until the kernel takes no more; how many bytes that were."""
    sent = 0
    try:
        while True:
            sent += sock.send(b"x" * 65536)
    except BlockingIOError:
        return sent


def is_open(sock: socket.socket) -> bool:
    return sock.fileno() >= 0


async def until(condition: Callable[[], object], what: str = "condition") -> None:
    """Let the loop turn until the condition is true."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + WITHIN_S
    while not condition():
        assert loop.time() < deadline_s, f"{what}: not within {WITHIN_S} s"
        await asyncio.sleep(0.001)


async def turns(count: int = 5) -> None:
    """Let the loop handle what is ready; for showing that nothing more happens."""
    for _ in range(count):
        await asyncio.sleep(0)


async def read_exactly(sock: socket.socket, count: int) -> bytes:
    """Read from the far end of a connection."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        chunk = await asyncio.wait_for(loop.sock_recv(sock, count - len(data)), WITHIN_S)
        assert chunk, f"ended after {data!r}, expected {count} bytes"
        data += chunk
    return data


async def read_end(sock: socket.socket) -> bytes | type[ConnectionError]:
    """Read until the FIN and return what came, or the error's class after a reset."""
    loop = asyncio.get_running_loop()
    data = b""
    try:
        while chunk := await asyncio.wait_for(loop.sock_recv(sock, 65536), WITHIN_S):
            data += chunk
    except ConnectionError as error:
        return type(error)
    return data


class Recorder:
    """Everything that a stream calls back, in order."""

    def __init__(self, stream: Stream) -> None:
        self.events: list[str] = []
        self.data = bytearray()
        self.error: OSError | None = None
        self.when_data: Callable[[], None] = lambda: None
        stream.on_data = self._on_data
        stream.on_eof = lambda: self.events.append("eof")
        stream.on_drain = lambda: self.events.append("drain")
        stream.on_close = self._on_close

    def _on_data(self, data: bytes) -> None:
        self.data += data
        if self.events[-1:] != ["data"]:
            self.events.append("data")
        self.when_data()

    def _on_close(self, error: OSError | None) -> None:
        self.events.append("close")
        self.error = error


class Server:
    """A RESP server whose every step the test makes: it answers only when told to."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.address = Address(*sock.getsockname()[:2])
        self.connections: list[Connection] = []
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, host: str = "127.0.0.1", port: int = 0) -> Server:
        sock = socket.create_server((host, port), reuse_port=False)
        sock.setblocking(False)
        server = cls(sock)
        asyncio.get_running_loop().add_reader(sock.fileno(), server._on_readable)
        return server

    def _on_readable(self) -> None:
        sock, _ = self._sock.accept()
        sock.setblocking(False)
        self.connections.append(Connection(sock))

    async def connection(self, number: int = 0) -> Connection:
        """The connection with this number, as soon as it is there."""
        await until(lambda: len(self.connections) > number, f"connection {number}")
        return self.connections[number]

    def stop_listening(self) -> None:
        """From now on connections are refused; those that stand go on."""
        if is_open(self._sock):
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()

    def close(self) -> None:
        self.stop_listening()
        for connection in self.connections:
            connection.close()


class Connection:
    """The server's side of one accepted connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._parser = RequestParser(LIMITS)
        self._commands: list[Command] = []

    async def command(self) -> Command:
        """The next command of the client."""
        loop = asyncio.get_running_loop()
        while not self._commands:
            data = await asyncio.wait_for(loop.sock_recv(self.sock, 65536), WITHIN_S)
            assert data, "the client closed, expected a command"
            self._commands += self._parser.feed(data)
        return self._commands.pop(0)

    def has_more(self) -> bool:
        """Whether the client has sent anything that was not read yet."""
        if self._commands:
            return True
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False

    def send(self, data: bytes) -> None:
        assert self.sock.send(data) == len(data)

    async def answer(self, reply: bytes) -> Command:
        """Wait for a command and answer it."""
        command = await self.command()
        self.send(reply)
        return command

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        reset(self.sock)


class PacketConnection:
    """The server's side of a connection that carries binary packets."""

    def __init__(self, sock: socket.socket, form: Form = Form.PACKET19) -> None:
        self.sock = sock
        self._parser = PacketParser(form=form)
        self._packets: list[Packet] = []

    async def packet(self) -> Packet:
        """The next packet of the other side."""
        loop = asyncio.get_running_loop()
        while not self._packets:
            data = await asyncio.wait_for(loop.sock_recv(self.sock, 65536), WITHIN_S)
            assert data, "the other side closed, expected a packet"
            self._packets += self._parser.feed(data)
        return self._packets.pop(0)

    def answer(self, to: Packet, body: bytes, extension: int = 0) -> bytes:
        """Send a RESP to a packet; its bytes."""
        data = encode_answer(to, Cmd.RESP, body, extension)
        self.send(data)
        return data

    def send(self, data: bytes) -> None:
        assert self.sock.send(data) == len(data)


def pool_settings(**changes: float) -> PoolSettings:
    values = {
        "size": 2,
        "shared_size": 2,
        "shared_requests": 128,
        "queue": 8,
        "connect_timeout_s": 2.0,
        "idle_ping_s": 60.0,
        "idle_close_s": 120.0,
        "mark": 0,
    } | changes
    return PoolSettings(
        size=int(values["size"]),
        shared_size=int(values["shared_size"]),
        shared_requests=int(values["shared_requests"]),
        queue=int(values["queue"]),
        connect_timeout_s=values["connect_timeout_s"],
        idle_ping_s=values["idle_ping_s"],
        idle_close_s=values["idle_close_s"],
        mark=0,
        max_reply_bytes=LIMITS.max_element,
    )


def table_of(uri: str, *addresses: Address) -> ServiceTable:
    return ServiceTable.build({ServiceKey(uri): [Instance(a) for a in addresses]})


def forwarder_of(
    table: ServiceTable,
    pool: PoolSettings | None = None,
    timeout_s: float = WITHIN_S,
    policy: ServicePolicy = DEFAULT_POLICY,
) -> Forwarder:
    made = Forwarder(
        asyncio.get_running_loop(),
        ForwardSettings(
            timeout_s=timeout_s,
            max_body_bytes=LIMITS.max_element,
            pool=pool or pool_settings(),
            policies=Policies(policy),
        ),
        Router(zone="", default_group="*", pre=False),
        Metrics(),
        random.Random(1),
        lambda _address: None,
    )
    made.update(table)
    return made


def local_of(forwarder: Forwarder) -> LocalServices:
    """Local services from the forwarder's own kind of pools."""
    made = forwarder.settings
    return LocalServices(
        forwarder.loop, made.pool, forwarder.metrics, made.timeout_s, made.max_body_bytes
    )


def front_of(
    forwarder: Forwarder,
    settings: SessionSettings,
    on_end: Callable[[], None] = lambda: None,
    local: LocalServices | None = None,
) -> Front:
    """A front whose agents are served from the forwarder's own kind of pools."""
    return Front(settings, forwarder, on_end, Settings(), local or local_of(forwarder))


def session_settings(**changes: float) -> SessionSettings:
    values = {
        "max_pending_bytes": 256 * 1024,
        "pipeline_depth": 1,
        "packets_at_once": 128,
        "detect_wait_s": 0.02,
        "request_read_timeout_s": 0.1,
    } | changes
    return SessionSettings(
        limits=LIMITS,
        max_pending_bytes=int(values["max_pending_bytes"]),
        pipeline_depth=int(values["pipeline_depth"]),
        packets_at_once=int(values["packets_at_once"]),
        max_packet=LIMITS.max_element,
        detect_wait_s=values["detect_wait_s"],
        request_read_timeout_s=values["request_read_timeout_s"],
        lane=LaneSettings(LIMITS, connect_timeout_s=2.0, patience_s=2.0, mark=0),
    )
