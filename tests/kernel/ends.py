"""An agent's listeners and a caller in one process: both ends of each connection at hand.

The process is born in the agent's cgroup, where it makes the listeners, and then moves to the
services' one: sockets keep the cgroup that they were made in.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from typing import Any

from interceptor.abi import ListenerSlot
from tests.kernel.mesh import OUTBOUND, PORT, Mesh, family_of
from tests.support.stub_agent import listener


class Ends:
    """Use inside `on_both_ends` only."""

    def __init__(self, mesh: Mesh) -> None:
        self.maps = mesh.kernel.maps()
        self.servers = {
            ListenerSlot.OUT4: listener(socket.AF_INET, "127.0.0.1", OUTBOUND),
            ListenerSlot.OUT6: listener(socket.AF_INET6, "::1", OUTBOUND),
        }
        for slot, server in self.servers.items():
            self.maps.publish_listener(slot, server, mark=1)
        mesh.node.services.add(os.getpid())

    def connect(self, host: str, port: int = PORT) -> tuple[socket.socket, socket.socket | None]:
        """The caller's socket, and the agent's; None when the connection went direct."""
        self.maps.beat()
        caller = socket.socket(family_of(host), socket.SOCK_STREAM)
        caller.settimeout(5)
        caller.connect((host, port))
        ready, _, _ = select.select(self.servers.values(), [], [], 0)
        return caller, ready[0].accept()[0] if ready else None


def on_both_ends(mesh: Mesh, action: Callable[[Ends], Any], *, timeout_s: float = 30.0) -> Any:
    """Run it in a process of its own on the first node, while no other agent serves there."""
    return mesh.node.do(lambda: action(Ends(mesh)), cgroup=mesh.node.agent, timeout_s=timeout_s)
