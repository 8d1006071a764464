"""Checks of the kernel's hooks, each by trying it, and of other programs on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from installer.doctor.check import Check, Result, Severity, fail, ok, skip, warn
from installer.doctor.checks_machine import missing_capabilities
from installer.doctor.probes import Probes
from interceptor.errors import InterceptorError
from interceptor.libbpf import AttachType
from interceptor.links import ALL_HOOKS

_SHOWN = 8

_PURPOSE = {
    AttachType.CONNECT4: "connections over IPv4 are turned to the agent",
    AttachType.CONNECT6: "connections over IPv6, and of Java, are turned to the agent",
    AttachType.SOCK_OPS: "the address that was dialled is handed to the agent",
    AttachType.GETSOCKOPT: "the agent asks which address was dialled",
    AttachType.GETPEERNAME4: "services see the IPv4 address that they dialled",
    AttachType.GETPEERNAME6: "services see the IPv6 address that they dialled",
    AttachType.SK_LOOKUP: "connections to local services are turned to the agent",
}
_TODO = "use a kernel of 5.10 or later with CONFIG_CGROUP_BPF; moactl doctor caps libbpf"


def _hook_checks() -> Iterator[Check]:
    for attach, purpose in _PURPOSE.items():
        optional = all(hook.optional for hook in ALL_HOOKS if hook.attach is attach)
        severity = Severity.ADVISED if optional else Severity.REQUIRED
        name, run = attach.name.lower(), _try(attach, purpose)
        yield Check(f"hook-{name.replace('_', '-')}", f"Hook {name}", run, severity)


def _try(attach: AttachType, purpose: str) -> Callable[[Probes], Result]:
    def run(probes: Probes) -> Result:
        if missing_capabilities(probes):
            return skip("cannot be tried without privileges: see caps")
        try:
            features = probes.hooks()
        except (InterceptorError, OSError) as error:
            return skip(f"cannot be tried: {error}")
        if features.has(attach):
            return ok(f"works: {purpose}")
        detail = features.detail(attach) or "was not tried"
        return fail(f"{detail}; without it this is lost: {purpose}", _TODO)

    return run


def _foreign(probes: Probes) -> Result:
    try:
        found = probes.foreign()
    except (InterceptorError, OSError) as error:
        return skip(f"cannot be looked at: {error}")
    if not found:
        return ok("none on our hooks")
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return warn(
        "; ".join(map(str, found[:_SHOWN])) + more,
        "nothing, as long as both work: they run beside ours and we never remove them; "
        "bpftool cgroup tree shows their order",
    )


CHECKS = (
    *_hook_checks(),
    Check("foreign", "Programs of others on our hooks", _foreign, Severity.ADVISED),
)
