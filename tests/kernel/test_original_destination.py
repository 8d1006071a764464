"""A service dials; the agent gets the connection and learns where it was meant to go."""

from __future__ import annotations

import errno
import os
import select
import socket

import pytest

from interceptor.abi import Reason
from tests.kernel.handshake import carried, make_caller_older
from tests.kernel.mesh import PORT, Answer, Mesh, answered_by_agent, read_line
from tests.support.lab import run, wait_until

NOBODY4, NOBODY6 = "10.77.0.99", "fd77::99"
IPPROTO_MPTCP = 262
TCP_FASTOPEN_CONNECT = 30


@pytest.fixture
def meshed(mesh: Mesh) -> Mesh:
    mesh.include_all()
    return mesh


@pytest.mark.parametrize(
    ("dialled", "slot", "original", "peername"),
    [
        ("10.77.0.2", "OUT4", "10.77.0.2:5000", "10.77.0.2"),
        ("fd77::2", "OUT6", "[fd77::2]:5000", "fd77::2"),
        ("::ffff:10.77.0.2", "OUT4", "10.77.0.2:5000", "::ffff:10.77.0.2"),
    ],
    ids=["ipv4", "ipv6", "v4-mapped"],
)
def test_original_destination_and_peer_name(
    meshed: Mesh, dialled: str, slot: str, original: str, peername: str
) -> None:
    answer = meshed.dial(dialled)
    assert (answer["slot"], answer["original"]) == (slot, original)
    assert answer["getpeername"] == [peername, PORT]


def test_connections_are_spread_over_127_64(meshed: Mesh) -> None:
    seen = {meshed.dial("10.77.0.2")["local"][0] for _ in range(5)}
    assert len(seen) > 1
    assert all(address.startswith("127.64.") for address in seen), seen


def test_spread_connections_reach_a_listener_that_is_bound_to_127_0_0_1_alone(
    meshed: Mesh,
) -> None:
    listening = meshed.node.call("ss", "-Hltn", "sport = :15001").stdout
    assert "127.0.0.1:15001" in listening
    assert "[::1]:15001" in listening
    assert "0.0.0.0" not in listening.replace("0.0.0.0:*", "")


@pytest.mark.parametrize("host", ["10.77.0.2", "fd77::2", "::ffff:10.77.0.2"])
def test_non_blocking_connect(meshed: Mesh, host: str) -> None:
    def action() -> Answer:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as sock, select.epoll() as epoll:
            sock.setblocking(False)
            assert sock.connect_ex((host, PORT)) == errno.EINPROGRESS
            epoll.register(sock, select.EPOLLOUT)
            assert epoll.poll(5) == [(sock.fileno(), select.EPOLLOUT)]
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            sock.setblocking(True)
            return read_line(sock) | {"getpeername": list(sock.getpeername()[:2])}

    answer = meshed.node.do(action)
    assert answer["original"] in ("10.77.0.2:5000", "[fd77::2]:5000")
    assert answer["getpeername"] == [host, PORT]


def test_non_blocking_connect_to_nobody_without_agent_reports_by_so_error(meshed: Mesh) -> None:
    meshed.agent.kill()

    def action() -> int:
        with socket.socket() as sock, select.epoll() as epoll:
            sock.setblocking(False)
            assert sock.connect_ex((meshed.far.ip4, PORT)) == errno.EINPROGRESS
            epoll.register(sock, select.EPOLLOUT)
            assert epoll.poll(5)[0][1] & select.EPOLLERR
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    assert meshed.node.do(action) == errno.ECONNREFUSED


def test_same_socket_is_redirected_after_a_direct_connect_failed(meshed: Mesh) -> None:
    meshed.exclude("10.77.0.2/32")

    def action() -> Answer:
        with socket.socket() as sock:
            assert sock.connect_ex(("10.77.0.2", PORT)) == errno.ECONNREFUSED
            sock.connect((NOBODY4, PORT))
            return read_line(sock) | {"getpeername": list(sock.getpeername())}

    answer = meshed.node.do(action)
    answered_by_agent(answer, f"{NOBODY4}:{PORT}")
    assert answer["getpeername"] == [NOBODY4, PORT]


