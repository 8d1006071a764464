"""Each check on machines that are not this one."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from installer.cli import doctor as command
from installer.cli.main import root
from installer.client import AgentError
from installer.config import Config
from installer.config_sections import Registry, Scope
from installer.doctor import check as doctor_check
from installer.doctor.check import Check, Severity, Status
from installer.doctor.checks import ALL_CHECKS
from installer.doctor.foreign import Foreign
from installer.doctor.probes import Listener, Probes
from installer.node_state import Heartbeat, Installed
from interceptor.bpffs import PinTree
from interceptor.errors import InterceptorError
from interceptor.libbpf import AttachType
from interceptor.node import Scope as PinnedScope
from interceptor.probe import Features, Support
from proxy.registry.base import RegistryError
from tests.support.documented import assert_as_documented

ALL_CAPABILITIES = (1 << 41) - 1
HOOKS = tuple(Support(attach.name.lower(), works=True) for attach in AttachType)
MAPS = tuple(Support(name, works=True) for name in ("lpm_trie", "sockmap", "ringbuf"))
UNIFIED = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n"
AGENT_PID = 4711
NOBODY = AgentError("no agent answers", "moactl agent run")

STATE = Installed(
    enabled=True,
    shadow=False,
    generation=1,
    heartbeat=Heartbeat(0.2, 2.0),
    outbound_port=15001,
    inbound_port=15006,
    agent_cgroup="/moa-agent",
    agent_pids=(AGENT_PID,),
    listeners=("out4", "in4"),
    in_ports=(),
    included=1,
    excluded=0,
    scopes=(PinnedScope("/app.slice", "attached", False, ("connect4",)),),
    counters={},
)


def raising(error: Exception) -> Callable[..., Any]:
    def probe(*_: object) -> Any:
        raise error

    return probe


@pytest.fixture
def healthy(tmp_path: Path) -> Probes:
    """A machine on which everything is well."""
    (tmp_path / "services.toml").touch()
    config = Config(registry=Registry(file=tmp_path / "services.toml"))
    return Probes(
        config=config,
        config_file=None,
        config_problems=(),
        tree=PinTree(Path("/sys/fs/bpf/moa-of-no-test")),
        mounts=lambda: UNIFIED,
        bpffs_at=lambda _: Path("/sys/fs/bpf"),
        capabilities=lambda: ALL_CAPABILITIES,
        kernel_release=lambda: "6.1.0-18-amd64",
        python_version=lambda: (3, 11, 2),
        limit=lambda _: (1 << 20, 1 << 20),
        nofile_of=lambda _: (1 << 20, 1 << 20),
        libbpf_version=lambda: "v1.1",
        has_library=lambda _: False,
        hooks=lambda: Features(HOOKS),
        map_types=lambda: MAPS,
        foreign=list,
        listeners=lambda: [Listener(15001, AGENT_PID, "moa-agent")],
        registry=lambda: "redis://h:6379/0 answers",
        net_cls_in_use=lambda _: False,
        installed=lambda: STATE,
        agent_pid=lambda: AGENT_PID,
        agent_status=lambda: {"pid": AGENT_PID},
    )


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
V1 = "cgroup /sys/fs/cgroup/net_cls cgroup rw,net_cls,net_prio 0 0\n" + UNIFIED


@pytest.mark.parametrize(
    ("identity", "changes", "status", "words"),
    [
        ("python", {"python_version": lambda: (3, 9, 2)}, "fail", "3.9.2"),
        ("caps", {"capabilities": lambda: 0}, "fail", "CAP_BPF"),
        ("caps", {"capabilities": lambda: 1 << 21 | 1 << 12}, "ok", "CAP_SYS_ADMIN"),
        ("caps", {"capabilities": lambda: 1 << 39 | 1 << 38}, "fail", "missing CAP_NET_ADMIN"),
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
        ("agent", {"installed": lambda: None}, "fail", "nothing is installed"),
        ("agent", {"agent_status": raising(NOBODY)}, "warn", "its control socket does not"),
        ("agent", {"installed": lambda: replace(STATE, listeners=())}, "fail", "no listener"),
        ("stale-pins", {"installed": raising(InterceptorError("half"))}, "warn", "half"),
        ("stale-pins", {"installed": lambda: None}, "ok", "none"),
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


@pytest.mark.parametrize("running", [None, AGENT_PID])
def test_old_heartbeat(healthy: Probes, running: int | None) -> None:
    state = replace(STATE, heartbeat=Heartbeat(60.0, 2.0))
    probes = replace(healthy, installed=lambda: state, agent_pid=lambda: running)
    status, seen, _ = result_of("agent", probes)
    assert (status, "60.0 s ago" in seen, "hangs" in seen) == ("fail", True, running is not None)
    assert result_of("stale-pins", probes)[0] == ("warn" if running is None else "ok")


def test_check_that_breaks_stops_no_other(healthy: Probes) -> None:
    broken = Check("broken", "Breaks", raising(ZeroDivisionError("oops")))
    findings = list(doctor_check.run([broken, ALL_CHECKS[0]], healthy))
    assert [f.result.status for f in findings] == [Status.FAIL, Status.OK]
    assert "the check itself failed: oops" in findings[0].result.seen


def test_advised_check_never_fails(healthy: Probes) -> None:
    advised = Check("x", "X", lambda _: doctor_check.fail("bad", "mend it"), Severity.ADVISED)
    (finding,) = doctor_check.run([advised], healthy)
    assert finding.result == doctor_check.warn("bad", "mend it")


GOLDEN = """\
      CHECK   SEEN
