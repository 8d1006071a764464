"""The pinned maps as typed values: switches, pulse, listeners, destinations, counters."""

from __future__ import annotations

import ctypes as c
import os
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from interceptor import abi, libbpf
from interceptor.abi import Cfg, CfgFlag, CgroupFlag, DstFlag, ListenerSlot, Reason
from interceptor.errors import InterceptorError

_ZERO = struct.pack("=I", 0)
_LOOPBACK4 = IPv4Network("127.0.0.0/8")
_LOOPBACK6 = IPv6Network("::1/128")


@dataclass(frozen=True, slots=True)
class Destination:
    """Addresses that services dial: a network and a port, 0 for any port.

    `is_instance`: it is a MOA instance of the registry, which a peer agent can serve as well.
    """

    network: IPv4Network | IPv6Network
    port: int = 0
    is_instance: bool = False

    @property
    def is_loopback(self) -> bool:
        if isinstance(self.network, IPv4Network):
            return self.network.subnet_of(_LOOPBACK4)
        return self.network.subnet_of(_LOOPBACK6)

    @classmethod
    def of(cls, host: str, port: int, *, is_instance: bool = False) -> Destination:
        """One address and port."""
        return cls(ip_network(host), port, is_instance)

    def __str__(self) -> str:
        return f"{self.network}:{self.port or '*'}"


