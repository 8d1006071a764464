"""Sockets as the agent makes them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from proxy.core.model import Address
from proxy.net.sockets import open_listener

CONNECTIONS = 100
KILLED = """
import socket, sys, time
from proxy.core.model import Address
from proxy.net.sockets import open_listener
listener = open_listener(Address("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
listener.setblocking(True)
kept = [listener.accept() for _ in range(int(sys.argv[1]))]
print("accepted", flush=True)
time.sleep(60)
"""


def test_a_listener_is_above_the_connections_and_is_inherited_by_nobody() -> None:
    with open_listener(Address("127.0.0.1", 0)) as listener, socket.socket() as other:
        assert listener.fileno() > other.fileno() + 100
        assert not listener.getblocking()
        assert not os.get_inheritable(listener.fileno())


def test_who_comes_back_to_a_killed_process_finds_no_listener() -> None:
    """The first connection that ends says that the process is going: nothing may accept now."""
    argv = [sys.executable, "-c", KILLED, str(CONNECTIONS)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = ("127.0.0.1", int(process.stdout.readline()))
        clients = [socket.create_connection(address, 5) for _ in range(CONNECTIONS)]
        process.stdout.readline()
        process.kill()
        accepted = 0
        for client in clients:
            assert client.recv(1) == b""
            client.close()
            with socket.socket() as again:
                accepted += again.connect_ex(address) == 0
    assert accepted == 0