FAIL  python  3.9.0, expected at least 3.11
ok    caps    CAP_SYS_ADMIN and CAP_NET_ADMIN
warn  bpffs   not mounted at /sys/fs/bpf

FAIL python: Python is recent enough
  seen: 3.9.0, expected at least 3.11
  todo: install python3.11 and make the .venv anew
  more: docs/CHECKS.md#python

warn bpffs: A bpf file system for the pins
  seen: not mounted at /sys/fs/bpf
  todo: nothing: the agent mounts it when it starts
  more: docs/CHECKS.md#bpffs

3 checks: 1 failed, 1 warnings
"""


def test_golden_output_and_exit_code(healthy: Probes, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = replace(healthy, python_version=lambda: (3, 9, 0), bpffs_at=lambda _: None)
    monkeypatch.setattr(command, "_probes", lambda _: probes)
    argv = ["doctor", "python", "caps", "bpffs"]
    result = CliRunner().invoke(root, argv)
    assert (result.exit_code, result.stdout) == (1, GOLDEN)
    as_json = CliRunner().invoke(root, [*argv, "-o", "json"])
    assert as_json.exit_code == 1
    assert_as_documented("doctor", json.loads(as_json.stdout))


def test_warnings_alone_exit_with_0(healthy: Probes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_probes", lambda _: replace(healthy, bpffs_at=lambda _: None))
    assert CliRunner().invoke(root, ["doctor"]).exit_code == 0


def test_pre_leaves_out_what_needs_an_installation(
    healthy: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_probes", lambda _: replace(healthy, installed=lambda: None))
    result = CliRunner().invoke(root, ["doctor", "--pre", "-o", "json"])
    assert result.exit_code == 0
    shown = {check["id"] for check in json.loads(result.stdout)["checks"]}
    assert {c.id for c in ALL_CHECKS} - shown == {"agent", "stale-pins", "scopes"}


def test_broken_configuration_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("[agent]\nports = 1\n")
    result = CliRunner().invoke(root, ["doctor", "config", "python", "-c", str(path)])
    assert result.exit_code == 1
    assert "agent.ports: unknown key" in result.stdout
    assert "ok    python" in result.stdout
