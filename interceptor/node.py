"""One node's interception: install, switch, scope, adopt, and uninstall.

Order of attachment: maps (switched off), the agent's hooks, sk_lookup, the services' hooks
with connect last. Removal goes the other way, switched off first. Every change is made
under the node's one lock; everything can be removed from the pins alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from interceptor import bpffs, libbpf, links, programs, removal
from interceptor.abi import Cfg, CfgFlag, CgroupFlag
from interceptor.bpffs import PinTree, escaped, locked, make_directory
from interceptor.cgroup import Cgroup, all_ids
from interceptor.errors import InterceptorError, NotInstalled, Refused
from interceptor.links import AGENT_HOOKS, ALL_HOOKS, NETNS_HOOKS, SCOPE_HOOKS, Hook, Target
from interceptor.maps import Maps
from interceptor.probe import Features, probe_hooks
from interceptor.programs import usable_hooks
from interceptor.removal import Removal

DEFAULT_ROOT = Path("/sys/fs/bpf/moa")
OWN_NETNS = Path("/proc/self/ns/net")
LOCK_TIMEOUT_S = 10.0

# OpenSSH 9.8 and later serve a login by sshd-session.
_NEVER_SCOPED = ("sshd", "sshd-session", "systemd", "systemd-logind", "dbus-daemon", "init")


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What the kernel must know of the agent."""

    cgroup: Cgroup
    outbound_port: int
    inbound_port: int
    mark: int
    heartbeat_max_age_ns: int
    netns: Path = OWN_NETNS


@dataclass(frozen=True, slots=True)
class InstallReport:
    """What `Node.install` found and did."""

    fresh: bool
    changed_programs: tuple[str, ...]
    missing_hooks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scope:
    """A cgroup whose connections are looked at."""

    cgroup: str
    state: str
    """`attached`, or `lost` when the cgroup was removed or made anew."""
    shadow: bool
    hooks: tuple[str, ...]


