"""Peers written into a node's map as a supervisor would."""

from __future__ import annotations

import time

from interceptor import peers
from interceptor.maps import Destination
from tests.kernel.mesh import PORT, Mesh

PEER_PORT = 15008


def include_instances(mesh: Mesh) -> None:
    """The far node's addresses are MOA instances."""
    with mesh.kernel.maps() as maps:
        wanted = (mesh.far.ip4, mesh.far.ip6)
        maps.set_destinations(
            "include", (Destination.of(host, PORT, is_instance=True) for host in wanted)
        )


def write_peers(mesh: Mesh, *, valid_s: float = 30, cookie: int | None = None) -> None:
    """The far node is the one peer; for callers of the first node's namespace by default."""
    if cookie is None:
        cookie = int(mesh.node.do(peers.netns_cookie))
    until_ns = time.monotonic_ns() + int(valid_s * 1e9)
    with mesh.kernel.maps() as maps:
        for family, host in ((4, mesh.far.ip4), (6, mesh.far.ip6)):
            peers.write(maps, family, [(host, PEER_PORT)], valid_until_ns=until_ns, cookie=cookie)
