"""Two nodes, an agent on the first, and the ways in which a test dials from there."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from interceptor.abi import Reason
from interceptor.cgroup import Cgroup
from interceptor.maps import Destination, Maps
from interceptor.node import AgentSettings, Node
from tests.kernel import direct_server
from tests.support.lab import Lab, LabNode, Running, enter_netns, wait_until

OUTBOUND, INBOUND = 15001, 15006
PORT = 5000
DIAL_TIMEOUT_S = 5.0

Answer = dict[str, Any]
Prepare = Callable[[socket.socket], object]


def read_line(sock: socket.socket) -> Answer:
    """The one JSON line that an agent or a server answers with."""
    data = b""
    while not data.endswith(b"\n"):
        chunk = sock.recv(4096)
        if not chunk:
            raise ConnectionError(f"closed after {data!r}")
        data += chunk
    answer: Answer = json.loads(data)
    return answer


def family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def dial(host: str, port: int = PORT, prepare: Prepare | None = None) -> Answer:
    """A service's blocking connect(): who answered, and what the service itself sees."""
    with socket.socket(family_of(host), socket.SOCK_STREAM) as sock:
        sock.settimeout(DIAL_TIMEOUT_S)
        if prepare:
            prepare(sock)
        sock.connect((host, port))
        return read_line(sock) | {"getpeername": list(sock.getpeername()[:2])}


@dataclass(slots=True)
class Mesh:
    """The first node has the agent and the callers; the second the servers."""

    lab: Lab
    node: LabNode = field(init=False)
    far: LabNode = field(init=False)
    kernel: Node = field(init=False)
    agents: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.node = self.lab.add_node("a")
        self.far = self.lab.add_node("b")
        self.kernel = Node(self.node.root)

    @property
    def agent(self) -> Running:
        return self.agents[-1]

    def settings(self, **changes: Any) -> AgentSettings:
        """For an install from the test's own process."""
        values: dict[str, Any] = {
            "cgroup": self.node.agent,
            "outbound_port": OUTBOUND,
            "inbound_port": INBOUND,
            "mark": 0,
            "heartbeat_max_age_ns": 2_000_000_000,
            "netns": self.node.netns,
        }
        return AgentSettings(**(values | changes))

    def start_agent(self, *arguments: str, cgroup: Cgroup | None = None) -> Running:
        cgroup = cgroup or self.node.agent
        control = self.node.directory / f"control{len(self.agents)}"
        running = self.node.python(
            "agent",
            *("-m", "tests.support.stub_agent", "--root", str(self.node.root)),
            *("--cgroup", cgroup.name, "--control", str(control), *arguments),
            cgroup=cgroup,
        )
        running.wait_line("ready")
        self.agents.append(running)
        return running

    def pulse(self, state: str) -> None:
        """`on` or `off`: whether the agent says that its event loop turns."""
        path = str(self.node.directory / f"control{len(self.agents) - 1}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(f"pulse {state}".encode(), path)

    def serve(self, *endpoints: str, on: LabNode | None = None, device: str = "") -> Running:
        """A direct server, outside the mesh; on the far node unless told otherwise."""
        node = on or self.far
        running = node.python(
            "server",
            *("-S", str(Path(direct_server.__file__)), "--device", device, *endpoints),
            cgroup=Cgroup(f"/{self.lab.id}/outside"),
        )
        running.wait_line("ready")
        return running

    def serve_far(self) -> Running:
        return self.serve(f"{self.far.ip4}:{PORT}", f"[{self.far.ip6}]:{PORT}")

    def include(self, *wanted: str) -> None:
        with self.kernel.maps() as maps:
            maps.set_destinations("include", map(destination, wanted))

    def exclude(self, *wanted: str) -> None:
        with self.kernel.maps() as maps:
            maps.set_destinations("exclude", map(destination, wanted))

    def include_all(self) -> None:
        self.include("0.0.0.0/0", "::/0")

    def dial(
        self,
        host: str,
        port: int = PORT,
        *,
        prepare: Prepare | None = None,
        cgroup: Cgroup | None = None,
    ) -> Answer:
        """One connection from the first node, by default from its services' cgroup."""
        answer: Answer = self.node.do(lambda: dial(host, port, prepare), cgroup=cgroup)
        return answer

    def who(self, host: str, port: int = PORT, *, cgroup: Cgroup | None = None) -> str:
        """The slot of the agent's listener that answered, or DIRECT."""
        return str(self.dial(host, port, cgroup=cgroup)["slot"])

    @contextmanager
    def counted(self) -> Iterator[dict[Reason, int]]:
        """What the counters moved by, filled in at the end of the block."""
        moved: dict[Reason, int] = {}
        with self.kernel.maps() as maps:
            before = maps.counters()
            yield moved
            after = maps.counters()
        moved.update({r: after[r] - before[r] for r in Reason if after[r] != before[r]})

    def wait_stale(self) -> None:
        """Until the agent's pulse is too old to be believed."""
        with self.kernel.maps() as maps:
            wait_until(lambda: not _is_fresh(maps), 10, "heartbeat stale")

    def wait_fresh(self) -> None:
        with self.kernel.maps() as maps:
            wait_until(lambda: _is_fresh(maps), 10, "heartbeat fresh")


def _is_fresh(maps: Maps) -> bool:
    return time.monotonic_ns() - maps.last_beat_ns() <= int(maps.cfg.heartbeat_max_age_ns)


def destination(text: str) -> Destination:
    """`network`, `network@port`."""
    network, _, port = text.partition("@")
    return Destination(ip_network(network), int(port or 0))


def answered_by_agent(answer: Answer, dialled: str) -> None:
    """Assert that the agent got the connection, and was told what the caller had dialled."""
    assert answer["slot"] in ("OUT4", "OUT6"), answer
    assert answer["original"] == dialled, answer


def in_namespace(node: LabNode, make: Callable[[], socket.socket]) -> socket.socket:
    """A socket of this process in the node's network namespace, made by a thread there."""

    def enter() -> socket.socket:
        enter_netns(node.netns)
        return make()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(enter).result()
