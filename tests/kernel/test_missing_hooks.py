"""Kernels that lack a hook: what is lost with it, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from interceptor.errors import InterceptorError, NotInstalled
from interceptor.libbpf import AttachType
from interceptor.probe import probe_hooks, probe_maps
from tests.kernel.ends import Ends, on_both_ends
from tests.kernel.features import without
from tests.kernel.mesh import PORT, Mesh
from tests.support.traces import assert_same, look

REQUIRED = (AttachType.CONNECT4, AttachType.SOCK_OPS, AttachType.GETSOCKOPT)
PORT_OF_SERVICE = 6000


@pytest.mark.parametrize("missing", REQUIRED)
def test_required_hook_is_missing(bare: Mesh, missing: AttachType) -> None:
    before = look(bare.lab)
    with pytest.raises(
        InterceptorError,
        match=r"this kernel does not support it: EINVAL .*traffic is left alone.*doctor",
    ):
        bare.kernel.install(bare.settings(), features=without(missing))
    with pytest.raises(NotInstalled):
        bare.kernel.maps()
    assert_same(bare.lab, before)


def degraded(mesh: Mesh, *missing: AttachType) -> None:
    report = mesh.kernel.install(mesh.settings(), features=without(*missing))
    assert set(report.missing_hooks) >= {m.name.lower() for m in missing}
    mesh.kernel.add_scope(mesh.node.services)
    mesh.kernel.switch(on=True)
    mesh.include_all()
    mesh.serve_far()


def dialled(mesh: Mesh, host: str) -> tuple[str | None, list[Any]]:
    """The agent's address that was reached, None for nobody; the caller's peer name."""

    def action(ends: Ends) -> list[Any]:
        caller, accepted = ends.connect(host)
        local = accepted.getsockname()[0] if accepted else None
        return [local, list(caller.getpeername()[:2])]

    local, peer = on_both_ends(mesh, action)
    return local, peer


def test_without_sk_lookup_no_spread_and_no_inbound_steering(bare: Mesh) -> None:
    degraded(bare, AttachType.SK_LOOKUP)
    assert dialled(bare, "10.77.0.2") == ("127.0.0.1", ["10.77.0.2", PORT])
    assert dialled(bare, "fd77::2") == ("::1", ["fd77::2", PORT])
    with bare.kernel.maps() as maps:
        maps.set_in_ports([PORT_OF_SERVICE])
    bare.serve(f"{bare.node.ip4}:{PORT_OF_SERVICE}", on=bare.node)
    assert bare.who(bare.node.ip4, PORT_OF_SERVICE, cgroup=bare.node.agent) == "DIRECT"


def test_without_getpeername_the_agents_address_is_seen(bare: Mesh) -> None:
    degraded(bare, AttachType.GETPEERNAME4, AttachType.GETPEERNAME6)
    local, peer = dialled(bare, "10.77.0.2")
    assert peer == [local, 15001]
    assert dialled(bare, "fd77::2") == ("::1", ["::1", 15001])


def test_without_connect6_ipv4_alone_is_redirected(bare: Mesh) -> None:
    degraded(bare, AttachType.CONNECT6)
    assert dialled(bare, "10.77.0.2")[0] is not None
    assert dialled(bare, "fd77::2") == (None, ["fd77::2", PORT])
    assert dialled(bare, "::ffff:10.77.0.2") == (None, ["::ffff:10.77.0.2", PORT])


def test_hook_that_a_newer_kernel_brings_is_attached_by_the_next_install(bare: Mesh) -> None:
    degraded(bare, AttachType.SK_LOOKUP, AttachType.GETPEERNAME4)
    report = bare.kernel.install(bare.settings())
    assert report.missing_hooks == ()
    assert "getpeername4" in bare.kernel.scopes()[0].hooks
    local, peer = dialled(bare, "10.77.0.2")
    assert str(local).startswith("127.64.")
    assert peer == ["10.77.0.2", PORT]


def test_this_kernel_has_every_hook_and_map() -> None:
    assert [hook for hook in probe_hooks().hooks if not hook.works] == []
    assert [kind for kind in probe_maps() if not kind.works] == []