def test_same_socket_goes_direct_after_it_was_redirected(meshed: Mesh) -> None:
    """What was remembered of the first connect() must not colour the second one."""
    meshed.serve_far()
    meshed.include(f"{NOBODY4}/32")

    def action() -> Answer:
        with socket.socket() as sock:
            sock.connect((NOBODY4, PORT))
            first = read_line(sock)
            _disconnect(sock)
            sock.connect(("10.77.0.2", PORT))
            second = read_line(sock)
            return {"first": first, "second": second, "peer": list(sock.getpeername())}

    both = meshed.node.do(action)
    answered_by_agent(both["first"], f"{NOBODY4}:{PORT}")
    assert both["second"]["slot"] == "DIRECT"
    assert both["peer"] == ["10.77.0.2", PORT]


def test_same_socket_twice_redirected_tells_the_second_destination(meshed: Mesh) -> None:
    def action() -> Answer:
        with socket.socket() as sock:
            sock.connect((NOBODY4, PORT))
            read_line(sock)
            _disconnect(sock)
            sock.connect(("10.77.0.2", 5001))
            return read_line(sock) | {"getpeername": list(sock.getpeername())}

    answer = meshed.node.do(action)
    answered_by_agent(answer, "10.77.0.2:5001")
    assert answer["getpeername"] == ["10.77.0.2", 5001]


