"""Sockets as the agent makes them: non-blocking, marked, and its own to hand over."""

from __future__ import annotations

import errno
import fcntl
import resource
import socket
import struct
from contextlib import suppress
from typing import Any

from proxy.core.model import Address

SO_ORIGINAL_DST = 80
"""linux/netfilter_ipv4.h; the same number serves SOL_IP and SOL_IPV6."""

KEEP_IDLE_S, KEEP_INTERVAL_S, KEEP_PROBES = 60, 10, 6
"""A dead peer is found after two minutes; the system's default is two hours."""

_HIGHEST_LISTENER = 65536 - 64
"""A table of descriptors costs 8 bytes for each up to the highest, here and in libuv."""

_LINGER_RESET = struct.pack("ii", 1, 0)
_UCRED = struct.Struct("=iII")

LOOP_GUARD4 = "127.0.0.6"
LOOP_GUARD6 = "::1"
"""Sources from which the kernel lets a connection reach the local service itself."""


def family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def prepare_connection(sock: socket.socket) -> None:
    """No delay, and keep-alive: a spliced peer whose machine has gone says nothing else."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEP_PROBES)


def open_client(target: Address, *, mark: int = 0, source: str | None = None) -> socket.socket:
    """A non-blocking socket that is ready to connect to `target`; the caller owns it."""
    sock = socket.socket(family_of(target.host), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        prepare_connection(sock)
        if mark:
            # Without CAP_NET_ADMIN the agent's cgroup alone is the loop guard.
            with suppress(PermissionError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if source is not None:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
    except BaseException:
        sock.close()
        raise
    return sock


def open_listener(address: Address, *, backlog: int = 4096) -> socket.socket:
    """A non-blocking listening socket; raises `OSError` that names the address.

    Its descriptor is above those of connections. The kernel closes what a killed process had
    from the highest down (task_work runs last in, first out; 6.18), and a listener that is
    closed behind the connections still accepts their clients when they come back.
    """
    sock = socket.socket(family_of(address.host), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
        sock.listen(backlog)
    except OSError as e:
        sock.close()
        hint = "; another agent, or a service, has it" if e.errno == errno.EADDRINUSE else ""
        raise OSError(e.errno, f"listen on {address}: {e.strerror}{hint}") from e
    return _raised(sock)


def _raised(sock: socket.socket) -> socket.socket:
    """The same socket under the highest number that there is room for."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        number = fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, min(most - 16, _HIGHEST_LISTENER))
    except (OSError, ValueError):
        return sock
    sock.close()
    raised = socket.socket(fileno=number)
    raised.setblocking(False)
    return raised


def original_destination(sock: socket.socket) -> Address | None:
    """The address that the peer of an intercepted connection dialled; None for any other.

    Answered by the getsockopt hook, or by netfilter where iptables redirects: the same call.
    """
    try:
        if sock.family == socket.AF_INET:
            raw = sock.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
            host = socket.inet_ntop(socket.AF_INET, raw[4:8])
        else:
            raw = sock.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
            host = socket.inet_ntop(socket.AF_INET6, raw[8:24])
    except OSError:
        return None
    return Address(host, int.from_bytes(raw[2:4], "big"))


def socket_of(descriptor: int) -> socket.socket:
    """The socket that another process handed over; non-blocking, and owns the descriptor."""
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(False)
    return sock


def peer_credentials(sock: socket.socket) -> tuple[int, int]:
    """Process and user id at the other end of a unix socket; of who listens, for who connects."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(raw)
    return pid, uid


def address_of(name: tuple[Any, ...]) -> Address:
    """Of getsockname or getpeername, whose tuples are longer for IPv6; a v4-mapped address
    becomes IPv4."""
    host = name[0]
    return Address(host.removeprefix("::ffff:") if "." in host else host, name[1])


def set_reset_on_close(sock: socket.socket) -> None:
    """Make close() send RST: what a client is owed whose peer cannot be reached."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
