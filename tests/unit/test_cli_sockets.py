"""Which sockets there are, and which of them a new connect() would bring to the agent."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from installer import agent_lock, tcp_table
from installer.bypass import DestinationIndex, Intercepted
from installer.tcp_table import ESTABLISHED, LISTEN, Endpoint
from interceptor.maps import Destination


def endpoint(host: str, port: int) -> Endpoint:
    return Endpoint(ip_address(host), port)


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", 2), ("::1", 10)])
def test_sockets_of_this_process(host: str, family: int) -> None:
    with (
        socket.create_server((host, 0), family=socket.AddressFamily(family)) as server,
        socket.create_connection(server.getsockname()[:2]) as client,
    ):
        by_inode = {s.inode: s for s in tcp_table.of_namespace()}
        listening = by_inode[os.fstat(server.fileno()).st_ino]
        connected = by_inode[os.fstat(client.fileno()).st_ino]
        assert listening.state == LISTEN
        assert connected.state == ESTABLISHED
        assert connected.remote == endpoint(*server.getsockname()[:2])
        assert connected.local == endpoint(*client.getsockname()[:2])
        assert {listening.inode, connected.inode} <= tcp_table.inodes_of(os.getpid())


def test_v4_mapped_address_is_shown_as_ipv4() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET6) as client,
    ):
        port = server.getsockname()[1]
        client.connect(("::ffff:127.0.0.1", port))
        inode = os.fstat(client.fileno()).st_ino
        found = next(s for s in tcp_table.of_namespace() if s.inode == inode)
        assert str(found.remote) == f"127.0.0.1:{port}"


def test_process_that_has_gone_has_nothing() -> None:
    gone = 2**22 + 1
    assert tcp_table.of_namespace(gone) == []
    assert tcp_table.inodes_of(gone) == set()
    assert tcp_table.namespace_id(gone) is None
    assert tcp_table.process_name(gone) == ""


def test_line_cut_off_is_left_out() -> None:
    assert list(tcp_table.parse("  sl  local_address rem\n   0: 0100007F:1388 0000\n")) == []


@pytest.mark.parametrize(
    ("host", "port", "inside"),
    [
        ("10.1.2.3", 80, True),
        ("11.0.0.1", 5000, True),
        ("11.0.0.1", 5001, False),
        ("11.0.0.2", 5000, False),
        ("fd00::1", 1, True),
        ("fe80::1", 1, False),
        ("127.0.0.1", 80, False),
        ("127.0.0.9", 7000, True),
    ],
)
def test_destinations(host: str, port: int, inside: bool) -> None:
    index = DestinationIndex(
        [
            Destination(ip_network("10.0.0.0/8")),
            Destination.of("11.0.0.1", 5000),
            Destination(ip_network("fd00::/8")),
            Destination.of("127.0.0.9", 7000),
        ]
    )
    assert (endpoint(host, port) in index) is inside


def test_loopback_is_meant_only_by_an_entry_of_its_own() -> None:
    everything = DestinationIndex(
        [Destination(ip_network("0.0.0.0/0")), Destination(ip_network("::/0"))]
    )
    assert endpoint("8.8.8.8", 53) in everything
    assert endpoint("127.0.0.1", 80) not in everything
    assert endpoint("::1", 80) not in everything


def test_what_is_intercepted_already_or_excluded_does_not_count() -> None:
    include = DestinationIndex(map(Destination, map(ip_network, ("10.0.0.0/8", "127.0.0.0/8"))))
    exclude = DestinationIndex([Destination(ip_network("10.9.0.0/16"))])
    intercepted = Intercepted(include, exclude, frozenset({15001, 15006}))
    assert intercepted.holds(endpoint("10.0.0.1", 5000))
    assert not intercepted.holds(endpoint("10.9.0.1", 5000))
    assert not intercepted.holds(endpoint("127.64.1.2", 15001))
    assert intercepted.holds(endpoint("127.0.0.1", 6379))


def test_lock_names_its_holder_only_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / agent_lock.LOCK_NAME
    assert agent_lock.holder(tmp_path) is None
    path.write_text(f"{os.getpid()}\n")
    assert agent_lock.holder(tmp_path) is None
    with path.open():
        assert agent_lock.holder(tmp_path) == os.getpid()
    path.write_text("half a")
    assert agent_lock.holder(tmp_path) is None
