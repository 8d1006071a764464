"""Others on the same hooks, and the options of other processes, stay as they were."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interceptor import libbpf
from interceptor.cgroup import Cgroup
from interceptor.errors import InterceptorError
from interceptor.libbpf import AttachType
from tests.kernel.mesh import PORT, Mesh
from tests.support.lab import Lab, wait_until
from tests.support.traces import assert_same, look

SOCK_ADDR = 18
BEFORE, AFTER, LEGACY = 7771, 7772, 7773
SO_PEERGROUPS = 59
SO_ORIGINAL_DST = 80


def _instruction(code: int, registers: int, offset: int, value: int) -> bytes:
    return struct.pack("=BBhi", code, registers, offset, value)


def forbids(port: int) -> int:
    """A stranger's connect4 program, which forbids one port and so shows that it runs."""
    user_port = 24
    return libbpf.program_load(
        SOCK_ADDR,
        AttachType.CONNECT4,
        _instruction(0x61, 0x12, user_port, 0)  # r2 = ctx->user_port
        + _instruction(0xB7, 0, 0, 1)  # r0 = allow
        + _instruction(0x55, 2, 1, socket.htons(port))  # if r2 != port: exit
        + _instruction(0xB7, 0, 0, 0)  # r0 = forbid
        + _instruction(0x95, 0, 0, 0),
    )


def attach_link(cgroup: Cgroup, port: int) -> int:
    """A stranger's link; its descriptor keeps it."""
    program = forbids(port)
    target = os.open(cgroup.path, os.O_RDONLY)
    try:
        return libbpf.link_create(program, target, AttachType.CONNECT4, cgroup.name)
    finally:
        os.close(target)
        os.close(program)


def attach_legacy(lab: Lab, cgroup: Cgroup, port: int, *flags: str) -> Path:
    """As older tools attach: without a link. Goes with its cgroup."""
    pin, program = Path(f"/sys/fs/bpf/{lab.id}-stranger"), forbids(port)
    try:
        libbpf.pin(program, pin)
    finally:
        os.close(program)
    lab.at_close.append(lambda: pin.unlink(missing_ok=True))
    what = ("bpftool", "cgroup", "attach", str(cgroup.path), "connect4", "pinned", str(pin))
    subprocess.run([*what, *flags], check=True, capture_output=True)
    return pin


def attached(cgroup: Cgroup) -> list[int]:
    fd = os.open(cgroup.path, os.O_RDONLY)
    try:
        return libbpf.attached_programs(fd, AttachType.CONNECT4)
    finally:
        os.close(fd)


def forbidden(mesh: Mesh) -> list[int]:
    """Which ports the strangers' programs keep a service from."""

    def action() -> list[int]:
        found = []
        for port in (BEFORE, AFTER, LEGACY, PORT):
            with socket.socket() as sock:
                if sock.connect_ex(("10.77.0.2", port)) == errno.EPERM:
                    found.append(port)
        return found

    ports: list[int] = mesh.node.do(action)
    return ports


@pytest.fixture
def strangers(lab: Lab) -> Iterator[list[int]]:
    """Descriptors of links, closed at the end."""
    fds: list[int] = []
    yield fds
    for fd in fds:
        os.close(fd)


def test_other_programs_on_the_hook_keep_working(lab: Lab, strangers: list[int]) -> None:
    mesh = Mesh(lab)
    services = mesh.node.services
    strangers.append(attach_link(services, BEFORE))
    attach_legacy(lab, services, LEGACY, "multi")
    before = attached(services)
    assert (len(before), forbidden(mesh)) == (2, [BEFORE, LEGACY])

    mesh.start_agent()
    mesh.kernel.add_scope(services)
    mesh.kernel.switch(on=True)
    mesh.include(f"10.77.0.2/32@{PORT}")
    strangers.append(attach_link(services, AFTER))
    assert len(attached(services)) == 4
    assert mesh.who("10.77.0.2") == "OUT4"
    assert forbidden(mesh) == [BEFORE, AFTER, LEGACY]

    mesh.agent.kill()
    mesh.kernel.uninstall()
    assert attached(services)[:2] == before
    assert len(attached(services)) == 3
    assert forbidden(mesh) == [BEFORE, AFTER, LEGACY]


def test_program_of_a_parent_cgroup_keeps_working(mesh: Mesh, strangers: list[int]) -> None:
    mesh.include(f"10.77.0.2/32@{PORT}")
    strangers.append(attach_link(Cgroup(f"/{mesh.lab.id}"), BEFORE))
    assert forbidden(mesh) == [BEFORE]
    assert mesh.who("10.77.0.2") == "OUT4"
    mesh.kernel.remove_scope(mesh.node.services)
    assert forbidden(mesh) == [BEFORE]


