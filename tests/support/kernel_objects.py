"""Programs, maps and links of this kernel, without those of other labs that work here too.

An object names nobody. It is another lab's when that lab has it pinned, when one of its
processes holds it, or when one of these needs it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.lab import Lab, wait_until

KINDS = ("prog", "map", "link")
_HELD = re.compile(r"^(prog|map|link)_id:\s*(\d+)$", re.MULTILINE)

Object = tuple[str, int]
"""Its kind and its id."""


def without_others(lab: Lab, is_others: Callable[[str], bool]) -> frozenset[str]:
    """`kind id name` of each object that belongs to nobody else; `is_others` says of a pin's path
    whether another lab made it."""
    others = set(_held_by_others(lab))
    listed = {kind: bpftool("-f", kind, "show") for kind in KINDS}
    for kind, items in listed.items():
        for item in items:
            if any(map(is_others, item.get("pinned", ()))):
                others.add((kind, item["id"]))
    others |= {("prog", i["prog_id"]) for i in listed["link"] if ("link", i["id"]) in others}
    for item in listed["prog"]:
        if ("prog", item["id"]) in others:
            others |= {("map", number) for number in item.get("map_ids", ())}
    return frozenset(
        f"{kind} {item['id']} {item.get('name', item.get('type'))}"
        for kind, items in listed.items()
        for item in items
        if (kind, item["id"]) not in others
    )


def bpftool(*arguments: str) -> list[dict[str, Any]]:
    """What it lists. It fails when something goes away that it looks at: then it is asked again."""
    found: list[dict[str, Any]] = []

    def answers() -> bool:
        done = subprocess.run(
            ["bpftool", "-j", *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            found.extend(i for i in json.loads(done.stdout or "[]") if isinstance(i, dict))
        return done.returncode == 0

    wait_until(answers, 20, f"bpftool {' '.join(arguments)} succeeds")
    return found


def _held_by_others(lab: Lab) -> Iterator[Object]:
    """What processes hold that are neither this one nor in a cgroup of its lab."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        process = Path("/proc", pid)
        with suppress(OSError):  # it has ended
            if int(pid) != os.getpid() and lab.id not in (process / "cgroup").read_text():
                yield from _held_by(process)


def _held_by(process: Path) -> Iterator[Object]:
    for descriptor in (process / "fd").iterdir():
        with suppress(OSError):
            if os.readlink(descriptor).startswith("anon_inode:bpf"):
                text = (process / "fdinfo" / descriptor.name).read_text()
                yield from ((kind, int(number)) for kind, number in _HELD.findall(text))
