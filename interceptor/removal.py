"""Everything of ours taken off a node, from the pins alone.

Works on a half-finished install, on a crashed agent's leftovers, on an uninstall that was
itself cut short, and on nothing: what says that something is to be undone goes last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from interceptor import bpffs, links
from interceptor.abi import CfgFlag
from interceptor.bpffs import PinTree, locked
from interceptor.cgroup import Cgroup
from interceptor.maps import Maps


@dataclass(slots=True)
class Removal:
    """What an uninstall took away and what it had to leave."""

    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def uninstall(tree: PinTree) -> Removal:
    """Switch off, detach connect first, unpin, remove the cgroups that an install made.

    Raises `InterceptorError` when the root is no directory of its own on bpffs. What an
    install does not make is left, and named.
    """
    removal = Removal()
    if not tree.root.is_dir():
        return removal
    bpffs.check_root(tree)
    with locked(tree):
        _switch_off(tree)
        for directory in tree.scope_directories():
            links.detach_all(directory)
            removal.removed.append(f"hooks of cgroup {bpffs.cgroup_name(directory)}")
        links.detach_all(tree.agent_links)
        for path in sorted(set(tree.root.iterdir()) - {tree.marks}):
            if tree.is_ours(path):
                bpffs.remove_tree(path)
                removal.removed.append(str(path))
            else:
                removal.left.append(f"{path}: is not ours")
        _remove_cgroups(tree, removal)
        mounted_by_us = tree.mounted.is_dir()
        # The root goes with the lock, when nothing of a stranger's is in it.
        bpffs.remove_tree(tree.marks)
    bpffs.unmount_if_ours(Path("/sys/fs/bpf"), ours=mounted_by_us)
    return removal


def _switch_off(tree: PinTree) -> None:
    if (tree.maps / "cfg").exists():
        with Maps(tree.maps) as maps:
            maps.set_flags(CfgFlag.ENABLED, on=False)


def _remove_cgroups(tree: PinTree, removal: Removal) -> None:
    for cgroup in map(Cgroup, tree.marked_cgroups()):
        if not cgroup.exists():
            continue
        if cgroup.remove():
            removal.removed.append(f"cgroup {cgroup.name}")
        elif pids := ", ".join(map(str, cgroup.processes())):
            removal.left.append(f"cgroup {cgroup.name}: processes {pids} are still in it")
        else:
            removal.left.append(f"cgroup {cgroup.name}: has cgroups below it that are not ours")
