"""The least that the kernel takes for an agent: listeners, marks, a pulse, and answers.

Every connection is answered with one JSON line that says what the kernel told about it.
Commands come on a unix datagram socket: `pulse off`, `pulse on`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import struct
from pathlib import Path

from interceptor.abi import ListenerSlot
from interceptor.cgroup import Cgroup
from interceptor.maps import Maps
from interceptor.node import AgentSettings, Node

_SO_ORIGINAL_DST = 80


def original(sock: socket.socket) -> str | None:
    """What getsockopt says that the caller dialled."""
    try:
        if sock.family == socket.AF_INET:
            raw = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
            return f"{socket.inet_ntop(socket.AF_INET, raw[4:8])}:{_port(raw)}"
        raw = sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28)
        return f"[{socket.inet_ntop(socket.AF_INET6, raw[8:24])}]:{_port(raw)}"
    except OSError as e:
        return f"errno {e.errno}"


def _port(raw: bytes) -> int:
    return int(struct.unpack("!H", raw[2:4])[0])


def listener(family: int, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(1024)
    sock.setblocking(False)
    return sock


async def answer(sock: socket.socket, slot: ListenerSlot) -> None:
    loop = asyncio.get_running_loop()
    text = {
        "slot": slot.name,
        "original": original(sock),
        "local": list(sock.getsockname()[:2]),
        "peer": list(sock.getpeername()[:2]),
    }
    await loop.sock_sendall(sock, json.dumps(text).encode() + b"\n")
    while await loop.sock_recv(sock, 4096):
        pass
    sock.close()


async def accept(server: socket.socket, slot: ListenerSlot) -> None:
    loop = asyncio.get_running_loop()
    tasks = set()
    while True:
        sock, _ = await loop.sock_accept(server)
        task = loop.create_task(answer(sock, slot))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def pulse(maps: Maps, beating: asyncio.Event) -> None:
    while True:
        await beating.wait()
        maps.beat()
        await asyncio.sleep(0.1)


async def serve(options: argparse.Namespace) -> None:
    node = Node(Path(options.root))
    cgroup = Cgroup(options.cgroup)
    cgroup.create()
    cgroup.add(os.getpid())
    node.install(
        AgentSettings(
            cgroup=cgroup,
            outbound_port=options.outbound,
            inbound_port=options.inbound,
            mark=0,
            heartbeat_max_age_ns=int(options.max_age_ms * 1e6),
        )
    )
    sockets = {
        ListenerSlot.OUT4: listener(socket.AF_INET, "127.0.0.1", options.outbound),
        ListenerSlot.OUT6: listener(socket.AF_INET6, "::1", options.outbound),
        ListenerSlot.IN4: listener(socket.AF_INET, "127.0.0.1", options.inbound),
        ListenerSlot.IN6: listener(socket.AF_INET6, "::1", options.inbound),
    }
    beating = asyncio.Event()
    beating.set()
    with node.maps() as maps:
        for slot, sock in sockets.items():
            maps.publish_listener(slot, sock, mark=1)
        maps.set_in_ports(options.in_port)
        maps.beat()
        control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        control.bind(options.control)
        loop = asyncio.get_running_loop()
        loop.add_reader(
            control, lambda: beating.set() if control.recv(64) == b"pulse on" else beating.clear()
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(pulse(maps, beating))
            for slot, sock in sockets.items():
                group.create_task(accept(sock, slot))
            print("ready", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--cgroup", required=True)
    parser.add_argument("--control", required=True)
    parser.add_argument("--outbound", type=int, default=15001)
    parser.add_argument("--inbound", type=int, default=15006)
    parser.add_argument("--in-port", type=int, action="append", default=[])
    parser.add_argument("--max-age-ms", type=float, default=2000)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
