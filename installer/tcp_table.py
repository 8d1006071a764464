"""The TCP sockets of a network namespace and of a process, as /proc shows them."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

ESTABLISHED = 1
LISTEN = 10
"""States as in <net/tcp_states.h>."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address (an IPv4-mapped one as IPv4) and a port in host order."""

    ip: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """One line of /proc/net/tcp or tcp6."""

    local: Endpoint
    remote: Endpoint
    state: int
    inode: int


def parse(text: str) -> Iterator[TcpSocket]:
    """Read the text of /proc/net/tcp or tcp6; a line cut off by the kernel is left out."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9:
            local, remote = _endpoint(fields[1]), _endpoint(fields[2])
            yield TcpSocket(local, remote, int(fields[3], 16), int(fields[9]))


def _endpoint(text: str) -> Endpoint:
    address, port = text.split(":")
    # Each group of eight digits is a u32 of network-order memory, printed as the host reads it.
    words = (int(address[i : i + 8], 16) for i in range(0, len(address), 8))
    raw = b"".join(struct.pack("=I", word) for word in words)
    ip: IPv4Address | IPv6Address
    if len(raw) == 4:
        ip = IPv4Address(raw)
    else:
        six = IPv6Address(raw)
        ip = six.ipv4_mapped or six
    return Endpoint(ip, int(port, 16))


def of_namespace(pid: int | str = "self") -> list[TcpSocket]:
    """Every TCP socket of the network namespace that a process is in; [] when it has gone."""
    found: list[TcpSocket] = []
    for name in ("tcp", "tcp6"):  # tcp6 is missing where IPv6 is switched off
        with suppress(FileNotFoundError, ProcessLookupError):
            found += parse(Path(f"/proc/{pid}/net/{name}").read_text())
    return found


def inodes_of(pid: int) -> set[int]:
    """Inodes of the sockets that a process has open; empty when it has gone."""
    found = set()
    with suppress(FileNotFoundError, ProcessLookupError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                target = os.readlink(entry.path)
                if target.startswith("socket:["):
                    found.add(int(target[8:-1]))
    return found


def namespace_id(pid: int | str = "self") -> int | None:
    """Inode of a process's network namespace; None when the process has gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    return None


def process_name(pid: int) -> str:
    """What the kernel calls a process; empty when it has gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
