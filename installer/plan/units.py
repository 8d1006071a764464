"""The systemd units, as text, and why each keeps what it keeps (docs/INSTALL.md#units).

`systemd-analyze security --offline=true` gives each an exposure below 3; a test asks it.
"""

from __future__ import annotations

from collections.abc import Collection

from installer.plan.environment import CURRENT

DIRECTORY = "/etc/systemd/system"
WANTS = f"{DIRECTORY}/multi-user.target.wants"
SLICE = "moa-mesh.slice"
SLICE_CGROUP = "/moa.slice/moa-mesh.slice"
"""systemd puts a slice with a dash in its name below the slice of the first part."""
SLICES = {SLICE: SLICE_CGROUP, "moa.slice": "/moa.slice"}
"""All that systemd makes for it, the inner one first."""

_SLICE = """\
[Unit]
Description=Units whose connections go through MOA Interceptor
Documentation=man:moactl(1)
"""

# For every unit. The interpreter is a file like any other: no noexec, no filter of paths.
_SANDBOX = """\
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
PrivateDevices=yes
PrivateTmp=yes
ProtectClock=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectSystem=strict
RemoveIPC=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
"""

# Capabilities: to load and attach programs whenever a unit joins or an agent is upgraded
# (BPF, PERFMON, NET_ADMIN), to mark its own connections (NET_ADMIN), and to make a cgroup on
# which hooks are tried, in a directory that not even its owner may write (DAC_OVERRIDE).

_NODE = """\
[Unit]
Description={description}
Documentation=man:moactl(1)
Wants={slice} network-online.target
After={slice} network-online.target
{limits}
[Service]
{kind}ExecStart={current}/bin/{command} {config}
Restart=always
RestartSec=1
TimeoutStopSec=90
LimitNOFILE=262144
LimitMEMLOCK=infinity
ReadOnlyPaths=/proc/sys /sys
ReadWritePaths=/opt/moa -/sys/fs/bpf -/sys/fs/cgroup
RuntimeDirectory=moa
RuntimeDirectoryMode=0750
RuntimeDirectoryPreserve=restart
StateDirectory=moa
StateDirectoryMode=0750
CapabilityBoundingSet=CAP_BPF CAP_PERFMON CAP_NET_ADMIN CAP_DAC_OVERRIDE
RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_INET6
SystemCallFilter=@system-service bpf
SystemCallFilter=~@setuid @keyring @aio
SystemCallErrorNumber=EPERM
{sandbox}ProtectKernelTunables=no

[Install]
WantedBy=multi-user.target
"""

# KillMode=process: agents and their keepers outlive a supervisor that crashes, and the next one
# takes charge of them; a stop is its to carry out. OOMPolicy=continue: an agent that runs out of
# memory is replaced, its connections are adopted, and the unit is not stopped for it. No limit of
# starts: with each one given up, agents would be left without a supervisor. What systemd stores
# are the pidfds of agents and the control socket (docs/adr/0016); a node has few.
_SUPERVISOR_KIND = """\
Type=notify
NotifyAccess=main
ExecReload=/bin/kill -HUP $MAINPID
WatchdogSec=60
FileDescriptorStoreMax=64
KillMode=process
OOMPolicy=continue
"""
_AGENT_KIND = """\
Type=exec
KillMode=mixed
"""
_SUPERVISOR_UNIT = "StartLimitIntervalSec=0\n"

_SERVICE = """\
[Unit]
Description={description}
Documentation=man:moactl(1)
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
# As root to read, for the process a copy: a registry's URL may hold a password.
LoadCredential=agent.toml:{config}
ExecStart={current}/bin/{command} ${{CREDENTIALS_DIRECTORY}}/agent.toml
Restart=always
RestartSec=1
DynamicUser=yes
LimitNOFILE=65536
StateDirectory={command}
CapabilityBoundingSet=
PrivateUsers=yes
ProcSubset=pid
ProtectControlGroups=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources @keyring @aio
SystemCallFilter=prlimit64
SystemCallErrorNumber=EPERM
{sandbox}
[Install]
WantedBy=multi-user.target
"""

_ELSEWHERE = {
    "moa-watcher": "MOA Interceptor watcher of the registry's instances",
    "moa-lookup": "MOA Interceptor look-up service",
}
STATEFUL = tuple(_ELSEWHERE)
"""Services that systemd gives a state directory of the same name."""


def node_command(commands: Collection[str]) -> str:
    """Which command a node runs: the supervisor, or the agent in a version without one."""
    return "moa-opsd" if "moa-opsd" in commands else "moa-agent"


def node_unit(commands: Collection[str]) -> str:
    """The unit of that command."""
    return f"{node_command(commands)}.service"


def cgroup(unit: str) -> str:
    """Where systemd runs a unit that names no slice."""
    return f"/system.slice/{unit}"


def texts(commands: Collection[str], config: str) -> dict[str, str]:
    """Each unit's text by its name, of those whose command this version has; `config` is the
    configuration that they read."""
    command = node_command(commands)
    supervised = command == "moa-opsd"
    found = {
        SLICE: _SLICE,
        f"{command}.service": _NODE.format(
            description=f"MOA Interceptor {'supervisor of agents' if supervised else 'agent'}",
            kind=_SUPERVISOR_KIND if supervised else _AGENT_KIND,
            limits=_SUPERVISOR_UNIT if supervised else "",
            slice=SLICE, current=CURRENT, command=command, config=config, sandbox=_SANDBOX,
        ),
    }  # fmt: skip
    for name, description in _ELSEWHERE.items():
        if name in commands:
            found[f"{name}.service"] = _SERVICE.format(
                description=description, current=CURRENT, command=name, config=config,
                sandbox=_SANDBOX,
            )  # fmt: skip
    return found


def every_text(config: str) -> dict[str, str]:
    """The text of every unit that any version has, by its name."""
    return {**texts(("moa-agent",), config), **texts(("moa-opsd", *_ELSEWHERE), config)}
