"""A connection held in the middle of its handshake, and what it carries made older."""

from __future__ import annotations

import ctypes as c
import json
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from interceptor import libbpf
from interceptor.abi import Dst, Tuple
from interceptor.node import Node
from tests.kernel.mesh import OUTBOUND, PORT, Answer, Mesh
from tests.support.lab import wait_until

_DROP = (
    "add table ip held; "
    "add chain ip held in { type filter hook input priority 0; }; "
    f"add rule ip held in tcp dport {OUTBOUND} drop"
)


def carried(kernel: Node) -> list[tuple[bytes, Dst]]:
    """What waits between a caller's SYN and the agent's accepted socket."""
    with kernel.maps() as maps:
        fd = maps.fd("dst_by_tuple")
        found = []
        for key in list(libbpf.map_keys(fd, c.sizeof(Tuple))):
            raw = libbpf.map_lookup(fd, key, c.sizeof(Dst))
            if raw is not None:
                found.append((key, Dst.from_buffer_copy(raw)))
        return found


def make_older(kernel: Node, age_s: int) -> None:
    with kernel.maps() as maps:
        for key, dst in carried(kernel):
            dst.stored_ns -= age_s * 10**9
            libbpf.map_update(maps.fd("dst_by_tuple"), key, bytes(dst))


def make_caller_older(kernel: Node, sock: socket.socket, age_s: int) -> None:
    """What is remembered with the caller's own socket, before its SYN."""
    key = sock.fileno().to_bytes(4, sys.byteorder)
    with kernel.maps() as maps:
        raw = libbpf.map_lookup(maps.fd("dst_by_caller"), key, c.sizeof(Dst))
        assert raw is not None
        dst = Dst.from_buffer_copy(raw)
        dst.stored_ns -= age_s * 10**9
        libbpf.map_update(maps.fd("dst_by_caller"), key, bytes(dst))


@contextmanager
def held(mesh: Mesh) -> Iterator[Callable[[], Answer]]:
    """Within the block one caller's SYN is lost; the value releases it, and returns what the
    caller was answered after the kernel's own retry (1 s)."""
    assert mesh.node.call("nft", _DROP).returncode == 0
    caller = mesh.node.python("caller", "-m", "tests.kernel.caller", mesh.far.ip4, str(PORT))
    wait_until(lambda: carried(mesh.kernel), 5, "a destination is carried")

    def release() -> Answer:
        assert mesh.node.call("nft", "delete table ip held").returncode == 0
        answer: Answer = json.loads(caller.wait_line("original"))
        return answer

    yield release
