"""Two nodes, a server, and every way from the caller on A to the server on B.

Node A has the first CPU, with the load and the first hop; node B the second CPU, with the
second hop and the server. Every path crosses the same virtual link once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from interceptor.cgroup import Cgroup
from proxy.core.message import Wire
from tests.bench.peers import envoy_config, find_envoy, find_haproxy, haproxy_config
from tests.bench.tools import BenchError, Tools
from tests.support.agents import Agent, start_agent, static_registry
from tests.support.lab import Lab, LabError, LabNode, Running, connect, run, wait_until

ECHO_ONE, ECHO_TWO, ECHO_MESH = 5000, 5001, 5002
"""The server's ports: its agent steers all but the first."""
SERVICE_ONE, SERVICE_TWO, SERVICE_MESH = "/service/one", "/service/two", "/service/mesh"
HAS_MESH = any(wire.value == "mesh" for wire in Wire)
"""Whether agents speak the mesh protocol to each other."""
OUT_OF_SCOPE_NET = "10.78.0"
_LOCAL = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Route:
    """One way from the caller to the server; `hops` are the proxies on it, the first on A."""

    name: str
    host: str
    port: int
    service: str
    hops: tuple[Running, ...]
    caller: Cgroup
    """Where the load runs: only what runs in the services' cgroup is intercepted."""


@dataclass(frozen=True, slots=True)
class World:
    """What there is to be measured; `missing` says which peers are not installed."""

    tools: Tools
    a: LabNode
    b: LabNode
    cpu_a: int
    cpu_b: int
    routes: tuple[Route, ...]
    agent: Agent
    missing: tuple[str, ...]

    def route(self, name: str) -> Route | None:
        return next((route for route in self.routes if route.name == name), None)


def outside(node: LabNode) -> Cgroup:
    """A cgroup of the node whose connections are nobody's business."""
    return Cgroup(f"/{node.lab.id}/{node.name}/outside")


@contextmanager
def world(tools: Tools, only: Sequence[str] = ()) -> Iterator[World]:
    """Build it all and take it down afterwards, also after a failure.

    With `only`, paths whose name contains none of these are left out, but for the direct one.
    """
    cpus = sorted(os.sched_getaffinity(0))
    cpu_a, cpu_b = cpus[0], cpus[-1]
    with Lab() as lab:
        a, b = lab.add_node("a"), lab.add_node("b")
        for number, node in enumerate((a, b), start=1):
            address = f"{OUT_OF_SCOPE_NET}.{number}/24"
            run("ip", "-n", node.netns.name, "addr", "add", address, "dev", "eth0")
        _start_echo(tools, b, cpu_b)
        agent_a, agent_b = _start_agents(a, b, cpu_a, cpu_b)
        hops = (agent_a.process, agent_b.process)
        routes = [
            Route("direct", b.ip4, ECHO_ONE, SERVICE_ONE, (), outside(a)),
            *_haproxy_routes(a, b, cpu_a, cpu_b),
            *_envoy_routes(a, b, cpu_a, cpu_b),
            Route("moa-agent, 1 hop", b.ip4, ECHO_ONE, SERVICE_ONE, hops[:1], a.services),
            Route("moa-agent, 2 hops, RESP", b.ip4, ECHO_TWO, SERVICE_TWO, hops, a.services),
        ]
        if HAS_MESH:
            name = "moa-agent, 2 hops, mesh"
            routes.append(Route(name, b.ip4, ECHO_MESH, SERVICE_MESH, hops, a.services))
        wanted = tuple(
            route
            for route in routes
            if not only or not route.hops or any(word in route.name for word in only)
        )
        missing = [name for name, path in _peers().items() if path is None]
        yield World(tools, a, b, cpu_a, cpu_b, wanted, agent_a, tuple(missing))


def _peers() -> dict[str, str | None]:
    return {"HAProxy": find_haproxy(), "Envoy": find_envoy()}


def _start_echo(tools: Tools, b: LabNode, cpu: int) -> None:
    ports = [f"0.0.0.0:{port}" for port in (ECHO_ONE, ECHO_TWO, ECHO_MESH)]
    b.start("echo", tools.echo, str(cpu), *ports, cgroup=outside(b)).wait_line("ready")


