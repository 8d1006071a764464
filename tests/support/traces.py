"""What an install leaves on a node: pins, attachments, kernel objects, cgroups."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interceptor import cgroup
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
        pins=_without_others(lab, _below(BPFFS)),
        cgroups=_without_others(lab, (directory for directory, _, _ in os.walk(root))),
        attached=_without_others(lab, _attached()),
        objects=frozenset(
            f"{kind} {item['id']} {item.get('name', item.get('type'))}"
            for kind in ("prog", "map", "link")
            for item in _bpftool("-f", kind, "show")
            if not any(_is_others(lab, path) for path in item.get("pinned", ()))
        ),
    )


def assert_same(lab: Lab, before: Traces) -> None:
    """Nothing is left. The kernel frees a program or a map a moment after its last user."""
    left: dict[str, set[str]] = {}

    def clean() -> bool:
        left.update(look(lab).left_since(before))
        return not any(left.values())

    try:
        wait_until(clean, 5, "no trace is left")
    finally:
        assert not any(left.values()), left


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _is_others(lab: Lab, text: str) -> bool:
    ids = re.findall(r"moa[0-9a-f]{6}|moa-probe-|moa-selftest-", text)
    return any(found != lab.id for found in ids)


def _without_others(lab: Lab, texts: Any) -> frozenset[str]:
    return frozenset(text for text in texts if not _is_others(lab, text))


def _below(top: Path) -> Iterator[str]:
    """Every path; those that other tests take away meanwhile are passed over."""
    for directory, directories, files in os.walk(top):
        yield from (f"{directory}/{name}" for name in (*directories, *files))


def _attached() -> list[str]:
    return [
        f"{entry['cgroup']}: {program['id']} {program['attach_type']} {program.get('name')}"
        for entry in _bpftool("cgroup", "tree")
        for program in entry["programs"]
    ]


def _bpftool(*arguments: str) -> list[dict[str, Any]]:
    """It fails when an object goes while it looks, as those of other tests do: then it looks
    again."""

    def ask() -> list[dict[str, Any]] | None:
        done = subprocess.run(
            ["bpftool", "-j", *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            return None
        return [i for i in json.loads(done.stdout or "[]") if isinstance(i, dict)] or [{}]

    found: list[dict[str, Any]] = wait_until(ask, 5, f"bpftool {arguments}")
    return [item for item in found if item]
