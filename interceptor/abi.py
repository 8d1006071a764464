"""The structs and numbers of bpf/abi.h, as Python sees them.

tests/unit/test_abi.py compiles abi.h and compares sizes, offsets and values.
"""

from __future__ import annotations

import ctypes as c
import socket
import struct
from enum import IntEnum, IntFlag

ABI_VERSION = 2

PEER_SLOTS = 16
"""Keys of the map `peers`: so many for IPv4, and as many for IPv6 after them."""


class CfgFlag(IntFlag):
    ENABLED = 1
    SHADOW = 2
    EVENTS = 4
    SPREAD = 8
    CGROUP_POLICY = 16


class CgroupFlag(IntFlag):
    EXCLUDED = 1
    SHADOW = 2


class DstFlag(IntFlag):
    LISTED = 1
    LOOPBACK = 2
    INSTANCE = 4


class ListenerSlot(IntEnum):
    OUT4 = 0
    OUT6 = 1
    IN4 = 2
    IN6 = 3


class Reason(IntEnum):
    """Why a hook did what it did (enum moa_reason)."""

    CONNECT_DISABLED = 0
    CONNECT_NOT_TCP = 1
    CONNECT_NO_SOCKET = 2
    CONNECT_AGENT_CGROUP = 3
    CONNECT_AGENT_MARK = 4
    CONNECT_DEVICE_BOUND = 5
    CONNECT_SELF = 6
    CONNECT_LOOPBACK = 7
    CONNECT_CGROUP_EXCLUDED = 8
    CONNECT_DST_EXCLUDED = 9
    CONNECT_DST_NOT_INCLUDED = 10
    CONNECT_HEARTBEAT_STALE = 11
    CONNECT_NO_LISTENER = 12
    CONNECT_FOREIGN_LISTENER = 13
    CONNECT_NO_STORAGE = 14
    CONNECT_SHADOW = 15
    CONNECT_REDIRECTED = 16
    CONNECT_PEER = 17
    CONNECT_PEER_NOT_INSTANCE = 18
    CONNECT_PEER_OTHER_NETNS = 19
    CONNECT_PEER_NONE_FRESH = 20
    CARRY_STORED = 21
    CARRY_STORE_FAILED = 22
    CARRY_TAKEN = 23
    CARRY_MISSING = 24
    CARRY_STALE = 25
    CARRY_NO_STORAGE = 26
    ORIGDST_ANSWERED = 27
    ORIGDST_UNKNOWN = 28
    ORIGDST_SHORT_BUFFER = 29
    PEERNAME_ANSWERED = 30
    INBOUND_DISABLED = 31
    INBOUND_NOT_OURS = 32
    INBOUND_LOOP_GUARD = 33
    INBOUND_HEARTBEAT_STALE = 34
    INBOUND_NO_LISTENER = 35
    INBOUND_ASSIGN_FAILED = 36
    INBOUND_SHADOW = 37
    INBOUND_STEERED = 38
    OUTBOUND_STEERED = 39
    OUTBOUND_NO_LISTENER = 40
    EVENT_LOST = 41


class Cfg(c.Structure):
    """struct moa_cfg; host byte order."""

    _fields_ = (
        ("flags", c.c_uint32),
        ("agent_mark", c.c_uint32),
        ("agent_cgroup_id", c.c_uint64),
        ("agent_cgroup_level", c.c_uint32),
        ("outbound_port", c.c_uint32),
        ("inbound_port", c.c_uint32),
        ("generation", c.c_uint32),
        ("heartbeat_max_age_ns", c.c_uint64),
        ("on_until_ns", c.c_uint64),
    )


class Dst(c.Structure):
    """struct moa_dst."""

    _fields_ = (
        ("addr_be", c.c_uint8 * 16),
        ("port_be", c.c_uint8 * 2),
        ("family", c.c_uint8),
        ("via_peer", c.c_uint8),
        ("pid", c.c_uint32),
        ("cookie", c.c_uint64),
        ("cgroup_id", c.c_uint64),
        ("stored_ns", c.c_uint64),
    )


class Tuple(c.Structure):
    """struct moa_tuple; ports in host order."""

    _fields_ = (
        ("src_be", c.c_uint8 * 16),
        ("dst_be", c.c_uint8 * 16),
        ("src_port", c.c_uint16),
        ("dst_port", c.c_uint16),
        ("family", c.c_uint32),
    )


class Peer(c.Structure):
    """struct moa_peer."""

    _fields_ = (
        ("addr_be", c.c_uint8 * 16),
        ("port_be", c.c_uint8 * 2),
        ("family", c.c_uint8),
        ("reserved", c.c_uint8),
        ("reserved2", c.c_uint32),
        ("valid_until_ns", c.c_uint64),
        ("netns_cookie", c.c_uint64),
    )


class Event(c.Structure):
    """struct moa_event."""

    _fields_ = (
        ("at_ns", c.c_uint64),
        ("cookie", c.c_uint64),
        ("cgroup_id", c.c_uint64),
        ("pid", c.c_uint32),
        ("reason", c.c_uint16),
        ("family", c.c_uint8),
        ("reserved", c.c_uint8),
        ("before_be", c.c_uint8 * 16),
        ("after_be", c.c_uint8 * 16),
        ("before_port_be", c.c_uint8 * 2),
        ("after_port_be", c.c_uint8 * 2),
        ("comm", c.c_char * 16),
        ("reserved2", c.c_uint32),
    )


LPM_PORT_BITS = 32
"""What the protocol and the port take of an LPM key's prefix length."""


def lpm_key(network: bytes, prefix_bits: int, port: int) -> bytes:
    """An LPM key; `network` is 4 or 16 bytes in network order, port 0 means any port."""
    header = struct.pack("=IBBH", LPM_PORT_BITS + prefix_bits, socket.IPPROTO_TCP, 0, 0)
    return header[:6] + struct.pack("!H", port) + network


def lpm_parse(key: bytes) -> tuple[bytes, int, int]:
    """The inverse of `lpm_key`: network, prefix length in bits, port."""
    (bits,) = struct.unpack_from("=I", key)
    (port,) = struct.unpack_from("!H", key, 6)
    return key[8:], bits - LPM_PORT_BITS, port


def address_text(family: int, addr_be: bytes) -> str:
    """Text of an address field: `family` is 4 or 6 as in abi.h."""
    if family == 4:
        return socket.inet_ntop(socket.AF_INET, addr_be[:4])
    return socket.inet_ntop(socket.AF_INET6, addr_be[:16])
