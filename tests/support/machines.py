"""Machines for the doctor that are not this one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from installer.client import AgentError
from installer.config import Config
from installer.config_sections import Bpf, Registry
from installer.doctor.probes import Listener, Probes
from installer.mesh_word import Switch, Word
from installer.node_state import Heartbeat, Installed
from installer.plan.manifest import Manifest
from interceptor.bpffs import PinTree
from interceptor.libbpf import AttachType
from interceptor.node import Scope as PinnedScope
from interceptor.probe import Features, Support

ALL_CAPABILITIES = (1 << 41) - 1


HOOKS = tuple(Support(attach.name.lower(), works=True) for attach in AttachType)


MAPS = tuple(Support(name, works=True) for name in ("lpm_trie", "sockmap", "ringbuf"))


UNIFIED = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n"


ROOT = Path("/sys/fs/bpf/moa-of-no-test")


AGENT_PID = 4711


NOBODY = AgentError("no agent answers", "moactl agent run")


STATE = Installed(
    enabled=True,
    shadow=False,
    confirm_left_s=None,
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
    taken_out=(),
    counters={},
)


def raising(error: Exception) -> Callable[..., Any]:
    """A look at the machine that fails."""

    def probe(*_: object) -> Any:
        raise error

    return probe


def healthy_machine(directory: Path) -> Probes:
    """A machine on which everything is well."""
    (directory / "services.toml").touch()
    config = Config(bpf=Bpf(root=ROOT), registry=Registry(file=directory / "services.toml"))
    return Probes(
        config=config,
        config_file=None,
        config_problems=(),
        exposed_password=lambda: None,
        tree=PinTree(ROOT),
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
        manifest=lambda: Manifest("0.1.0", complete=True),
        word=lambda: Word(Switch.ON, who="root@node-a"),
    )
