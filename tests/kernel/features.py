"""Kernels that lack a hook, simulated by what the probe says."""

from __future__ import annotations

from dataclasses import replace

from interceptor.libbpf import AttachType
from interceptor.probe import Features, probe_hooks


def without(*missing: AttachType) -> Features:
    """This kernel's features as if these hooks had failed."""
    names = {attach.name.lower() for attach in missing}
    return Features(
        tuple(
            replace(hook, works=False, detail="EINVAL (Invalid argument)")
            if hook.name in names
            else hook
            for hook in probe_hooks().hooks
        )
    )