class Node:
    """The interception of one node, whose pins are below `root`."""

    def __init__(self, root: Path = DEFAULT_ROOT) -> None:
        self.tree = PinTree(root)

    def lock_agent(self) -> int:
        """Be this node's one agent; the lock's descriptor, for `unlock_agent` or for the next
        agent. Raises `Busy` when another lives."""
        bpffs.ensure_mounted(self.tree)
        return bpffs.lock_agent(self.tree)

    def unlock_agent(self, descriptor: int) -> None:
        """Be it no more; only for the last one that holds the lock."""
        bpffs.unlock_agent(self.tree, descriptor)

    def is_installed(self) -> bool:
        return self.tree.exists()

    def maps(self) -> Maps:
        """The pinned maps; the caller closes them. Raises `NotInstalled`."""
        if not self.is_installed():
            raise NotInstalled(f"{self.tree.current}: nothing is installed")
        return Maps(self.tree.maps)

    @contextmanager
    def _changing(self, lock_timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[Maps]:
        with locked(self.tree, timeout_s=lock_timeout_s), self.maps() as maps:
            yield maps

    # Install

    def install(
        self,
        settings: AgentSettings,
        *,
        features: Features | None = None,
        object_path: Path = programs.OBJECT_PATH,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
    ) -> InstallReport:
        """Bring programs, maps and the agent's hooks to this version; keeps what is attached.

        Idempotent. What is new is switched off; switches of an installed node are kept.
        """
        bpffs.ensure_mounted(self.tree)
        features = features or probe_hooks()
        with locked(self.tree, timeout_s=lock_timeout_s):
            loaded = programs.install(self.tree, features, object_path)
            self._make_cgroup(settings.cgroup)
            with self.maps() as maps:
                self._write_settings(maps, settings, spread=features.has(NETNS_HOOKS[0].attach))
            self._attach_agent(settings, features)
            for scope in self.tree.scope_directories():
                self._attach_scope(Cgroup(bpffs.cgroup_name(scope)), features)
        missing = tuple(h.name for h in ALL_HOOKS if not features.has(h.attach))
        return InstallReport(loaded.fresh, loaded.changed, missing)

    def _make_cgroup(self, wanted: Cgroup) -> None:
        """Marked first, so that a crash in between leaves nothing that is not known."""
        for missing in reversed([c for c in wanted.and_ancestors() if not c.exists()]):
            make_directory(self.tree.made_cgroups / escaped(missing.name))
            missing.create()

    def _write_settings(self, maps: Maps, settings: AgentSettings, *, spread: bool) -> None:
        cfg = maps.cfg
        cfg.agent_cgroup_id = settings.cgroup.id
        cfg.agent_cgroup_level = settings.cgroup.level
        cfg.agent_mark = settings.mark
        cfg.outbound_port = settings.outbound_port
        cfg.inbound_port = settings.inbound_port
        cfg.heartbeat_max_age_ns = settings.heartbeat_max_age_ns
        cfg.flags = cfg.flags | CfgFlag.SPREAD if spread else cfg.flags & ~CfgFlag.SPREAD
        maps.cfg = cfg

    def _attach_agent(self, settings: AgentSettings, features: Features) -> None:
        agent, netns = Target.cgroup(settings.cgroup), Target.netns(settings.netns)
        with self._program_fds() as fds:
            for hook in usable_hooks(AGENT_HOOKS, features):
                links.ensure(hook, fds[hook.program], agent, self.tree.agent_links)
            for hook in usable_hooks(NETNS_HOOKS, features):
                links.ensure(hook, fds[hook.program], netns, self.tree.agent_links)

    @contextmanager
    def _program_fds(self) -> Iterator[dict[str, int]]:
        fds: dict[str, int] = {}
        try:
            for path in self.tree.programs.iterdir():
                fds[path.name] = libbpf.open_pin(path)
            yield fds
        finally:
            for fd in fds.values():
                os.close(fd)

    def begin_generation(self) -> int:
        """Count one agent more; its number, which status shows."""
        with self._changing() as maps:
            cfg = maps.cfg
            cfg.generation += 1
            maps.cfg = cfg
            return int(cfg.generation)

    # Scope

    def _attach_scope(self, scope: Cgroup, features: Features | None = None) -> None:
        """Attach the services' hooks; a cgroup that does not exist is left for later."""
        if not scope.exists():
            return
        directory, target = self.tree.scope(scope.name), Target.cgroup(scope)
        with self._program_fds() as fds:
            hooks: Iterable[Hook] = (h for h in SCOPE_HOOKS if h.program in fds)
            if features is not None:
                hooks = usable_hooks(SCOPE_HOOKS, features)
            for hook in hooks:
                links.ensure(hook, fds[hook.program], target, directory)

    def add_scope(
        self,
        scope: Cgroup,
        *,
        shadow: bool = False,
        force: bool = False,
        passing: bool = False,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
    ) -> None:
        """Look at the connections of a cgroup and everything below it.

        One that is `passing` is forgotten when its cgroup is removed, as of a unit that will be
        started in another one; any other waits for it to come back.
        Raises `Refused` when it holds what a mistake of ours must not reach, unless forced.
        """
        if not scope.exists():
            raise InterceptorError(f"cgroup {scope.name}: does not exist at {scope.path}")
        if not force:
            refuse_dangerous(scope)
        with self._changing(lock_timeout_s) as maps:
            for directory in self.tree.scope_directories():
                other = Cgroup(bpffs.cgroup_name(directory))
                if other != scope and (other.holds(scope) or scope.holds(other)):
                    raise Refused(
                        f"cgroup {scope.name}: overlaps with {other.name}, which is in the mesh; "
                        f"take that out first (moactl mesh off --cgroup {other.name})"
                    )
            fresh = not self.tree.scope(scope.name).is_dir()
            self._set_shadow(maps, scope, shadow=shadow)
            try:
                self._attach_scope(scope)
            except BaseException:
                if fresh:
                    self._detach_scope(maps, scope)
                raise
            bpffs.remove_tree(self.tree.taken_out / escaped(scope.name))
            if passing:
                make_directory(self.tree.passing / escaped(scope.name))
            else:
                bpffs.remove_tree(self.tree.passing / escaped(scope.name))

    def exclude(self, cgroup: Cgroup, *, excluded: bool) -> None:
        """Leave a cgroup alone, and all below it, within a scope that it lies in; or no more."""
        with self._changing() as maps:
            maps.set_cgroup_policy(cgroup.id, CgroupFlag.EXCLUDED if excluded else CgroupFlag(0))

    def _set_shadow(self, maps: Maps, scope: Cgroup, *, shadow: bool) -> None:
        mark = self.tree.shadows / escaped(scope.name)
        if shadow:
            make_directory(mark)
        else:
            bpffs.remove_tree(mark)
        if scope.exists():
            maps.set_cgroup_policy(scope.id, CgroupFlag.SHADOW if shadow else CgroupFlag(0))

    def _detach_scope(self, maps: Maps, scope: Cgroup) -> None:
        links.detach_all(self.tree.scope(scope.name))
        self._set_shadow(maps, scope, shadow=False)
        bpffs.remove_tree(self.tree.passing / escaped(scope.name))

    def remove_scope(self, scope: Cgroup, *, configured: bool = False) -> bool:
        """Stop looking at a cgroup; False when it was not in the mesh.

        One that was, or that an agent's configuration names (`configured`), stays out, whatever
        a configuration says, until it is added by name.
        """
        with self._changing() as maps:
            was_in = self.tree.scope(scope.name).is_dir()
            if was_in or configured:
                make_directory(self.tree.taken_out / escaped(scope.name))
            if was_in:
                self._detach_scope(maps, scope)
            return was_in

    def forget_scope(self, scope: Cgroup) -> bool:
        """Stop looking at a cgroup and remember nothing of it; False when it was not looked at."""
        with self._changing() as maps:
            was_in = self.tree.scope(scope.name).is_dir()
            if was_in:
                self._detach_scope(maps, scope)
            return was_in

    def was_taken_out(self, scope: Cgroup) -> bool:
        """Whether an operator took this cgroup out of the mesh and nobody put it back."""
        return (self.tree.taken_out / escaped(scope.name)).is_dir()

    def taken_out(self) -> list[str]:
        """Names of the cgroups that an operator took out of the mesh and nobody put back."""
        return _marked(self.tree.taken_out)

    def passing(self) -> list[str]:
        """Names of the cgroups that are in the mesh for as long as they are there."""
        return _marked(self.tree.passing)

    def await_scope(self, scope: Cgroup, *, shadow: bool = False) -> None:
        """Look at a cgroup as soon as there is one: until then it is lost, and `reconcile`
        attaches it."""
        with self._changing() as maps:
            self._set_shadow(maps, scope, shadow=shadow)
            make_directory(self.tree.scope(scope.name))

    def reconcile(self, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> list[str]:
        """Attach scopes whose cgroup was removed and made anew; returns their names.

        A unit that systemd restarts gets a new cgroup of the same name.
        """
        with self._changing(lock_timeout_s) as maps:
            mended = []
            for directory in self.tree.scope_directories():
                scope = Cgroup(bpffs.cgroup_name(directory))
                if not scope.exists() and (self.tree.passing / directory.name).is_dir():
                    self._detach_scope(maps, scope)
                    _forget_removed_cgroups(maps)
                elif scope.exists() and links.is_lost(directory, scope.id):
                    shadow = (self.tree.shadows / directory.name).is_dir()
                    self._set_shadow(maps, scope, shadow=shadow)
                    self._attach_scope(scope)
                    mended.append(scope.name)
            if mended:
                _forget_removed_cgroups(maps)
            return mended

    def scopes(self) -> list[Scope]:
        """Every scoped cgroup and its state."""
        found = []
        for directory in self.tree.scope_directories():
            scope = Cgroup(bpffs.cgroup_name(directory))
            inode = scope.id if scope.exists() else None
            lost = inode is None or links.is_lost(directory, inode)
            found.append(
                Scope(
                    cgroup=scope.name,
                    state="lost" if lost else "attached",
                    shadow=(self.tree.shadows / directory.name).is_dir(),
                    hooks=tuple(sorted(path.name for path in directory.iterdir())),
                )
            )
        return found

    # The switch

    def switch(
        self, *, on: bool, shadow: bool = False, confirm_within_s: float | None = None
    ) -> None:
        """Take effect for new connections at once; nothing needs a restart.

        With `confirm_within_s` the kernel itself switches off again when the time is up, unless
        `confirm` comes before.
        """
        with self._changing() as maps:
            cfg = maps.cfg
            flags = CfgFlag(cfg.flags)
            if on:
                flags = flags | CfgFlag.SHADOW if shadow else flags & ~CfgFlag.SHADOW
            cfg.flags = flags | CfgFlag.ENABLED if on else flags & ~CfgFlag.ENABLED
            cfg.on_until_ns = 0
            if on and confirm_within_s is not None:
                cfg.on_until_ns = time.monotonic_ns() + int(confirm_within_s * 1e9)
            maps.cfg = cfg

    def confirm(self) -> None:
        """Let the mesh stay on; raises `Refused` when it is off, or the time was up."""
        with self._changing() as maps:
            cfg = maps.cfg
            if not cfg.flags & CfgFlag.ENABLED or _is_over(cfg):
                raise Refused(
                    "confirm: the mesh is off; it was not confirmed in time, or was "
                    "switched off (moactl mesh on)"
                )
            cfg.on_until_ns = 0
            maps.cfg = cfg

    # What was said before the pins were made, as before a boot

    def was_told(self) -> bool:
        """Whether these pins were given it already."""
        return self.tree.told.is_dir()

    def note_told(self) -> None:
        with self._changing():
            make_directory(self.tree.told)

    # Uninstall

    def uninstall(self) -> Removal:
        """Take everything away that an install may have made, from the pins alone.

        Works on a half-finished install, on a crashed agent's leftovers, and on nothing.
        """
        return removal.uninstall(self.tree)


def _marked(marks: Path) -> list[str]:
    return sorted(map(bpffs.cgroup_name, marks.iterdir())) if marks.is_dir() else []


def _is_over(cfg: Cfg) -> bool:
    return bool(cfg.on_until_ns) and time.monotonic_ns() >= cfg.on_until_ns


def _forget_removed_cgroups(maps: Maps) -> None:
    """A unit that restarts for years would otherwise fill the map of policies."""
    alive = all_ids()
    for cgroup_id in maps.cgroup_policies().keys() - alive:
        maps.set_cgroup_policy(cgroup_id, CgroupFlag(0))


def refuse_dangerous(scope: Cgroup, *, by_itself: bool = True) -> None:
    """Raise `Refused` when a scope holds the way into the node, or ourselves; who asks for
    another one is not meant (`by_itself`)."""
    for pid in scope.processes():
        if by_itself and pid == os.getpid():
            raise Refused(f"cgroup {scope.name}: holds this very process; --force to insist")
        try:
            name = psutil.Process(pid).name()
        except psutil.NoSuchProcess:
            continue
        if name in _NEVER_SCOPED:
            raise Refused(
                f"cgroup {scope.name}: holds {name} (process {pid}); choose a smaller one, "
                "such as the unit's own, or --force to insist"
            )
