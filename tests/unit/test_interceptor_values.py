"""What interceptor/ decides without asking the kernel: names, texts, refusals."""

from __future__ import annotations

import errno
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interceptor import bpffs, cgroup, events
from interceptor.abi import Event, Reason
from interceptor.bpffs import PinTree
from interceptor.cgroup import Cgroup
from interceptor.errors import InterceptorError, KernelError
from interceptor.libbpf import AttachType
from interceptor.links import AGENT_HOOKS, ALL_HOOKS, SCOPE_HOOKS
from interceptor.maps import Destination
from interceptor.probe import Features, Support
from interceptor.programs import usable_hooks

TREE = PinTree(Path("/sys/fs/bpf/moa"))
EVERY_HOOK = Features(tuple(Support(attach.name.lower(), works=True) for attach in AttachType))


# Cgroups


@pytest.mark.parametrize(
    ("given_name", "name", "level"),
    [
        ("/", "/", 0),
        ("", "/", 0),
        ("app.slice", "/app.slice", 1),
        ("/app.slice/", "/app.slice", 1),
        ("//a/./b//c", "/a/b/c", 3),
    ],
)
def test_cgroup_name(
    monkeypatch: pytest.MonkeyPatch, given_name: str, name: str, level: int
) -> None:
    monkeypatch.setattr(cgroup, "mount_point", lambda: Path("/cg"))
    found = Cgroup.of(given_name)
    assert (found.name, found.level) == (name, level)
    assert Cgroup.of(found.path) == found


def test_cgroup_next_to_the_mount_point_is_a_name_below_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cgroup, "mount_point", lambda: Path("/cg"))
    assert Cgroup.of("/cgroups/a").name == "/cgroups/a"
    assert Cgroup.of("/cg/a").name == "/a"


def test_cgroup_may_not_climb() -> None:
    with pytest.raises(InterceptorError, match=r"'\.\.' is not allowed"):
        Cgroup.of("/a/../b")


@pytest.mark.parametrize(
    ("outer", "inner", "holds"),
    [
        ("/", "/a", True),
        ("/a", "/a", True),
        ("/a", "/a/b", True),
        ("/a", "/ab", False),
        ("/a/b", "/a", False),
    ],
)
def test_cgroup_holds(outer: str, inner: str, holds: bool) -> None:
    assert Cgroup(outer).holds(Cgroup(inner)) is holds


def test_cgroup_and_its_ancestors() -> None:
    names = [found.name for found in Cgroup("/a/b/c").and_ancestors()]
    assert names == ["/a/b/c", "/a/b", "/a"]
    assert list(Cgroup("/").and_ancestors()) == []


def test_id_of_a_cgroup_that_does_not_exist() -> None:
    with pytest.raises(InterceptorError, match="/none-of-this: does not exist"):
        _ = Cgroup("/none-of-this").id


# Pins


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20))
def test_scope_name_can_be_read_back(name: str) -> None:
    directory = TREE.scope("/" + name)
    assert directory.parent == TREE.scope_links
    assert "." not in directory.name
    assert bpffs.cgroup_name(directory) == "/" + name


def test_scope_name_that_is_too_long() -> None:
    with pytest.raises(InterceptorError, match="too long to be pinned"):
        TREE.scope("/" + "x" * 300)


# Destinations


@pytest.mark.parametrize(
    ("network", "loopback"),
    [
        ("127.0.0.1/32", True),
        ("127.0.0.0/8", True),
        ("126.0.0.0/7", False),
        ("0.0.0.0/0", False),
        ("::1/128", True),
        ("::/127", False),
        ("::/0", False),
    ],
)
def test_destination_within_loopback(network: str, loopback: bool) -> None:
    assert Destination(ip_network(network)).is_loopback is loopback


def test_destination_text() -> None:
    assert str(Destination.of("10.0.0.1", 80)) == "10.0.0.1/32:80"
    assert str(Destination(ip_network("fd77::/64"))) == "fd77::/64:*"


# Hooks


def test_connect_is_attached_last_and_its_consumers_first() -> None:
    names = [hook.name for hook in ALL_HOOKS]
    assert names[-1] == "connect4"
    assert names.index("sockops_agent") < names.index("sockops_caller")
    assert names.index("getsockopt") < names.index("connect6")
    assert names.index("sk_lookup") < names.index("connect6")


def test_every_hook_is_usable_where_all_work() -> None:
    assert tuple(usable_hooks(ALL_HOOKS, EVERY_HOOK)) == ALL_HOOKS


def test_optional_hook_that_is_missing_is_left_out() -> None:
    features = Features(tuple(s for s in EVERY_HOOK.hooks if s.name != "getpeername4"))
    names = {hook.name for hook in usable_hooks(SCOPE_HOOKS, features)}
    assert names == {"sockops_caller", "getpeername6", "connect6", "connect4"}


def test_required_hook_that_is_missing_says_what_the_kernel_said() -> None:
    features = Features((Support("getsockopt", works=False, detail="EINVAL (no such hook)"),))
    with pytest.raises(
        InterceptorError, match=r"hook getsockopt: .*EINVAL \(no such hook\).*moactl doctor"
    ):
        list(usable_hooks(AGENT_HOOKS, features))


# Errors


def test_kernel_error_tells_what_the_number_the_hint_and_the_log() -> None:
    error = KernelError("load x", errno.EACCES, log="libbpf: one\nlibbpf: two\n")
    assert error.errno == errno.EACCES
    first, *log = str(error).splitlines()
    assert first.startswith("load x: EACCES (Permission denied); ")
    assert "moactl doctor" in first
    assert [line.strip() for line in log] == ["libbpf: one", "libbpf: two"]


def test_kernel_error_with_a_number_that_python_does_not_know() -> None:
    assert str(KernelError("pin y", 524)).startswith("pin y: 524 (")


# Events


def test_event_of_a_redirected_connection() -> None:
    event = Event(at_ns=7, cookie=8, cgroup_id=9, pid=10, family=4, comm=b"curl")
    event.reason = Reason.CONNECT_REDIRECTED
    event.before_be[:4] = [10, 0, 0, 1]
    event.after_be[:4] = [127, 64, 0, 1]
    event.before_port_be[:] = [0, 80]
    event.after_port_be[:] = [0x3A, 0x99]
    assert events.parse(bytes(event)) == events.Decision(
        at_ns=7,
        reason=Reason.CONNECT_REDIRECTED,
        pid=10,
        comm="curl",
        cgroup_id=9,
        cookie=8,
        before="10.0.0.1:80",
        after="127.64.0.1:15001",
    )


def test_event_of_a_connection_left_alone() -> None:
    event = Event(family=6, reason=Reason.CONNECT_HEARTBEAT_STALE)
    event.before_be[15] = 1
    event.before_port_be[:] = [0, 80]
    parsed = events.parse(bytes(event))
    assert (parsed.before, parsed.after) == ("[::1]:80", "")
