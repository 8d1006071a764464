"""`moactl mesh on|off`: the node's switch, and which cgroups are in the mesh."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import click

from installer import agent_lock, node_state
from installer.cli.failure import Failure, note
from installer.cli.output import emit
from installer.cli.session import Session, pass_session, shared_options
from installer.node_state import Installed
from interceptor.cgroup import Cgroup
from interceptor.node import Node


@dataclass(slots=True)
class _Change:
    """What was asked for and what came of it; `done` has a sentence for each step."""

    enabled: bool
    shadow: bool
    cgroup: str | None = None
    changed: bool = False
    done: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@click.group()
@shared_options
def mesh() -> None:
    """Switch interception on and off.

    A change counts for new connections at once; established ones stay as they are.
    """


@mesh.command()
@click.option("--cgroup", metavar="PATH", help="Take this cgroup, and all below it, into the mesh.")
@click.option("--shadow", is_flag=True, help="Decide and count, but change nothing.")
@click.option("--force", is_flag=True, help="Even if the cgroup holds sshd, init or this shell.")
@shared_options
@pass_session
def on(session: Session, cgroup: str | None, shadow: bool, force: bool) -> None:
    """Switch the node on, or take a cgroup into the mesh.

    With --cgroup the node's switch is turned on as well when it was off.
    """
    if force and cgroup is None:
        raise click.UsageError("--force goes with --cgroup")
    node = session.node()
    before = _installed(session, node)
    change = _Change(enabled=True, shadow=before.shadow)
    if cgroup is not None:
        _add_scope(node, before, Cgroup.of(cgroup), shadow, force, change)
    if cgroup is None or not before.enabled:
        _switch_on(node, before, before.shadow if cgroup is not None else shadow, change)
    _warn_if_idle(_installed(session, node), change)
    _tell(session, "mesh.on/1", change)


@mesh.command()
@click.option("--cgroup", metavar="PATH", help="Take only this cgroup out of the mesh.")
@shared_options
@pass_session
def off(session: Session, cgroup: str | None) -> None:
    """Switch the node off, or take a cgroup out of the mesh."""
    node = session.node()
    before = node_state.read(node)
    if before is None:
        change = _Change(enabled=False, shadow=False, cgroup=cgroup)
        change.done.append("nothing is installed: nothing is intercepted")
    elif cgroup is None:
        change = _Change(enabled=False, shadow=before.shadow, changed=before.enabled)
        node.switch(on=False)
        change.done.append(f"mesh {'' if before.enabled else 'was already '}off")
    else:
        change = _Change(enabled=before.enabled, shadow=before.shadow)
        _remove_scope(session, node, Cgroup.of(cgroup), change)
    _tell(session, "mesh.off/1", change)


def _installed(session: Session, node: Node) -> Installed:
    state = node_state.read(node)
    if state is not None:
        return state
    text, todo = f"{node.tree.current}: nothing is installed", "moactl agent run"
    config = session.config()
    # Of an agent with other pins the lock says nothing.
    if node.tree.root == config.bpf.root and (pid := agent_lock.holder(config.agent.runtime_dir)):
        what, todo = agent_lock.outlived_its_pins(pid)
        text = f"{text}; {what}"
    raise Failure(text, todo)


def _add_scope(
    node: Node, before: Installed, scope: Cgroup, shadow: bool, force: bool, change: _Change
) -> None:
    node.add_scope(scope, shadow=shadow, force=force)
    change.cgroup = scope.name
    old = next((s for s in before.scopes if s.cgroup == scope.name), None)
    mode = " in shadow" if shadow else ""
    if old is None:
        change.done.append(f"cgroup {scope.name} is in the mesh now{mode}")
        change.changed = True
    elif old.shadow != shadow or old.state == "lost":
        change.done.append(f"cgroup {scope.name} was in the mesh; it is now attached{mode}")
        change.changed = True
    else:
        change.done.append(f"cgroup {scope.name} was already in the mesh{mode}")


def _switch_on(node: Node, before: Installed, shadow: bool, change: _Change) -> None:
    mode = " in shadow: nothing is changed, only counted" if shadow else ""
    if before.enabled and before.shadow == shadow:
        change.done.append(f"mesh was already on{mode}")
        return
    node.switch(on=True, shadow=shadow)
    change.shadow, change.changed = shadow, True
    change.done.append(f"mesh on{mode}")


def _remove_scope(session: Session, node: Node, scope: Cgroup, change: _Change) -> None:
    change.cgroup = scope.name
    configured = scope.name in session.config().scope.cgroups
    change.changed = node.remove_scope(scope, configured=configured)
    verb = "is out of the mesh now" if change.changed else "was not in the mesh"
    change.done.append(f"cgroup {scope.name} {verb}")
    if configured:
        change.notes.append(
            f"scope.cgroups in {session.config_file} names {scope.name}; it stays out all the "
            f"same until `moactl mesh on --cgroup {scope.name}`"
        )


def _warn_if_idle(after: Installed, change: _Change) -> None:
    if not after.serves:
        change.notes.append(
            "no live agent serves: connections go straight until one does (moactl agent run)"
        )
    if not after.scopes:
        change.notes.append("no cgroup is in the mesh yet (moactl mesh on --cgroup PATH)")
    if after.bypassing:
        change.notes.append(
            f"{sum(b.count for b in after.bypassing)} established connections stay as they are "
            "(moactl status)"
        )


def _tell(session: Session, schema: str, change: _Change) -> None:
    emit(session, schema, asdict(change), *change.done)
    if not session.as_json:
        for text in change.notes:
            note(text)
