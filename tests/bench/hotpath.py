"""What one request costs an agent: CPU time, and instructions of user space.

The agent's net layer runs in a process of its own, with uvloop and real sockets; this process is
its client and its server, one request at a time, and is not counted. CPU time is the agent's
alone, kernel included, the least of several rounds. It still varies by a third on a busy machine;
instructions do not, and are what to compare two versions by (`--instructions`, by valgrind, which
sees no kernel and takes a minute).
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from proxy.wire.mesh import (
    MeshConnection,
    RequestHeader,
    RequestReceived,
    ResponseHeader,
    ResponseReceived,
    Settings,
)
from proxy.wire.resp import bulk, encode_command
from tests.bench import hotpath_agent
from tests.bench.hotpath_agent import CASES, URI, Case
from tests.bench.tools import BenchError
from tests.support.lab import REPO

_BODY = b'{"action":"%s","params":{"m":"echo","args":["%s"]}}' % (URI.encode(), b"x" * 960)
_REPLY = b'{"ec":200,"em":"","result":"%s"}' % (b"x" * 990)
_WARM_UP = 100
_COUNTED = 500
_ROUND = 1000
_WITHIN_S = 300.0


@dataclass(frozen=True, slots=True)
class PathCost:
    """`us`: CPU time, the least and the median round; `instructions` is None if not counted."""

    case: Case
    us: float
    median_us: float
    instructions: int | None


def measure(rounds: int, *, instructions: bool) -> list[PathCost]:
    """Every case, in turns. Raises BenchError."""
    seen: dict[Case, list[float]] = {case: [] for case in CASES}
    for _ in range(max(3, rounds)):
        for case in CASES:
            seen[case].append(cpu_us(case))
    return [
        PathCost(case, min(us), sorted(us)[len(us) // 2], _count(case) if instructions else None)
        for case, us in seen.items()
    ]


def table(costs: list[PathCost]) -> str:
    lines = ["| path | CPU us, least | median | instructions |", "|---|---|---|---|"]
    for cost in costs:
        count = "" if cost.instructions is None else f"{cost.instructions:,}".replace(",", " ")
        lines.append(f"| {cost.case} | {cost.us:.1f} | {cost.median_us:.1f} | {count} |")
    return "\n".join(lines)


def cpu_us(case: Case, warm_up: int = _WARM_UP, count: int = _ROUND) -> float:
    """CPU time of one request, the mean of a round of `count`."""
    with _Agent(case, []) as agent:
        agent.carry(warm_up)
        before_s = agent.cpu_s()
        agent.carry(count)
        return 1e6 * (agent.cpu_s() - before_s) / count


def _count(case: Case) -> int:
    """Instructions of one request in user space."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise BenchError("--instructions needs valgrind, which is not installed")
    with tempfile.TemporaryDirectory(prefix="moa-bench-") as directory:
        log = Path(directory) / "log"
        prefix = [
            valgrind,
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--log-file={log}",
            f"--callgrind-out-file={directory}/out",
        ]
        with _Agent(case, prefix) as agent:
            agent.carry(_WARM_UP)
            agent.instrument("on")
            agent.carry(_COUNTED)
            agent.instrument("off")
        found = re.search(r"Collected : (\d+)", log.read_text())
    if found is None:
        raise BenchError(f"valgrind counted nothing for {case}")
    return int(found[1]) // _COUNTED


