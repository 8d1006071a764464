"""What an install leaves on a node: pins, attachments, kernel objects, cgroups."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from interceptor import cgroup
from tests.support import kernel_objects
from tests.support.lab import Lab, wait_until

BPFFS = Path("/sys/fs/bpf")


@dataclass(frozen=True, slots=True)
class Traces:
    """One look at the node; what belongs to other labs on this machine is left out."""

    pins: frozenset[str]
    cgroups: frozenset[str]
    attached: frozenset[str]
    """Rows of `bpftool cgroup tree`."""
    objects: frozenset[str]
    """Kinds and ids of programs, maps and links."""

    def left_since(self, before: Traces) -> dict[str, set[str]]:
        """What is here now and was not, or was and is not.

        Ids of kernel objects count only when they are new: those of strangers come and go.
        """
        return {
            "pins": set(self.pins ^ before.pins),
            "cgroups": set(self.cgroups ^ before.cgroups),
            "attached": set(self.attached ^ before.attached),
            "objects": set(self.objects - before.objects),
        }


def look(lab: Lab) -> Traces:
    """Take the node's traces."""
    root = cgroup.mount_point()
    return Traces(
        pins=_without_others(lab, _paths(BPFFS)),
        cgroups=_without_others(lab, (directory for directory, _, _ in os.walk(root))),
        attached=_without_others(lab, _attached()),
        objects=kernel_objects.without_others(lab, partial(_is_others, lab)),
    )


def assert_same(lab: Lab, before: Traces) -> None:
    """Nothing is left. The kernel frees a program or a map a moment after its last user."""
    left: dict[str, set[str]] = {}

    def clean() -> bool:
        seen, earlier = look(lab).left_since(before), left.get("objects")
        left.update(seen)
        # Another lab's have no owner for a moment when they are freed, each time others.
        if earlier is not None:
            left["objects"] &= earlier
        return not any(left.values())

    try:
        wait_until(clean, 10, "no trace is left")
    finally:
        assert not any(left.values()), left


def _paths(top: Path) -> Iterator[str]:
    """Everything below a directory in which others work at the same time."""
    for parent, directories, files in os.walk(top):
        yield from (os.path.join(parent, name) for name in (*directories, *files))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _is_others(lab: Lab, text: str) -> bool:
    ids = re.findall(r"moa[0-9a-f]{6}|moa-probe-|moa-selftest-|moa-systemd-", text)
    return any(found != lab.id for found in ids)


def _without_others(lab: Lab, texts: Any) -> frozenset[str]:
    return frozenset(text for text in texts if not _is_others(lab, text))


def _attached() -> list[str]:
    return [
        f"{entry['cgroup']}: {program['id']} {program['attach_type']} {program.get('name')}"
        for entry in kernel_objects.bpftool("cgroup", "tree")
        for program in entry["programs"]
    ]