def _start_agents(a: LabNode, b: LabNode, cpu_a: int, cpu_b: int) -> tuple[Agent, Agent]:
    steered = {
        SERVICE_TWO: [f"{b.ip4}:{ECHO_TWO}"],
        SERVICE_MESH: [f"{b.ip4}:{ECHO_MESH}?proto=resp&proto=mesh"],
    }
    known = {SERVICE_ONE: [f"{b.ip4}:{ECHO_ONE}"], **steered}
    at_a = static_registry(a.directory / "services.toml", known)
    at_b = static_registry(b.directory / "services.toml", steered)
    agents = start_agent(a, at_a), start_agent(b, at_b)
    for agent, cpu in zip(agents, (cpu_a, cpu_b), strict=True):
        pin(agent.process.pid, cpu)
        agent.mesh_on()
    return agents


def pin(pid: int, cpu: int) -> None:
    """Keep every thread of a process on one CPU."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {cpu})


def _haproxy_routes(a: LabNode, b: LabNode, cpu_a: int, cpu_b: int) -> list[Route]:
    program = find_haproxy()
    if program is None:
        return []
    one, two, far = (_LOCAL, 6001), (_LOCAL, 6002), (b.ip4, 6003)
    first = _start_proxy(a, program, cpu_a, haproxy_config({one: (b.ip4, ECHO_ONE), two: far}))
    second = _start_proxy(b, program, cpu_b, haproxy_config({far: (_LOCAL, ECHO_ONE)}))
    return [
        _peer_route(a, "HAProxy tcp, 1 hop", one, first),
        _peer_route(a, "HAProxy tcp, 2 hops", two, first, second),
    ]


def _envoy_routes(a: LabNode, b: LabNode, cpu_a: int, cpu_b: int) -> list[Route]:
    program = find_envoy()
    if program is None:
        return []
    one, two, far = (_LOCAL, 7001), (_LOCAL, 7002), (b.ip4, 7003)
    redis, redis_two, redis_far = (_LOCAL, 7004), (_LOCAL, 7005), (b.ip4, 7006)
    echo, local = (b.ip4, ECHO_ONE), (_LOCAL, ECHO_ONE)
    at_a = envoy_config({one: echo, two: far}, {redis: echo, redis_two: redis_far})
    first = _start_proxy(a, program, cpu_a, at_a)
    second = _start_proxy(b, program, cpu_b, envoy_config({far: local}, {redis_far: local}))
    return [
        _peer_route(a, "Envoy tcp_proxy, 1 hop", one, first),
        _peer_route(a, "Envoy redis_proxy, 1 hop", redis, first),
        _peer_route(a, "Envoy tcp_proxy, 2 hops", two, first, second),
        _peer_route(a, "Envoy redis_proxy, 2 hops", redis_two, first, second),
    ]


def _start_proxy(node: LabNode, program: str, cpu: int, config: str) -> Running:
    name = Path(program).name
    path = node.directory / f"{name}.{'json' if name == 'envoy' else 'cfg'}"
    path.write_text(config)
    argv = ("-db", "-f", str(path)) if name == "haproxy" else _envoy_options(path)
    # Pinned before it starts: a proxy looks at its CPUs then.
    return node.start(name, "taskset", "-c", str(cpu), program, *argv, cgroup=outside(node))


def _envoy_options(config: Path) -> tuple[str, ...]:
    return ("-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "warning")


def _peer_route(a: LabNode, name: str, at: tuple[str, int], *hops: Running) -> Route:
    host, port = at

    def answers() -> bool:
        sock = connect(host, port)
        sock.sendall(b"*1\r\n$4\r\nPING\r\n")
        return sock.recv(64) == b"+PONG\r\n"

    def is_up() -> bool:
        if any(hop.popen.poll() is not None for hop in hops):
            raise BenchError(f"{name}: exited: {[hop.output[-500:] for hop in hops]}")
        try:
            return bool(a.do(answers, cgroup=outside(a)))
        except LabError:
            return False

    wait_until(is_up, 20, f"{name} answers PING at {host}:{port}")
    return Route(name, host, port, SERVICE_ONE, hops, outside(a))
