"""`python -m tests.soak --minutes 30`: mixed load, and what it leaves in the agent.

A has callers and an agent, B a service behind an agent of its own, C a plain service and an
HTTP server that is in scope but is not MOA. Meanwhile an instance is killed and started
again, the registry's file is rewritten, and clients leave in the middle of a request. It
fails when, at the end and with all clients gone, an agent holds more descriptors than at the
start or its memory has grown.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tests.support.agents import Agent, start_agent, start_service, static_registry
from tests.support.lab import REPO, Lab, Running, connect, wait_until

SERVICE, OTHER = "/service/demo", "/service/other"
PORT, OTHER_PORT, HTTP_PORT = 5000, 5001, 8080
SAMPLE_S = 10.0
WARM_UP_SHARE = 0.2
ALLOWED_GROWTH_MIB = 3.0
ALLOWED_FAILED_SHARE = 0.001
"""Of routed requests: those that were under way when their instance was killed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One agent at one moment; its memory as the unique set size, which no other process moves."""

    at_s: float
    agent: str
    uss_mib: float
    descriptors: int
    connections: int
    requests: int
    failed: int


def sample(agent: Agent, started_s: float) -> Sample:
    process = psutil.Process(agent.process.pid)
    status = agent.status()
    return Sample(
        at_s=round(time.monotonic() - started_s, 1),
        agent=agent.node.name,
        uss_mib=round(process.memory_full_info().uss / 2**20, 2),
        descriptors=process.num_fds(),
        connections=int(status["connections"]["outbound"] + status["connections"]["inbound"]),
        requests=status["requests"]["total"],
        failed=status["requests"]["failed"],
    )


def request(uri: str, method: str, *args: object) -> bytes:
    body = json.dumps({"action": uri, "params": {"m": method, "args": args}}).encode()
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(body), body)


# What clients do, one at a time; each with the addresses that it may dial


def short_call(host: str) -> None:
    with connect(host, PORT) as sock:
        sock.sendall(request(SERVICE, "echo", "x" * random.randrange(4000)))
        sock.recv(65536)


def pipeline(host: str) -> None:
    count = 200
    with connect(host, PORT) as sock:
        sock.sendall(request(SERVICE, "echo", "y") * count)
        stream = sock.makefile("rb")
        for _ in range(count):
            stream.read(int(stream.readline()[1:]) + 2)


def two_services(host: str) -> None:
    with connect(host, PORT) as sock:
        for uri in (SERVICE, OTHER, SERVICE):
            sock.sendall(request(uri, "whoami"))
            sock.recv(65536)


def leave_at_once(host: str) -> None:
    """Leaves while its request is under way, by a reset."""
    with connect(host, PORT) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(request(SERVICE, "sleep", 50))


def half_request(host: str) -> None:
    with connect(host, PORT) as sock:
        sock.sendall(request(SERVICE, "echo", "z" * 100)[:60])


def garbage(host: str) -> None:
    with connect(host, PORT) as sock:
        sock.sendall(b"*1\r\n$-7\r\nboom\r\n")
        sock.recv(4096)


def unknown_service(host: str) -> None:
    with connect(host, PORT) as sock:
        sock.sendall(request("/service/nobody", "whoami"))
        sock.recv(4096)


def http(host: str) -> None:
    with connect(host, HTTP_PORT) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while sock.recv(65536):
            pass


ACTS: tuple[tuple[Callable[[str], None], int], ...] = (
    (short_call, 10),
    (pipeline, 2),
    (two_services, 4),
    (leave_at_once, 2),
    (half_request, 2),
    (garbage, 1),
    (unknown_service, 2),
    (http, 2),
)


def client(b: str, c: str, deadline_s: float) -> dict[str, int]:
    """Act at random until the deadline; how often what failed."""
    acts, weights = zip(*ACTS, strict=True)
    failures: dict[str, int] = {}
    while time.monotonic() < deadline_s:
        act = random.choices(acts, weights)[0]
        host = c if act is http else random.choice((b, c))
        try:
            act(host)
        except (OSError, ValueError) as e:
            key = f"{act.__name__}: {e}"
            failures[key] = failures.get(key, 0) + 1
    return failures


def disturb(lab: Lab, registry: Path) -> Iterator[str]:
    """Kill and restart an instance, rewrite the registry; one act at each call."""
    b, c = lab.nodes["b"], lab.nodes["c"]
    both = [f"{b.ip4}:{PORT}", f"{c.ip4}:{PORT}"]
    other = [f"{c.ip4}:{OTHER_PORT}"]
    victim: Running | None = None
    while True:
        if victim is None:
            victim = next(
                p
                for p in lab.processes
                if p.name == f"c/service-c-{PORT}" and p.popen.poll() is None
            )
            victim.kill()
            yield "killed C"
        else:
            start_service(c, PORT, SERVICE)
            victim = None
            yield "started C"
        extra = [f"10.77.0.{n}:{PORT}" for n in range(100, 100 + random.randrange(20))]
        static_registry(registry, {SERVICE: both, OTHER: other, "/service/x": extra})
        yield f"registry with {len(extra)} more instances"


def soak(minutes: float, report: Path) -> int:
    with Lab() as lab:
        a, b, c = (lab.add_node(name) for name in "abc")
        for node, port, uri in ((b, PORT, SERVICE), (c, PORT, SERVICE), (c, OTHER_PORT, OTHER)):
            start_service(node, port, uri)
        c.python("http", "-m", "http.server", "--bind", c.ip4, str(HTTP_PORT))
        registry = lab.directory / "services.toml"
        lines = static_registry(
            registry,
            {SERVICE: [f"{b.ip4}:{PORT}", f"{c.ip4}:{PORT}"], OTHER: [f"{c.ip4}:{OTHER_PORT}"]},
        )
        short = "[limits]\nrequest_read_timeout_ms = 2000\nidle_ping_s = 2\nidle_close_s = 8\n"
        agents = [start_agent(node, lines, short) for node in (a, b)]
        for agent in agents:
            agent.mesh_on()
        return _run(lab, agents, registry, minutes * 60, report)


def _run(lab: Lab, agents: list[Agent], registry: Path, seconds: float, report: Path) -> int:
    a, b, c = lab.nodes["a"], lab.nodes["b"], lab.nodes["c"]
    started_s = time.monotonic()
    deadline_s = started_s + seconds
    quiet = [sample(agent, started_s) for agent in agents]
    load = a.python(
        "load",
        str(REPO / "tests/samples/load_client.py"),
        "--target",
        f"{b.ip4}:{PORT}",
        "--rate",
        "200",
        "--connections",
        "8",
        "--seconds",
        str(seconds),
        "--json",
    )
    clients = [
        a.python("client", "-m", "tests.soak", "--client", b.ip4, c.ip4, str(seconds))
        for _ in range(3)
    ]
    acts = disturb(lab, registry)
    samples: list[Sample] = []
    while time.monotonic() < deadline_s:
        wait_s = min(SAMPLE_S, max(0.0, deadline_s - time.monotonic()))
        with suppress(Exception):
            load.popen.wait(wait_s)
        now = [sample(agent, started_s) for agent in agents]
        samples += now
        print(
            " ".join(
                f"{s.agent}: {s.uss_mib} MiB {s.descriptors} fds {s.requests} requests "
                f"{s.failed} failed;"
                for s in now
            ),
            next(acts),
            flush=True,
        )
    for process in (load, *clients):
        process.popen.wait(60)
    wait_until(
        lambda: not any(sample(agent, started_s).connections for agent in agents),
        60,
        "all connections ended",
    )
    wait_until(
        lambda: all(
            sample(agent, started_s).descriptors <= first.descriptors
            for agent, first in zip(agents, quiet, strict=True)
        ),
        60,
        f"descriptors as at the start: {[first.descriptors for first in quiet]}",
    )
    for agent in agents:
        samples.append(sample(agent, started_s))
    return _judge(quiet, samples, [p.output for p in (load, *clients)], report)


def _judge(quiet: list[Sample], samples: list[Sample], outputs: list[str], report: Path) -> int:
    problems = [f"a client failed: {text[-300:]}" for text in outputs[1:] if text.strip() != "{}"]
    for first in quiet:
        own = [s for s in samples if s.agent == first.agent]
        warm = own[max(1, int(len(own) * WARM_UP_SHARE))]
        last = own[-1]
        growth_mib = last.uss_mib - warm.uss_mib
        if growth_mib > ALLOWED_GROWTH_MIB:
            problems.append(f"agent {first.agent} has grown by {growth_mib:.1f} MiB")
        if last.failed > ALLOWED_FAILED_SHARE * max(1, last.requests):
            problems.append(f"agent {first.agent} failed {last.failed} of {last.requests}")
        print(
            f"agent {first.agent}: {first.uss_mib} MiB at the start, {warm.uss_mib} warm, "
            f"{max(s.uss_mib for s in own)} at most, {last.uss_mib} at the end; descriptors "
            f"{first.descriptors} -> {max(s.descriptors for s in own)} -> {last.descriptors}; "
            f"{last.requests} requests, {last.failed} failed"
        )
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps({"samples": [asdict(s) for s in samples], "clients": outputs}))
    print("\n".join(output[-600:] for output in outputs))
    print("\n".join(problems) or "no growth", f"(details: {report})")
    return 1 if problems else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--report", type=Path, default=REPO / "build" / "soak.json")
    parser.add_argument("--client", nargs=3, metavar=("B", "C", "SECONDS"))
    options = parser.parse_args()
    if options.client:
        host_b, host_c, seconds = options.client
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        print(json.dumps(client(host_b, host_c, time.monotonic() + float(seconds))))
        return 0
    return soak(options.minutes, options.report)


if __name__ == "__main__":
    sys.exit(main())
