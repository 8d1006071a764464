"""Whose connections are looked at, and which destinations are meant."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import psutil
import pytest

from interceptor.abi import CgroupFlag, Reason
from interceptor.cgroup import Cgroup
from interceptor.errors import InterceptorError, NotInstalled, Refused
from interceptor.node import Node
from tests.kernel.mesh import PORT, Mesh
from tests.support.lab import LabNode, wait_until

FAR4, FAR6, MAPPED = "10.77.0.2", "fd77::2", "::ffff:10.77.0.2"


@pytest.fixture
def meshed(mesh: Mesh) -> Mesh:
    """With something that answers directly on the far node."""
    mesh.serve(*(f"{host}:{port}" for host in (FAR4, f"[{FAR6}]") for port in (PORT, 5001)))
    return mesh


RULES = [
    # include, exclude, host, port, in the mesh?
    ((), (), FAR4, PORT, False),
    (("10.77.0.2/32",), (), FAR4, PORT, True),
    (("10.77.0.2/32",), (), MAPPED, PORT, True),
    (("10.77.0.2/32",), (), FAR6, PORT, False),
    (("fd77::2/128",), (), FAR6, PORT, True),
    (("10.77.0.2/32@5000",), (), FAR4, PORT, True),
    (("10.77.0.2/32@5000",), (), FAR4, 5001, False),
    (("fd77::2/128@5000",), (), FAR6, PORT, True),
    (("fd77::2/128@5000",), (), FAR6, 5001, False),
    (("0.0.0.0/0@5000",), (), FAR4, PORT, True),
    (("0.0.0.0/0@5000",), (), FAR4, 5001, False),
    (("10.0.0.0/8",), ("10.77.0.2/32",), FAR4, PORT, False),
    (("10.0.0.0/8",), ("10.77.0.2/32@5001",), FAR4, PORT, True),
    (("10.0.0.0/8",), ("10.77.0.2/32@5001",), FAR4, 5001, False),
    (("10.77.0.2/32@5000",), ("10.0.0.0/8",), FAR4, PORT, False),
    (("10.77.0.2/32",), ("0.0.0.0/0",), MAPPED, PORT, False),
    (("::/0",), ("fd77::/64",), FAR6, PORT, False),
    (("::/0",), ("fd77::/64@5001",), FAR6, PORT, True),
    (("0.0.0.0/0", "::/0"), (), "127.0.0.1", PORT, False),
    (("0.0.0.0/0", "::/0"), (), "::1", PORT, False),
    (("0.0.0.0/0", "::/0"), (), "::ffff:127.0.0.1", PORT, False),
    (("0.0.0.0/0", "::/0"), (), "0.0.0.0", PORT, False),
    (("0.0.0.0/0", "::/0"), (), "::", PORT, False),
    (("0.0.0.0/0", "::/0"), (), "10.77.0.1", PORT, True),
    (("0.0.0.0/0", "127.0.0.1/32@5000"), (), "127.0.0.1", PORT, True),
    (("0.0.0.0/0", "127.0.0.1/32@5000"), (), "127.0.0.1", 5001, False),
    (("127.0.0.0/8",), (), "::ffff:127.0.0.1", PORT, True),
    (("::1/128@5000",), (), "::1", PORT, True),
    (("::1/128@5000",), (), "::1", 5001, False),
    (("127.0.0.0/8",), ("127.0.0.1/32@5000",), "127.0.0.1", PORT, False),
]


def test_destination_rules(meshed: Mesh) -> None:
    near = [f"{host}:{port}" for host in ("127.0.0.1", "[::1]") for port in (PORT, 5001)]
    meshed.serve(*near, f"{meshed.node.ip4}:{PORT}", on=meshed.node)
    wrong = []
    for include, exclude, host, port, expected in RULES:
        meshed.include(*include)
        meshed.exclude(*exclude)
        answer = meshed.dial(host, port)
        if (answer["slot"] != "DIRECT") != expected:
            wrong.append((include, exclude, host, port, answer))
    assert not wrong


def test_destinations_are_read_back_as_written(meshed: Mesh) -> None:
    meshed.include("10.0.0.0/8@80", "10.0.0.0/8", "fd77::/64@443", "0.0.0.0/0")
    meshed.exclude("10.1.0.0/16")
    with meshed.kernel.maps() as maps:
        assert {str(d) for d in maps.destinations("include")} == {
            *("10.0.0.0/8:80", "10.0.0.0/8:*", "fd77::/64:443", "0.0.0.0/0:*")
        }
        assert {str(d) for d in maps.destinations("exclude")} == {"10.1.0.0/16:*"}


def test_process_outside_the_scope_is_left_alone(meshed: Mesh) -> None:
    meshed.include_all()
    with meshed.counted() as moved:
        assert meshed.who(FAR4, cgroup=Cgroup(f"/{meshed.lab.id}/outside")) == "DIRECT"
    assert moved == {}


def test_child_cgroup_is_in_the_scope_of_its_parent(meshed: Mesh) -> None:
    meshed.include_all()
    assert meshed.who(FAR4, cgroup=Cgroup(f"{meshed.node.services.name}/deep/er")) == "OUT4"


def test_excluded_child_cgroup(meshed: Mesh) -> None:
    meshed.include_all()
    child = Cgroup(f"{meshed.node.services.name}/left-alone")
    child.create()
    with meshed.kernel.maps() as maps:
        maps.set_cgroup_policy(child.id, CgroupFlag.EXCLUDED)
    with meshed.counted() as moved:
        assert meshed.who(FAR4, cgroup=child) == "DIRECT"
        assert meshed.who(FAR6, cgroup=Cgroup(f"{child.name}/below")) == "DIRECT"
        assert meshed.who(FAR4) == "OUT4"
    assert moved[Reason.CONNECT_CGROUP_EXCLUDED] == 2


def test_shadow_of_one_scope_counts_and_changes_nothing(meshed: Mesh) -> None:
    meshed.include_all()
    watched = Cgroup(f"/{meshed.lab.id}/a/watched")
    watched.create()
    meshed.kernel.add_scope(watched, shadow=True)
    with meshed.counted() as moved:
        answer = meshed.dial(FAR4, cgroup=watched)
        assert meshed.who(FAR4) == "OUT4"
    assert answer["slot"] == "DIRECT"
    assert answer["getpeername"] == [FAR4, PORT]
    assert moved[Reason.CONNECT_SHADOW] == 1
    assert [(s.cgroup, s.shadow) for s in meshed.kernel.scopes()] == [
        (meshed.node.services.name, False),
        (watched.name, True),
    ]


def test_shadow_of_the_root_cgroup_changes_nothing(meshed: Mesh) -> None:
    """Its destination is one that nobody else on this machine dials."""
    meshed.kernel.remove_scope(meshed.node.services)
    meshed.include("10.77.0.2/32@5001")
    meshed.kernel.add_scope(Cgroup("/"), shadow=True, force=True)
    try:
        with meshed.counted() as moved:
            assert meshed.who(FAR4, 5001) == "DIRECT"
        assert moved[Reason.CONNECT_SHADOW] == 1
    finally:
        meshed.kernel.remove_scope(Cgroup("/"))


def test_global_shadow_counts_and_changes_nothing(meshed: Mesh) -> None:
    meshed.include_all()
    meshed.kernel.switch(on=True, shadow=True)
    with meshed.counted() as moved:
        assert [meshed.who(host) for host in (FAR4, FAR6, MAPPED)] == ["DIRECT"] * 3
    assert moved[Reason.CONNECT_SHADOW] == 3
    assert Reason.CARRY_STORED not in moved
    meshed.kernel.switch(on=True)
    assert meshed.who(FAR4) == "OUT4"


def test_mesh_off_and_on_take_effect_at_the_next_connect(meshed: Mesh) -> None:
    meshed.include_all()
    for _ in range(3):
        assert meshed.who(FAR4) == "OUT4"
        meshed.kernel.switch(on=False)
        assert meshed.who(FAR4) == "DIRECT"
        meshed.kernel.switch(on=True)


def test_switch_that_is_not_confirmed_falls_back_by_itself(meshed: Mesh) -> None:
    """Nobody in user space does anything: neither moactl nor the agent need live for it."""
    meshed.include_all()
    meshed.kernel.switch(on=True, confirm_within_s=600)
    assert meshed.who(FAR4) == "OUT4"
    meshed.kernel.switch(on=True, confirm_within_s=0.1)
    wait_until(lambda: meshed.who(FAR4) == "DIRECT", 10, "the mesh is off")
    with meshed.counted() as moved:
        meshed.who(FAR4)
    assert moved[Reason.CONNECT_DISABLED] == 1
    with pytest.raises(Refused, match="not confirmed in time"):
        meshed.kernel.confirm()
    meshed.kernel.switch(on=True)
    assert meshed.who(FAR4) == "OUT4"


def test_switch_that_is_confirmed_stays(meshed: Mesh) -> None:
    meshed.include_all()
    meshed.kernel.switch(on=True, confirm_within_s=600)
    meshed.kernel.confirm()
    with meshed.kernel.maps() as maps:
        assert maps.cfg.on_until_ns == 0
    assert meshed.who(FAR4) == "OUT4"
    meshed.kernel.switch(on=False)
    with pytest.raises(Refused):
        meshed.kernel.confirm()


def test_cgroup_within_a_scope_is_excluded_and_no_more(meshed: Mesh) -> None:
    meshed.include_all()
    inside = Cgroup(f"{meshed.node.services.name}/unit")
    inside.create()
    for excluded, who in ((True, "DIRECT"), (False, "OUT4")):
        meshed.kernel.exclude(inside, excluded=excluded)
        assert meshed.who(FAR4, cgroup=inside) == who
        assert meshed.who(FAR4) == "OUT4"


def test_scope_that_is_passing_is_forgotten_with_its_cgroup(meshed: Mesh) -> None:
    meshed.include_all()
    unit = Cgroup(f"/{meshed.lab.id}/unit.service")
    unit.create()
    meshed.kernel.add_scope(unit, passing=True)
    assert meshed.who(FAR4, cgroup=unit) == "OUT4"
    wait_until(unit.remove, 5, "its cgroup is empty")
    assert meshed.kernel.reconcile() == []
    assert [scope.cgroup for scope in meshed.kernel.scopes()] == [meshed.node.services.name]


def test_scope_off_and_on_take_effect_at_the_next_connect(meshed: Mesh) -> None:
    meshed.include_all()
    assert meshed.kernel.remove_scope(meshed.node.services) is True
    assert meshed.who(FAR4) == "DIRECT"
    assert meshed.kernel.remove_scope(meshed.node.services) is False
    meshed.kernel.add_scope(meshed.node.services)
    assert meshed.who(FAR4) == "OUT4"


@pytest.mark.parametrize("name", ["below", ""])
def test_overlapping_scope_is_refused(meshed: Mesh, name: str) -> None:
    """Two of our programs in one path would decide each connection twice."""
    inside = Cgroup(f"{meshed.node.services.name}/below")
    inside.create()
    other = inside if name else Cgroup(f"/{meshed.lab.id}/a")
    with pytest.raises(Refused, match=r"overlaps with .*services, which is in the mesh"):
        meshed.kernel.add_scope(other)
    assert [scope.cgroup for scope in meshed.kernel.scopes()] == [meshed.node.services.name]


def test_scope_that_does_not_exist_is_an_error(meshed: Mesh) -> None:
    with pytest.raises(InterceptorError, match="does not exist"):
        meshed.kernel.add_scope(Cgroup(f"/{meshed.lab.id}/nowhere"))


def test_scope_before_install_is_an_error_and_leaves_nothing(lab_node: LabNode) -> None:
    node = Node(lab_node.root)
    for change in (
        lambda: node.add_scope(lab_node.services),
        lambda: node.remove_scope(lab_node.services),
        lambda: node.switch(on=True),
        lambda: node.reconcile(),
    ):
        with pytest.raises(NotInstalled, match="nothing is installed"):
            change()
    assert not lab_node.root.exists()


@pytest.fixture
def lab_node(mesh: Mesh) -> LabNode:
    return mesh.far


@pytest.fixture
def dangerous(meshed: Mesh, request: pytest.FixtureRequest) -> Iterator[Cgroup]:
    """A cgroup that holds a process of this name."""
    holder = Cgroup(f"/{meshed.lab.id}/a/login")
    program = shutil.copy("/bin/sleep", meshed.node.directory / request.param)
    sleeper = meshed.node.start("login", str(program), "60", cgroup=holder)
    process = psutil.Process(sleeper.pid)
    wait_until(lambda: process.name() == request.param, 5, "the process has its name")
    yield holder
    sleeper.kill()


@pytest.mark.parametrize("dangerous", ["sshd", "sshd-session", "systemd"], indirect=True)
def test_scope_that_holds_the_way_into_the_node_is_refused(meshed: Mesh, dangerous: Cgroup) -> None:
    with pytest.raises(Refused, match="--force to insist"):
        meshed.kernel.add_scope(dangerous)
    meshed.kernel.add_scope(dangerous, force=True)
    assert len(meshed.kernel.scopes()) == 2


def test_scope_that_holds_ourselves_is_refused(meshed: Mesh) -> None:
    def action() -> str:
        try:
            meshed.kernel.add_scope(mine)
        except Refused as e:
            return str(e)
        return "accepted"

    mine = Cgroup(f"/{meshed.lab.id}/a/mine")
    mine.create()
    assert "holds this very process" in meshed.node.do(action, cgroup=mine)


def _recreate(cgroup: Cgroup) -> None:
    wait_until(cgroup.remove, 5, "cgroup removed")
    cgroup.create()


def test_cgroup_that_vanishes_is_lost_and_can_be_uninstalled(meshed: Mesh) -> None:
    wait_until(meshed.node.services.remove, 5, "cgroup removed")
    assert [(s.cgroup, s.state) for s in meshed.kernel.scopes()] == [
        (meshed.node.services.name, "lost")
    ]
    assert meshed.kernel.reconcile() == []
    meshed.kernel.uninstall()
    assert not meshed.node.root.exists()


def test_cgroup_that_vanished_can_be_taken_out_of_the_mesh(meshed: Mesh) -> None:
    wait_until(meshed.node.services.remove, 5, "cgroup removed")
    assert meshed.kernel.remove_scope(meshed.node.services) is True
    assert meshed.kernel.scopes() == []


def test_recreated_cgroup_is_attached_again(meshed: Mesh) -> None:
    meshed.include_all()
    _recreate(meshed.node.services)
    assert [s.state for s in meshed.kernel.scopes()] == ["lost"]
    assert meshed.who(FAR4) == "DIRECT"
    assert meshed.kernel.reconcile() == [meshed.node.services.name]
    assert [s.state for s in meshed.kernel.scopes()] == ["attached"]
    assert meshed.who(FAR4) == "OUT4"
    assert meshed.kernel.reconcile() == []


def test_recreated_cgroup_keeps_its_shadow(meshed: Mesh) -> None:
    """What was only to be watched must not be redirected because its unit was restarted."""
    meshed.include_all()
    meshed.kernel.add_scope(meshed.node.services, shadow=True)
    _recreate(meshed.node.services)
    meshed.kernel.reconcile()
    assert meshed.who(FAR4) == "DIRECT"
    assert [(s.state, s.shadow) for s in meshed.kernel.scopes()] == [("attached", True)]
    with meshed.kernel.maps() as maps:
        assert set(maps.cgroup_policies()) == {meshed.node.services.id}


def test_scope_taken_out_and_added_again_forgets_its_shadow(meshed: Mesh) -> None:
    meshed.include_all()
    meshed.kernel.add_scope(meshed.node.services, shadow=True)
    meshed.kernel.remove_scope(meshed.node.services)
    meshed.kernel.add_scope(meshed.node.services)
    assert meshed.who(FAR4) == "OUT4"


def test_cgroup_path_under_the_mount_point_means_the_same(meshed: Mesh) -> None:
    assert Cgroup.of(meshed.node.services.path) == meshed.node.services


def test_a_scope_that_was_taken_out_says_so_until_it_is_added(meshed: Mesh) -> None:
    assert not meshed.kernel.was_taken_out(meshed.node.services)
    meshed.kernel.remove_scope(meshed.node.services)
    assert meshed.kernel.was_taken_out(meshed.node.services)
    meshed.kernel.add_scope(meshed.node.services)
    assert not meshed.kernel.was_taken_out(meshed.node.services)


def test_a_scope_that_was_never_in_is_taken_out_only_when_it_is_configured(meshed: Mesh) -> None:
    never = Cgroup(f"{meshed.node.services.name}-never")
    assert meshed.kernel.remove_scope(never) is False
    assert meshed.kernel.taken_out() == []
    assert meshed.kernel.remove_scope(never, configured=True) is False
    assert meshed.kernel.taken_out() == [never.name]
