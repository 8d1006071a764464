"""Checks of the machine: Python, privileges, file systems, libbpf, limits."""

from __future__ import annotations

import re
import resource
from pathlib import Path

from installer.doctor.check import Check, Result, Severity, fail, ok, skip, warn
from installer.doctor.probes import Probes
from interceptor.errors import InterceptorError
from interceptor.libbpf import SONAME
from interceptor.programs import OBJECT_PATH

_PYTHON = (3, 11)
_OLD_SONAME = "libbpf.so.0"

_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_PERFMON": 38, "CAP_BPF": 39}
_CAP_SYS_ADMIN, _CAP_SYS_RESOURCE = 21, 24

_MEMLOCK_FREE = (5, 11)
"""Since this kernel maps are charged to the memory cgroup, not to RLIMIT_MEMLOCK."""
_MEMLOCK_NEEDED = 64 << 20
_NET_CLS_HARMLESS = (5, 14)
"""Since this kernel a socket keeps its v2 cgroup beside its net_cls class (commit 8520e224f547)."""
_SOCKETS_A_CONNECTION = 2
_OTHER_DESCRIPTORS = 1024


def _python(probes: Probes) -> Result:
    seen = probes.python_version()
    text = ".".join(map(str, seen))
    if seen >= _PYTHON:
        return ok(text)
    return fail(f"{text}, expected at least 3.11", "install python3.11 and make the .venv anew")


def missing_capabilities(probes: Probes) -> list[str]:
    """Names of what is needed to load and attach, and is not there."""
    mask = probes.capabilities()
    missing = [name for name, bit in _CAPABILITIES.items() if not mask >> bit & 1]
    if mask >> _CAP_SYS_ADMIN & 1:  # stands for the other two, and is all that 5.7 knows
        missing = [name for name in missing if name == "CAP_NET_ADMIN"]
    return missing


def _caps(probes: Probes) -> Result:
    if missing := missing_capabilities(probes):
        todo = "run it as root, or give the unit AmbientCapabilities= with these"
        return fail(f"missing {', '.join(missing)}", todo)
    return ok("enough to load and attach programs")


def _cgroup2(probes: Probes) -> Result:
    mounts = [line.split() for line in probes.mounts().splitlines()]
    v2 = [fields[1] for fields in mounts if fields[2] == "cgroup2"]
    v1 = [fields[1] for fields in mounts if fields[2] == "cgroup"]
    if not v2:
        return fail(
            "not mounted",
            "boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none "
            "/sys/fs/cgroup/unified",
        )
    kind = "hybrid, beside cgroup v1" if v1 else "unified"
    return ok(f"{v2[0]} ({kind})")


def _bpffs(probes: Probes) -> Result:
    root = probes.tree.root
    mount = probes.bpffs_at(root)
    if mount:
        return ok(f"{root} is on the one at {mount}")
    if Path("/sys/fs/bpf") in root.parents:
        return warn("not mounted at /sys/fs/bpf", "nothing: the agent mounts it when it starts")
    return fail(f"bpf.root {root} is on none", "set bpf.root to a directory below /sys/fs/bpf")


def _memlock(probes: Probes) -> Result:
    release = probes.kernel_release()
    if _kernel(release) >= _MEMLOCK_FREE:
        return ok(f"not charged by kernel {release}")
    soft, _ = probes.limit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or soft >= _MEMLOCK_NEEDED:
        return ok("unlimited" if soft == resource.RLIM_INFINITY else f"{soft} bytes")
    if probes.capabilities() >> _CAP_SYS_RESOURCE & 1:
        return ok(f"{soft} bytes; libbpf raises it (CAP_SYS_RESOURCE)")
    return fail(
        f"{soft} bytes, and kernel {release} charges maps to it",
        "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited",
    )


