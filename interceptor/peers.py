"""The map of peer agents: who takes a connection whose own agent does not serve.

The supervisor writes it and stamps it anew all the time; a stamp that has run out means that
the supervisor has died, and connections go direct. Rule: every slot of a family is filled, so
that the kernel's one look-up at a random slot is a fair choice among the peers that live.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from interceptor import abi, libbpf
from interceptor.maps import Maps

SO_NETNS_COOKIE = 71
"""asm-generic/socket.h; Linux 5.14."""

_MAP = "peers"


@dataclass(frozen=True, slots=True)
class PeerSlot:
    """One slot as it is; `valid_until_ns` is CLOCK_MONOTONIC, 0 when no peer lived."""

    host: str
    port: int
    valid_until_ns: int
    netns_cookie: int

    @property
    def text(self) -> str:
        """Host and port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def netns_cookie() -> int:
    """The number of this process's network namespace, as the kernel's hooks see it.

    Raises OSError (ENOPROTOOPT) before Linux 5.14.
    """
    with socket.socket() as sock:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return int(struct.unpack("=Q", raw)[0])


def write(
    maps: Maps,
    family: int,
    peers: Sequence[tuple[str, int]],
    *,
    valid_until_ns: int,
    cookie: int,
) -> None:
    """Make `peers` (numeric host and port) the ones of a family, 4 or 6.

    With none of them, connections go direct and count it. At most `abi.PEER_SLOTS` are used.
    """
    for index in range(abi.PEER_SLOTS):
        value = abi.Peer(family=family, netns_cookie=cookie)
        if peers:
            host, port = peers[index % len(peers)]
            packed = socket.inet_pton(_af(family), host)
            value.addr_be[: len(packed)] = packed
            value.port_be[:] = port.to_bytes(2, "big")
            value.valid_until_ns = valid_until_ns
        libbpf.map_update(maps.fd(_MAP), _key(family, index), bytes(value))


def clear(maps: Maps) -> None:
    """No peers are kept on this node any more."""
    for family in (4, 6):
        for index in range(abi.PEER_SLOTS):
            libbpf.map_delete(maps.fd(_MAP), _key(family, index))


def read(maps: Maps) -> list[PeerSlot]:
    """Every slot that there is, IPv4 first."""
    found = []
    for family in (4, 6):
        for index in range(abi.PEER_SLOTS):
            raw = libbpf.map_lookup(maps.fd(_MAP), _key(family, index), len(bytes(abi.Peer())))
            if raw is not None:
                found.append(_slot(abi.Peer.from_buffer_copy(raw)))
    return found


def _slot(value: abi.Peer) -> PeerSlot:
    return PeerSlot(
        host=abi.address_text(value.family, bytes(value.addr_be)),
        port=int.from_bytes(bytes(value.port_be), "big"),
        valid_until_ns=int(value.valid_until_ns),
        netns_cookie=int(value.netns_cookie),
    )


def _af(family: int) -> socket.AddressFamily:
    return socket.AF_INET if family == 4 else socket.AF_INET6


def _key(family: int, index: int) -> bytes:
    return struct.pack("=I", index + (0 if family == 4 else abi.PEER_SLOTS))