class _Agent:
    """The process with the agent in it, and both ends of what it carries."""

    def __init__(self, case: Case, prefix: list[str]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_WITHIN_S)
        with socket.create_server(("127.0.0.1", 0)) as door:
            self._client = socket.create_connection(door.getsockname())
            inner, _ = door.accept()
        port = self._listener.getsockname()[1]
        inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number, fd = CASES.index(case), inner.fileno()
        # As agents run: by what was compiled, when it was.
        command = [sys.executable, "-P", "-m", hotpath_agent.__name__, str(number), str(fd),
                   str(port)]  # fmt: skip
        path = f"{REPO / 'build/compiled'}:{REPO}"
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": path}
        self._process = subprocess.Popen([*prefix, *command], pass_fds=[fd], env=environment)
        inner.close()
        self._near: _End = _NearMesh() if case.near_speaks_mesh else _NearResp()
        self._far: _End = _FarMesh() if case.far_speaks_mesh else _FarResp()
        self._server = self._listen()

    def _listen(self) -> socket.socket:
        """The agent dials at once over mesh, and else with the first request."""
        near, far = self._near, self._far
        self._client.settimeout(_WITHIN_S)
        self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if isinstance(near, _NearMesh):
            near.greet(self._client)
        if not isinstance(far, _FarMesh):
            near.begin(self._client)
        server, _ = self._listener.accept()
        server.settimeout(_WITHIN_S)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if isinstance(far, _FarMesh):
            far.greet(server)
        else:
            far.finish(server)
            near.finish(self._client)
        return server

    def carry(self, count: int) -> None:
        """So many requests, one after the other."""
        for _ in range(count):
            self._near.begin(self._client)
            self._far.finish(self._server)
            self._near.finish(self._client)

    def cpu_s(self) -> float:
        """CPU time of the agent's process so far: its clock, as the kernel numbers those."""
        return time.clock_gettime((~self._process.pid << 3) | 2)

    def instrument(self, state: str) -> None:
        control = ["callgrind_control", "-i", state, str(self._process.pid)]
        subprocess.run(control, check=True, capture_output=True)

    def __enter__(self) -> _Agent:
        return self

    def __exit__(self, *_: object) -> None:
        """It ends when its client has gone."""
        self._client.close()
        self._server.close()
        self._listener.close()
        try:
            self._process.wait(_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# The ends


class _End:
    """Asks or answers on a blocking socket."""

    def begin(self, sock: socket.socket) -> None:
        """Ask."""

    def finish(self, sock: socket.socket) -> None:
        """Take one message as a whole; who serves answers it."""
        raise NotImplementedError


class _NearResp(_End):
    def begin(self, sock: socket.socket) -> None:
        sock.sendall(encode_command(b"GET", _BODY))

    def finish(self, sock: socket.socket) -> None:
        _read(sock, len(bulk(_REPLY)))


class _FarResp(_End):
    def finish(self, sock: socket.socket) -> None:
        _read(sock, len(encode_command(b"GET", _BODY)))
        sock.sendall(bulk(_REPLY))


class _Mesh(_End):
    def __init__(self, connection: MeshConnection) -> None:
        self._connection = connection

    def greet(self, sock: socket.socket) -> None:
        """Say HELLO and hear it."""
        self._flush(sock)
        self._events(sock)

    def _flush(self, sock: socket.socket) -> None:
        while self._connection.wants_write:
            sock.sendall(b"".join(self._connection.data_to_send()))

    def _events(self, sock: socket.socket) -> list[object]:
        data = sock.recv(1 << 16)
        if not data:
            raise BenchError("the agent ended a mesh connection")
        events: list[object] = [*self._connection.receive_data(data, time.monotonic())]
        self._flush(sock)
        return events


class _NearMesh(_Mesh):
    def __init__(self) -> None:
        super().__init__(MeshConnection.client(Settings(), time.monotonic()))

    def begin(self, sock: socket.socket) -> None:
        header = RequestHeader(
            URI, "echo", deadline_ms=4999, source_app="app", source_zone="zone",
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        )  # fmt: skip
        self._connection.send_request(header, _BODY)
        self._flush(sock)

    def finish(self, sock: socket.socket) -> None:
        while not any(isinstance(event, ResponseReceived) for event in self._events(sock)):
            pass


class _FarMesh(_Mesh):
    def __init__(self) -> None:
        super().__init__(MeshConnection.server(Settings(), time.monotonic()))

    def finish(self, sock: socket.socket) -> None:
        while True:
            for event in self._events(sock):
                if isinstance(event, RequestReceived):
                    header = ResponseHeader(200, load=1)
                    self._connection.send_response(event.request_id, header, _REPLY)
                    self._flush(sock)
                    return


def _read(sock: socket.socket, count: int) -> None:
    while count > 0:
        data = sock.recv(count)
        if not data:
            raise BenchError("the agent ended a connection")
        count -= len(data)