def _libbpf(probes: Probes) -> Result:
    try:
        return ok(probes.libbpf_version())
    except InterceptorError as error:
        if probes.has_library(_OLD_SONAME):
            return fail(
                f"{_OLD_SONAME} only, as on Debian 11 and Ubuntu 22.04; its errors mean "
                f"other things, so {SONAME} is needed",
                "install libbpf 1.x beside it, both can live on one machine: "
                "https://github.com/libbpf/libbpf v1.1, make -C src install, ldconfig",
            )
        return fail(str(error), "apt-get install libbpf1")


def _object(probes: Probes) -> Result:
    del probes
    if OBJECT_PATH.is_file():
        return ok(str(OBJECT_PATH))
    return fail(f"{OBJECT_PATH} does not exist", "make build")


def _net_cls(probes: Probes) -> Result:
    mounts = [line.split() for line in probes.mounts().splitlines()]
    found = [
        fields[1]
        for fields in mounts
        if fields[2] == "cgroup" and {"net_cls", "net_prio"} & set(fields[3].split(","))
    ]
    release = probes.kernel_release()
    if not found:
        return ok("no cgroup v1 net_cls or net_prio")
    if _kernel(release) >= _NET_CLS_HARMLESS:
        return ok(f"{', '.join(found)}: harmless on kernel {release}")
    todo = "boot with cgroup_no_v1=net_cls,net_prio, or use kernel 5.14 or later"
    if any(probes.net_cls_in_use(Path(mount)) for mount in found):
        return fail(
            f"{', '.join(found)} is in use: on kernel {release} sockets lose their cgroup v2, "
            "so connections of scoped cgroups are not seen",
            todo,
        )
    return warn(f"{', '.join(found)} is mounted; its first use would hide sockets from us", todo)


def _descriptors(probes: Probes) -> Result:
    need = _SOCKETS_A_CONNECTION * probes.config.agent.max_connections + _OTHER_DESCRIPTORS
    running = probes.agent_pid()
    if running and (limits := probes.nofile_of(running)):
        seen, whose = limits[0], f"of the agent (process {running})"
    else:
        seen, whose = probes.limit(resource.RLIMIT_NOFILE)[1], "here (hard limit)"
    if seen == resource.RLIM_INFINITY or seen >= need:
        shown = "unlimited" if seen == resource.RLIM_INFINITY else seen
        return ok(f"{shown} {whose}, {need} needed")
    if not running and probes.capabilities() >> _CAP_SYS_RESOURCE & 1:
        return ok(f"{seen} {whose}; the agent raises it to {need} (CAP_SYS_RESOURCE)")
    return fail(
        f"{seen} {whose}, {need} needed for agent.max_connections = "
        f"{probes.config.agent.max_connections}",
        f"LimitNOFILE={need} in the unit, or lower agent.max_connections",
    )


def _map_type(name: str, title: str) -> Check:
    def run(probes: Probes) -> Result:
        if missing_capabilities(probes):
            return skip("cannot be tried without privileges: see caps")
        try:
            supports = probes.map_types()
        except (InterceptorError, OSError) as error:
            return skip(f"cannot be tried: {error}")
        support = next((s for s in supports if s.name == name), None)
        if support is None:
            return skip("was not tried")
        if support.works:
            return ok("works")
        return fail(support.detail, "use a kernel of 5.10 or later")

    return Check(f"map-{name.replace('_', '-')}", title, run)


def _kernel(release: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


CHECKS = (
    Check("python", "Python is recent enough", _python),
    Check("caps", "Privileges to load and attach programs", _caps),
    Check("cgroup2", "cgroup v2 is mounted", _cgroup2),
    Check("bpffs", "A bpf file system for the pins", _bpffs),
    Check("memlock", "Memory for maps may be locked", _memlock),
    Check("libbpf", "libbpf 1.x is installed", _libbpf),
    Check("object", "The compiled programs are there", _object),
    _map_type("lpm_trie", "Map type LPM trie (destinations)"),
    _map_type("sockmap", "Map type SOCKMAP (listeners)"),
    _map_type("ringbuf", "Map type ring buffer (decisions)"),
    Check("net-cls", "cgroup v1 does not hide sockets", _net_cls),
    Check("descriptors", "Enough file descriptors", _descriptors, Severity.ADVISED),
)