class Maps:
    """Descriptors of every pinned map; owned by this object until `close`."""

    def __init__(self, directory: Path) -> None:
        self._fds: dict[str, int] = {}
        try:
            for path in directory.iterdir():
                self._fds[path.name] = libbpf.open_pin(path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Maps:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def fd(self, name: str) -> int:
        """Borrowed."""
        return self._fds[name]

    # The switches

    @property
    def cfg(self) -> Cfg:
        raw = libbpf.map_lookup(self._fds["cfg"], _ZERO, c.sizeof(Cfg))
        if raw is None:
            raise InterceptorError("map cfg has no element 0; its layout is not ours")
        return Cfg.from_buffer_copy(raw)

    @cfg.setter
    def cfg(self, value: Cfg) -> None:
        libbpf.map_update(self._fds["cfg"], _ZERO, bytes(value))

    def set_flags(self, flags: CfgFlag, *, on: bool) -> None:
        """Switch some flags and leave the others; the caller holds the node's lock."""
        cfg = self.cfg
        cfg.flags = cfg.flags | flags if on else cfg.flags & ~flags
        self.cfg = cfg

    # The pulse

    def beat(self, now_ns: int | None = None) -> None:
        """Say that the agent's event loop turns; CLOCK_MONOTONIC."""
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        libbpf.map_update(self._fds["heartbeat"], _ZERO, struct.pack("=Q", now_ns))

    def last_beat_ns(self) -> int:
        """0 when there never was one."""
        raw = libbpf.map_lookup(self._fds["heartbeat"], _ZERO, 8)
        return 0 if raw is None else int(struct.unpack("=Q", raw)[0])

    # The listeners

    def publish_listener(self, slot: ListenerSlot, listener: socket.socket, mark: int) -> None:
        """Make a listening socket the agent's in this slot; the socket stays the caller's."""
        key, fd = struct.pack("=i", listener.fileno()), listener.fileno()
        libbpf.map_update(self._fds["listener_mark"], key, struct.pack("=I", mark))
        libbpf.map_update(self._fds["listeners"], struct.pack("=I", slot), struct.pack("=Q", fd))

    def disown_listener(self, listener: socket.socket) -> None:
        """No further connect() is turned to it, but what one has decided still arrives.

        The hook that decides and the one that finds the listener are microseconds apart in one
        system call: who only withdraws refuses a connection now and then.
        """
        key = struct.pack("=i", listener.fileno())
        libbpf.map_delete(self._fds["listener_mark"], key)

    def withdraw_listener(self, slot: ListenerSlot) -> None:
        libbpf.map_delete(self._fds["listeners"], struct.pack("=I", slot))

    def listeners(self) -> dict[ListenerSlot, int]:
        """Slot to socket cookie of the listeners that are alive."""
        found: dict[ListenerSlot, int] = {}
        for slot in ListenerSlot:
            raw = libbpf.map_lookup(self._fds["listeners"], struct.pack("=I", slot), 8)
            if raw is not None:
                found[slot] = int(struct.unpack("=Q", raw)[0])
        return found

    def in_ports(self) -> set[int]:
        fd = self._fds["in_ports"]
        return {int(struct.unpack("=I", key)[0]) for key in libbpf.map_keys(fd, 4)}

    def set_in_ports(self, ports: Iterable[int]) -> None:
        """Steer exactly these local ports to the inbound listener."""
        wanted, present = set(ports), self.in_ports()
        for port in wanted - present:
            libbpf.map_update(self._fds["in_ports"], struct.pack("=I", port), struct.pack("=I", 1))
        for port in present - wanted:
            libbpf.map_delete(self._fds["in_ports"], struct.pack("=I", port))

    # The destinations

    def destinations(self, kind: str) -> set[Destination]:
        """`kind` is "include" or "exclude"."""
        found = set()
        for version, size in ((4, 12), (6, 24)):
            fd = self._fds[f"dst_{kind}{version}"]
            for key in list(libbpf.map_keys(fd, size)):
                network, bits, port = abi.lpm_parse(key)
                raw = libbpf.map_lookup(fd, key, 4)
                flags = struct.unpack("=I", raw)[0] if raw is not None else 0
                is_instance = bool(flags & DstFlag.INSTANCE)
                found.add(Destination(ip_network((network, bits)), port, is_instance))
        return found

    def set_destinations(self, kind: str, wanted: Iterable[Destination]) -> None:
        """Make the tries of this kind hold exactly `wanted`, by the difference."""
        wanted, present = set(wanted), self.destinations(kind)
        self.change_destinations(kind, add=wanted - present, remove=present - wanted)

    def change_destinations(
        self, kind: str, *, add: Iterable[Destination], remove: Iterable[Destination]
    ) -> None:
        """Write and delete single entries; `kind` is "include" or "exclude".

        What is in both, by its address and port, is written.
        """
        written = set()
        for destination in add:
            flags = DstFlag.LISTED
            if destination.is_loopback:
                flags |= DstFlag.LOOPBACK
            if destination.is_instance:
                flags |= DstFlag.INSTANCE
            fd, key = self._trie(kind, destination)
            libbpf.map_update(fd, key, struct.pack("=I", flags))
            written.add((fd, key))
        for destination in remove:
            fd, key = self._trie(kind, destination)
            if (fd, key) not in written:
                libbpf.map_delete(fd, key)

    def _trie(self, kind: str, destination: Destination) -> tuple[int, bytes]:
        network = destination.network
        key = abi.lpm_key(network.network_address.packed, network.prefixlen, destination.port)
        return self._fds[f"dst_{kind}{network.version}"], key

    # The cgroups with a policy of their own

    def cgroup_policies(self) -> dict[int, CgroupFlag]:
        fd = self._fds["cgroup_policy"]
        found = {}
        for key in list(libbpf.map_keys(fd, 8)):
            raw = libbpf.map_lookup(fd, key, 4)
            if raw is not None:
                found[struct.unpack("=Q", key)[0]] = CgroupFlag(struct.unpack("=I", raw)[0])
        return found

    def set_cgroup_policy(self, cgroup_id: int, policy: CgroupFlag) -> None:
        """Policy 0 takes the entry away; the caller holds the node's lock."""
        fd, key = self._fds["cgroup_policy"], struct.pack("=Q", cgroup_id)
        if policy:
            libbpf.map_update(fd, key, struct.pack("=I", policy))
        else:
            libbpf.map_delete(fd, key)
        self.set_flags(CfgFlag.CGROUP_POLICY, on=bool(self.cgroup_policies()))

    # The counters

    def counters(self) -> dict[Reason, int]:
        """Sums over all CPUs since the maps were made."""
        cpus = libbpf.possible_cpus()
        totals = {}
        for reason in Reason:
            raw = libbpf.map_lookup(self._fds["counters"], struct.pack("=I", reason), 8 * cpus)
            totals[reason] = sum(struct.unpack(f"={cpus}Q", raw)) if raw else 0
        return totals