def test_program_that_holds_the_cgroup_for_itself_is_respected(mesh: Mesh) -> None:
    """An old exclusive attachment: a clear error, nothing half attached, theirs still runs."""
    alone = Cgroup(f"/{mesh.lab.id}/a/alone")
    alone.create()
    attach_legacy(mesh.lab, alone, BEFORE)
    theirs, before = attached(alone), look(mesh.lab)
    with pytest.raises(InterceptorError, match=r"attach connect4 to cgroup .*exclusively"):
        mesh.kernel.add_scope(alone)
    assert attached(alone) == theirs
    assert [scope.cgroup for scope in mesh.kernel.scopes()] == [mesh.node.services.name]
    assert_same(mesh.lab, before)


def test_uninstall_does_not_touch_a_strangers_pin_or_link(mesh: Mesh, strangers: list[int]) -> None:
    pin = attach_legacy(mesh.lab, mesh.node.services, LEGACY, "multi")
    strangers.append(attach_link(mesh.node.agent, BEFORE))
    mesh.agent.kill()
    mesh.kernel.uninstall()
    assert pin.exists()
    assert len(attached(mesh.node.agent)) == 1


# getsockopt


def options(groups: int = 2000) -> dict[str, Any]:
    """What a process sees of its own sockets, an option of 8000 bytes included."""
    seen: dict[str, Any] = {}
    os.setgroups(range(1, groups + 1))
    one, other = socket.socketpair()
    code, answer = _getsockopt(one, socket.SOL_SOCKET, SO_PEERGROUPS, 65536)
    seen["SO_PEERGROUPS"] = [code, len(answer), sum(answer)]
    one.close()
    other.close()
    for family, level in ((socket.AF_INET, socket.SOL_IP), (socket.AF_INET6, 41)):
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            for number in range(1, 80):
                seen[f"{family} SOL_SOCKET {number}"] = _option(sock, socket.SOL_SOCKET, number)
                seen[f"{family} SOL_TCP {number}"] = _option(sock, socket.SOL_TCP, number)
            for number in range(1, 100):
                seen[f"{family} level {level} {number}"] = _option(sock, level, number)
    return seen


_OF_ONE_MOMENT = {
    (socket.SOL_SOCKET, 49),  # SO_INCOMING_CPU
    (socket.SOL_SOCKET, 57),  # SO_COOKIE
    (socket.SOL_TCP, 11),  # TCP_INFO
    (socket.SOL_TCP, 24),  # TCP_TIMESTAMP
}


def _option(sock: socket.socket, level: int, number: int) -> str:
    if (level, number) in _OF_ONE_MOMENT:
        return "differs from socket to socket"
    code, answer = _getsockopt(sock, level, number, 512)
    return errno.errorcode[code] if code else answer.hex()


def _getsockopt(sock: socket.socket, level: int, number: int, size: int) -> tuple[int, bytes]:
    """Python's own stops at 1024 bytes, and some options read what is in the buffer."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer, length = ctypes.create_string_buffer(size), ctypes.c_uint32(size)
    failed = libc.getsockopt(sock.fileno(), level, number, buffer, ctypes.byref(length))
    return (ctypes.get_errno() if failed else 0), buffer.raw[: length.value]


@pytest.mark.parametrize("where", ["services", "outside", "agent"])
def test_options_of_other_processes_are_unchanged(lab: Lab, where: str) -> None:
    mesh = Mesh(lab)
    cgroup = {
        "services": mesh.node.services,
        "outside": Cgroup(f"/{lab.id}/outside"),
        "agent": mesh.node.agent,
    }[where]
    before = mesh.node.do(options, cgroup=cgroup)
    assert before["SO_PEERGROUPS"][:2] == [0, 8000]
    mesh.start_agent()
    mesh.kernel.add_scope(mesh.node.services)
    mesh.kernel.switch(on=True)
    after = mesh.node.do(options, cgroup=cgroup)
    assert {k: (v, after[k]) for k, v in before.items() if after[k] != v} == {}


def test_original_destination_is_nobodys_business_but_the_agents(mesh: Mesh) -> None:
    """The caller's own socket, though it was redirected, answers as it always did."""
    mesh.include_all()

    def action() -> list[str]:
        with socket.create_connection(("10.77.0.2", PORT), timeout=5) as sock:
            redirected = _option(sock, socket.SOL_IP, SO_ORIGINAL_DST)
        with socket.socket() as server, socket.socket() as sock:
            server.bind(("127.0.0.1", 0))
            server.listen()
            sock.connect(server.getsockname())
            return [redirected, _option(sock, socket.SOL_IP, SO_ORIGINAL_DST)]

    redirected, plain = mesh.node.do(action)
    assert redirected == plain
    assert redirected in ("ENOENT", "ENOPROTOOPT")


def test_exclusive_cgroup_is_released_for_us_when_its_owner_leaves(mesh: Mesh) -> None:
    alone = Cgroup(f"/{mesh.lab.id}/a/alone")
    alone.create()
    pin = attach_legacy(mesh.lab, alone, BEFORE)
    subprocess.run(
        ["bpftool", "cgroup", "detach", str(alone.path), "connect4", "pinned", str(pin)],
        check=True,
    )
    wait_until(lambda: not attached(alone), 5, "detached")
    mesh.kernel.add_scope(alone)
    assert len(attached(alone)) == 1
