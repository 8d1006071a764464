"""Each check of the doctor, on machines that are not this one."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from installer.config import Config
from installer.config_sections import Registry, Scope
from installer.doctor import check as doctor_check
from installer.doctor.check import Status
from installer.doctor.checks import ALL_CHECKS
from installer.doctor.foreign import Foreign
from installer.doctor.probes import Listener, Probes
from installer.mesh_word import Switch, Word, WordError
from installer.next_steps import TO_INSTALL
from installer.node_state import Heartbeat
from installer.plan.manifest import Manifest, ManifestError
from interceptor.bpffs import PinTree
from interceptor.errors import Incomplete, InterceptorError
from interceptor.libbpf import AttachType
from interceptor.node import Scope as PinnedScope
from interceptor.probe import Features, Support
from proxy.registry.base import RegistryError
from tests.support.machines import (
    AGENT_PID,
    HOOKS,
    MAPS,
    NOBODY,
    STATE,
    UNIFIED,
    healthy_machine,
    raising,
)


@pytest.fixture
def healthy(tmp_path: Path) -> Probes:
    return healthy_machine(tmp_path)


def result_of(identity: str, probes: Probes) -> tuple[str, str, str]:
    chosen = [check for check in ALL_CHECKS if check.id == identity]
    (finding,) = doctor_check.run(chosen, probes)
    result = finding.result
    return result.status.value, result.seen, result.todo


def test_healthy_machine_has_no_findings(healthy: Probes) -> None:
    findings = list(doctor_check.run(ALL_CHECKS, healthy))
    assert {f.result.status for f in findings} == {Status.OK}, findings
    assert all(f.result.seen and not f.result.todo for f in findings)


OLD_KERNEL: dict[str, Any] = {"kernel_release": lambda: "5.10.0-28"}


OFF: dict[str, Any] = {"installed": lambda: replace(STATE, enabled=False)}


V1 = "cgroup /sys/fs/cgroup/net_cls cgroup rw,net_cls,net_prio 0 0\n" + UNIFIED


@pytest.mark.parametrize(
    ("identity", "changes", "status", "words"),
    [
        ("python", {"python_version": lambda: (3, 9, 2)}, "fail", "3.9.2"),
        ("caps", {"capabilities": lambda: 0}, "fail", "CAP_BPF"),
        ("caps", {"capabilities": lambda: 1 << 21 | 1 << 12}, "ok", "enough"),
        ("caps", {"capabilities": lambda: 1 << 39 | 1 << 38}, "fail", "missing CAP_NET_ADMIN"),
        ("hook-connect4", {"capabilities": lambda: 0}, "skip", "see caps"),
        ("map-sockmap", {"capabilities": lambda: 0}, "skip", "see caps"),
        ("cgroup2", {"mounts": lambda: ""}, "fail", "not mounted"),
        ("cgroup2", {"mounts": lambda: V1}, "ok", "hybrid"),
        ("bpffs", {"bpffs_at": lambda _: None}, "warn", "not mounted"),
        (
            "bpffs",
            {"bpffs_at": lambda _: None, "tree": PinTree(Path("/srv/moa"))},
            "fail",
            "bpf.root /srv/moa",
        ),
        ("memlock", OLD_KERNEL | {"limit": lambda _: (65536, 65536)}, "ok", "libbpf raises it"),
        (
            "memlock",
            OLD_KERNEL | {"limit": lambda _: (65536, 65536), "capabilities": lambda: 0},
            "fail",
            "65536 bytes",
        ),
        ("memlock", OLD_KERNEL | {"limit": lambda _: (-1, -1)}, "ok", "unlimited"),
        ("libbpf", {"libbpf_version": raising(InterceptorError("none"))}, "fail", "none"),
        (
            "libbpf",
            {"libbpf_version": raising(InterceptorError("x")), "has_library": lambda _: True},
            "fail",
            "libbpf.so.0 only",
        ),
        ("map-sockmap", {"map_types": lambda: MAPS[:1]}, "skip", "not tried"),
        (
            "map-ringbuf",
            {"map_types": lambda: (Support("ringbuf", False, "EINVAL"),)},
            "fail",
            "EINVAL",
        ),
        ("net-cls", OLD_KERNEL | {"mounts": lambda: V1}, "warn", "/sys/fs/cgroup/net_cls"),
        (
            "net-cls",
            OLD_KERNEL | {"mounts": lambda: V1, "net_cls_in_use": lambda _: True},
            "fail",
            "lose their cgroup v2",
        ),
        ("net-cls", {"mounts": lambda: V1}, "ok", "harmless"),
        ("descriptors", {"nofile_of": lambda _: (1024, 4096)}, "warn", "1024 of the agent"),
        (
            "descriptors",
            {
                "agent_pid": lambda: None,
                "limit": lambda _: (1024, 4096),
                "capabilities": lambda: 0,
            },
            "warn",
            "4096 here",
        ),
        (
            "descriptors",
            {"agent_pid": lambda: None, "limit": lambda _: (1024, 4096)},
            "ok",
            "the agent raises it",
        ),
        (
            "descriptors",
            {"agent_pid": lambda: None, "limit": lambda _: (1, resource.RLIM_INFINITY)},
            "ok",
            "unlimited",
        ),
        (
            "foreign",
            {"foreign": lambda: [Foreign("connect4", "cgroup /", "cil_sock4", 7)]},
            "warn",
            "cil_sock4 (id 7) on connect4 of cgroup /",
        ),
        ("config", {"config_problems": ("f: a: bad",)}, "fail", "f: a: bad"),
        ("config", {"config_file": Path("/f")}, "ok", "/f is valid"),
        ("registry", {"registry": raising(TimeoutError())}, "fail", "no answer within 3 s"),
        ("registry", {"registry": raising(RegistryError("line 7"))}, "fail", "line 7"),
        ("registry", {"registry": raising(ConnectionRefusedError())}, "fail", "Refused"),
        (
            "ports",
            {"listeners": lambda: [Listener(15006, 99, "envoy")]},
            "fail",
            "15006 is taken by envoy (process 99)",
        ),
        (
            "ports",
            {"listeners": lambda: [Listener(15001, None, "")], "agent_pid": lambda: None},
            "fail",
            "unknown process",
        ),
        ("ports", {"listeners": list}, "ok", "free"),
        (
            "ports",
            {"listeners": lambda: [Listener(15001, 1, "moa-keeper", frozenset({1, AGENT_PID}))]},
            "ok",
            "the agent listens",
        ),
        (
            "ports",
            {"listeners": lambda: [Listener(15001, 1, "moa-keeper")], "agent_pid": lambda: None},
            "ok",
            "15001",
        ),
        (
            "agent",
            {"installed": lambda: None, "agent_pid": lambda: None},
            "fail",
            "nothing is installed",
        ),
        ("agent", {"installed": raising(Incomplete("half"))}, "fail", "half"),
        ("agent", {"agent_status": raising(NOBODY)}, "warn", "its control socket does not"),
        ("agent", {"installed": lambda: replace(STATE, listeners=())}, "fail", "no listener"),
        ("stale-pins", {"installed": raising(Incomplete("half"))}, "warn", "half"),
        ("stale-pins", {"installed": lambda: None}, "ok", "none"),
        ("installation", {"manifest": lambda: None}, "ok", "none"),
        ("installation", {"manifest": lambda: Manifest("0.2.0")}, "warn", "cut short"),
        ("installation", {"manifest": raising(ManifestError("format"))}, "warn", "format"),
        ("switch", {"installed": lambda: replace(STATE, shadow=True)}, "ok", "in shadow"),
        ("switch", {"word": lambda: None}, "warn", "not kept"),
        ("switch", {"word": raising(WordError("mesh.json: is damaged"))}, "warn", "is damaged"),
        ("switch", OFF | {"word": lambda: None}, "warn", "off: connections go straight"),
        ("switch", OFF, "warn", "off, although root@node-a switched it on"),
        (
            "switch",
            OFF | {"word": lambda: Word(Switch.OFF, at_unix_s=1.5e9, who="ann@node-a")},
            "warn",
            "by ann@node-a: connections go straight",
        ),
        (
            "switch",
            OFF | {"word": lambda: Word(Switch.ON, confirmed=False, who="ann@node-a")},
            "warn",
            "off, as nobody confirmed what ann@node-a switched on at ",
        ),
        (
            "switch",
            {"installed": lambda: replace(STATE, confirm_left_s=9.0)},
            "warn",
            "on, off again in 9 s unless confirmed",
        ),
        ("scopes", {"installed": lambda: replace(STATE, scopes=())}, "warn", "no cgroup"),
        ("scopes", {"installed": lambda: None}, "warn", "nothing is installed"),
        (
            "scopes",
            {
                "installed": lambda: replace(
                    STATE, scopes=(PinnedScope("/app.slice", "lost", False, ()),)
                )
            },
            "warn",
            "lost: /app.slice",
        ),
        ("config", {"exposed_password": lambda: "f: mode 0644"}, "warn", "mode 0644"),
        ("scopes", {"config": Config(scope=Scope(cgroups=("/x",)))}, "warn", "names /x"),
    ],
)
def test_machine_with_one_thing_wrong(
    healthy: Probes, identity: str, changes: dict[str, Any], status: str, words: str
) -> None:
    found, seen, todo = result_of(identity, replace(healthy, **changes))
    assert (found, bool(todo)) == (status, status in ("warn", "fail")), seen
    assert words in seen


@pytest.mark.parametrize("attach", list(AttachType))
def test_kernel_without_a_hook(healthy: Probes, attach: AttachType) -> None:
    name = attach.name.lower()
    others = tuple(s for s in HOOKS if s.name != name)
    probes = replace(healthy, hooks=lambda: Features((*others, Support(name, False, "EINVAL"))))
    findings = {f.check.id: f.result for f in doctor_check.run(ALL_CHECKS, probes)}
    identity = f"hook-{name.replace('_', '-')}"
    needed = attach in (AttachType.CONNECT4, AttachType.SOCK_OPS, AttachType.GETSOCKOPT)
    assert findings.pop(identity).status is (Status.FAIL if needed else Status.WARN)
    assert {result.status for result in findings.values()} == {Status.OK}


def test_hooks_that_cannot_be_tried_are_skipped_and_not_called_missing(healthy: Probes) -> None:
    probes = replace(healthy, hooks=raising(PermissionError(13, "Permission denied")))
    status, seen, _ = result_of("hook-connect4", probes)
    assert status == "skip"
    assert "Permission denied" in seen


def test_missing_registry_file_is_a_warning(healthy: Probes, tmp_path: Path) -> None:
    config = Config(registry=Registry(file=tmp_path / "none.toml"))
    status, seen, _ = result_of("registry", replace(healthy, config=config))
    assert (status, "does not exist" in seen) == ("warn", True)


@pytest.mark.parametrize("error", [TimeoutError(), RegistryError("refused"), OSError("gone")])
def test_registry_that_fails_is_named_without_its_password(
    healthy: Probes, error: Exception
) -> None:
    url = SecretStr("redis://u:s3cret@10.0.0.7:6380/2")
    config = Config(registry=Registry(kind="redis", url=url))
    probes = replace(healthy, config=config, registry=raising(error))
    status, seen, _ = result_of("registry", probes)
    assert (status, seen.startswith("redis://10.0.0.7:6380/2: ")) == ("fail", True), seen


@pytest.mark.parametrize("identity", ["agent", "stale-pins"])
def test_half_of_an_installation_is_to_be_removed_first(healthy: Probes, identity: str) -> None:
    probes = replace(healthy, installed=raising(Incomplete("half")))
    assert result_of(identity, probes)[2].startswith("moactl uninstall")


def test_agent_that_was_uninstalled_under_its_feet_must_stop_first(healthy: Probes) -> None:
    _, seen, todo = result_of("agent", replace(healthy, installed=lambda: None))
    assert f"process {AGENT_PID} still runs but was uninstalled" in seen
    assert todo.startswith("stop it")
    elsewhere = PinTree(Path("/sys/fs/bpf/moa-of-another"))
    probes = replace(healthy, installed=lambda: None, tree=elsewhere)
    assert result_of("agent", probes)[1:] == ("nothing is installed", TO_INSTALL)


def test_configured_scope_that_was_taken_out_is_not_called_missing(healthy: Probes) -> None:
    probes = replace(
        healthy,
        config=Config(scope=Scope(cgroups=("/x",))),
        installed=lambda: replace(STATE, taken_out=("/x", "/y")),
    )
    status, seen, todo = result_of("scopes", probes)
    assert (status, "taken out of the mesh by an operator" in seen) == ("warn", True)
    assert "restart" not in todo


@pytest.mark.parametrize("running", [None, AGENT_PID])
def test_old_heartbeat(healthy: Probes, running: int | None) -> None:
    state = replace(STATE, heartbeat=Heartbeat(60.0, 2.0))
    probes = replace(healthy, installed=lambda: state, agent_pid=lambda: running)
    status, seen, _ = result_of("agent", probes)
    assert (status, "60.0 s ago" in seen, "hangs" in seen) == ("fail", True, running is not None)
    assert result_of("stale-pins", probes)[0] == ("warn" if running is None else "ok")
