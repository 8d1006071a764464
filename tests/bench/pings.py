"""What a watcher's pings cost: real connections to real listening sockets on addresses of 127/8.

    python -m tests.bench.pings [--addresses 20000] [--kept 20000] [--rounds 5] [--dead 0]

`--sockets` listening sockets at 0.0.0.0 take the connections of all addresses; the peers are two
processes of their own, on the same machine. `--kept 0` connects for every ping. Printed: how long
a round took, pings that failed, and the CPU time of the pinging process alone for each round.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
import select
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import uvloop

from proxy.core.model import Address
from proxy.net.ping_wire import wire_of
from proxy.net.pinger import Pinger, PingSettings

SERVERS = 2


def serve(sockets: int, ready: Connection) -> None:
    """Answer every PING, for ever."""
    epoll, listeners, peers = select.epoll(), {}, {}
    for _ in range(sockets):
        listener = socket.create_server(("0.0.0.0", 0), backlog=4096)
        listener.setblocking(False)
        listeners[listener.fileno()] = listener
        epoll.register(listener, select.EPOLLIN)
    ready.send([listener.getsockname()[1] for listener in listeners.values()])
    while True:
        for fd, _ in epoll.poll():
            if fd in listeners:
                peer, _ = listeners[fd].accept()
                peers[peer.fileno()] = peer
                epoll.register(peer, select.EPOLLIN)
                continue
            try:
                answered = bool(peers[fd].recv(4096)) and peers[fd].send(b"+PONG\r\n")
            except OSError:
                answered = False
            if not answered:
                peers.pop(fd).close()


def addresses(ports: list[int], count: int, dead: int) -> Iterator[Address]:
    """Each address once; the dead are at a port at which nobody listens."""
    for n in range(count):
        host = f"127.{1 + n // 62500}.{n // 250 % 250}.{n % 250 + 1}"
        yield Address(host, 1 if n < dead else ports[n % len(ports)])


async def ping(targets: list[Address], kept: int, rounds: int) -> None:
    """Follow all for so many rounds and print each."""
    failures = 0

    def on_result(_address: Address, why: str) -> None:
        nonlocal failures
        failures += bool(why)

    loop = asyncio.get_running_loop()
    pinger = Pinger(loop, PingSettings(max_kept=kept), on_result)
    pinger.follow(dict.fromkeys(targets, wire_of(("resp",))))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(pinger.run())
        for number in range(rounds):
            before_s, sent = time.process_time(), pinger.counters.sent
            failures = 0
            while pinger.counters.rounds == number:
                await asyncio.sleep(0.01)
            print(
                f"round {number + 1}: {pinger.counters.round_s:.2f} s, "
                f"{pinger.counters.sent - sent} pings, {failures} failed, "
                f"CPU {time.process_time() - before_s:.2f} s"
            )
        running.cancel()


def _raise_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description="what a watcher's pings cost")
    parser.add_argument("--addresses", type=int, default=20_000)
    parser.add_argument("--sockets", type=int, default=200)
    parser.add_argument("--kept", type=int, default=19_500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dead", type=int, default=0)
    options = parser.parse_args()
    ports, servers = [], []
    _raise_descriptors()
    try:
        for _ in range(SERVERS):
            here, there = multiprocessing.Pipe()
            server = multiprocessing.get_context("fork").Process(
                target=serve, args=(options.sockets // SERVERS, there), daemon=True
            )
            server.start()
            servers.append(server)
            ports += here.recv()
        targets = list(addresses(ports, options.addresses, options.dead))
        uvloop.run(ping(targets, options.kept, options.rounds))
    finally:
        for server in servers:
            server.kill()
            server.join()


if __name__ == "__main__":
    main()