def _disconnect(sock: socket.socket) -> None:
    """connect() to AF_UNSPEC, which Python's socket module has no word for."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), bytes(16), 16) != 0:
        raise OSError(ctypes.get_errno(), "disconnect")


def test_tcp_fast_open(meshed: Mesh) -> None:
    """MSG_FASTOPEN connects from within sendto()."""

    def action() -> Answer:
        with socket.socket() as sock:
            sock.sendto(b"hello", socket.MSG_FASTOPEN, ("10.77.0.2", PORT))
            return read_line(sock) | {"getpeername": list(sock.getpeername())}

    answer = meshed.node.do(action)
    answered_by_agent(answer, "10.77.0.2:5000")
    assert answer["getpeername"] == ["10.77.0.2", PORT]


def test_tcp_fast_open_that_connects_with_the_first_write(meshed: Mesh) -> None:
    """The SYN leaves when the service writes, which may be minutes after its connect()."""
    meshed.node.call("sysctl", "-w", "net.ipv4.tcp_fastopen=5")

    def action() -> Answer:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_TCP, TCP_FASTOPEN_CONNECT, 1)
            sock.connect(("10.77.0.2", PORT))
            assert carried(meshed.kernel) == [], "no SYN yet"
            make_caller_older(meshed.kernel, sock, age_s=600)
            sock.sendall(b"hello")
            return read_line(sock)

    answered_by_agent(meshed.node.do(action), "10.77.0.2:5000")


def test_udp_connect_is_untouched(meshed: Mesh) -> None:
    def action() -> list[object]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("10.77.0.2", PORT))
            return list(sock.getpeername())

    with meshed.counted() as moved:
        assert meshed.node.do(action) == ["10.77.0.2", PORT]
    assert moved == {Reason.CONNECT_NOT_TCP: 1}


@pytest.mark.parametrize(
    ("source", "host", "original"),
    [
        ("10.77.0.1", "10.77.0.2", "10.77.0.2:5000"),
        ("127.0.0.1", "10.77.0.2", "10.77.0.2:5000"),
        ("fd77::1", "fd77::2", "[fd77::2]:5000"),
        ("::ffff:10.77.0.1", "::ffff:10.77.0.2", "10.77.0.2:5000"),
    ],
)
def test_source_bound_socket(meshed: Mesh, source: str, host: str, original: str) -> None:
    answer = meshed.dial(host, prepare=lambda sock: sock.bind((source, 0)))
    answered_by_agent(answer, original)
    assert answer["peer"][0] == source.removeprefix("::ffff:")


def test_source_port_bound_before_connect(meshed: Mesh) -> None:
    answer = meshed.dial("10.77.0.2", prepare=lambda sock: sock.bind(("0.0.0.0", 34567)))
    answered_by_agent(answer, "10.77.0.2:5000")
    assert answer["peer"][1] == 34567


def test_device_bound_socket_is_left_alone(meshed: Mesh) -> None:
    meshed.serve_far()

    def to_eth0(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")

    with meshed.counted() as moved:
        assert meshed.dial("10.77.0.2", prepare=to_eth0)["slot"] == "DIRECT"
        assert meshed.dial("fd77::2", prepare=to_eth0)["slot"] == "DIRECT"
    assert moved[Reason.CONNECT_DEVICE_BOUND] == 2


def test_link_local_destination_is_left_alone(meshed: Mesh) -> None:
    """Such an address means a device with it, which SO_ORIGINAL_DST cannot tell the agent."""
    shown = run("ip", "-n", meshed.far.netns.name, "-6", "addr", "show", "dev", "eth0")
    far = next(word.split("/")[0] for word in shown.split() if word.startswith("fe80::"))

    def no_longer_tentative() -> bool:
        return all(
            "tentative" not in run("ip", "-n", node.netns.name, "-6", "addr")
            for node in (meshed.node, meshed.far)
        )

    wait_until(no_longer_tentative, 10, "duplicate address detection done")
    meshed.serve(f"[{far}%eth0]:{PORT}")

    def action() -> Answer:
        with socket.socket(socket.AF_INET6) as sock:
            sock.settimeout(5)
            sock.connect((far, PORT, 0, socket.if_nametoindex("eth0")))
            return read_line(sock)

    assert meshed.node.do(action)["slot"] == "DIRECT"


def test_multipath_tcp_socket(meshed: Mesh) -> None:
    """Its first subflow is what connects: redirected whole, but the socket that the service
    holds is another one, whose peer name the kernel does not let us answer."""

    def action() -> Answer:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as sock:
            sock.settimeout(5)
            sock.connect(("10.77.0.2", PORT))
            return read_line(sock) | {"getpeername": list(sock.getpeername())}

    answer = meshed.node.do(action)
    answered_by_agent(answer, "10.77.0.2:5000")
    assert answer["getpeername"] == answer["local"]


def test_marked_socket_is_left_alone(lab_mesh_with_mark: Mesh) -> None:
    mesh = lab_mesh_with_mark

    def marked(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x4D4F41)

    with mesh.counted() as moved:
        assert mesh.dial("10.77.0.2", prepare=marked)["slot"] == "DIRECT"
        assert mesh.who("10.77.0.2") == "OUT4"
    assert moved[Reason.CONNECT_AGENT_MARK] == 1


@pytest.fixture
def lab_mesh_with_mark(meshed: Mesh) -> Mesh:
    meshed.serve_far()
    meshed.kernel.install(meshed.settings(mark=0x4D4F41))
    return meshed


@pytest.mark.parametrize("host", ["10.77.0.2", "fd77::2", "::ffff:10.77.0.2"])
def test_peer_name_of_a_direct_connection_is_the_kernels(meshed: Mesh, host: str) -> None:
    meshed.serve_far()
    meshed.include("192.0.2.0/24")
    answer = meshed.dial(host)
    assert answer["slot"] == "DIRECT"
    assert answer["getpeername"] == [host, PORT]


def test_connection_survives_the_exit_of_the_process_that_dialled(meshed: Mesh) -> None:
    """A descriptor may be inherited; the peer name goes with the socket."""

    def action() -> list[object]:
        sock = socket.create_connection(("10.77.0.2", PORT), timeout=5)
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, repr(list(sock.getpeername())).encode())
            os._exit(0)
        os.wait()
        return [os.read(reader, 100).decode()]

    assert meshed.node.do(action) == [repr(["10.77.0.2", PORT])]
