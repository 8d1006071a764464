"""`moactl mesh on|off`: the node's switch, and which cgroups are in the mesh."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from functools import partial

import click

from installer import agent_lock, node_state
from installer.cli import membership
from installer.cli.failure import Failure, note
from installer.cli.output import duration, emit
from installer.cli.session import Session, pass_session, shared_options
from installer.cli.word import held, keep
from installer.mesh_word import Switch, Word
from installer.next_steps import TO_INSTALL
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
    confirm_within_s: float | None = None
    done: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


_MAX_CONFIRM_S = 24 * 3600


class Duration(click.ParamType[float]):
    """Seconds, from `30s`, `5m` or `1h`; a day at most."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]{1,5})([smh])", str(value))
        if not found or int(found[1]) == 0:
            self.fail(f"{value!r}: expected a time like 30s, 5m or 1h", param, ctx)
        seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]
        if seconds > _MAX_CONFIRM_S:
            self.fail(f"{value!r}: expected at most 24h", param, ctx)
        return seconds


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
@click.option(
    "--confirm-within",
    "confirm_within_s",
    metavar="TIME",
    type=Duration(),
    help="Switch off again after 30s, 5m or 1h, unless `moactl mesh confirm` comes.",
)
@shared_options
@pass_session
def on(
    session: Session, cgroup: str | None, shadow: bool, force: bool, confirm_within_s: float | None
) -> None:  # fmt: skip
    """Switch the node on, or take a cgroup into the mesh.

    With --cgroup the node's switch is turned on as well when it was off. With --confirm-within
    the kernel itself switches off when nobody confirms: neither moactl nor the agent need live.
    """
    if force and cgroup is None:
        raise click.UsageError("--force goes with --cgroup")
    node = session.node()
    with held(session):
        change = _turn_on(session, node, cgroup, shadow, force, confirm_within_s)
    _warn_if_idle(_installed(session, node), change)
    _tell(session, "mesh.on/1", change)


def _turn_on(
    session: Session, node: Node, cgroup: str | None, shadow: bool, force: bool,
    confirm_within_s: float | None,
) -> _Change:  # fmt: skip
    before = _installed(session, node)
    change = _Change(enabled=True, shadow=before.shadow, confirm_within_s=confirm_within_s)
    if confirm_within_s is not None and before.enabled and before.confirm_left_s is None:
        raise Failure(
            "mesh: it is on, and was not to be confirmed: nothing to fall back to",
            "moactl mesh off, then moactl mesh on --confirm-within",
        )
    if cgroup is not None:
        _add_scope(session, node, before, Cgroup.of(cgroup), shadow, force, change)
    if cgroup is None or not before.enabled or confirm_within_s is not None:
        mode = before.shadow if cgroup is not None else shadow
        _switch_on(session, node, before, mode, change)
    return change


@mesh.command()
@click.option("--cgroup", metavar="PATH", help="Take only this cgroup out of the mesh.")
@shared_options
@pass_session
def off(session: Session, cgroup: str | None) -> None:
    """Switch the node off, or take a cgroup out of the mesh."""
    node = session.node()
    with held(session):
        change = _turn_off(session, node, cgroup)
    _tell(session, "mesh.off/1", change)


def _turn_off(session: Session, node: Node, cgroup: str | None) -> _Change:
    before = node_state.read(node)
    if before is None:
        change = _Change(enabled=False, shadow=False, cgroup=cgroup)
        change.done.append("nothing is installed: nothing is intercepted")
        change.notes += keep(session, node, None, partial(_out, cgroup))
    elif cgroup is None:
        change = _Change(enabled=False, shadow=before.shadow, changed=before.enabled)
        node.switch(on=False)
        change.done.append(f"mesh {'' if before.enabled else 'was already '}off")
        change.notes += keep(session, node, before, partial(_out, None))
    else:
        change = _Change(enabled=before.enabled, shadow=before.shadow)
        _remove_scope(session, node, before, Cgroup.of(cgroup), change)
    return change


@mesh.command()
@shared_options
@pass_session
def confirm(session: Session) -> None:
    """Let the mesh stay on that was switched on with --confirm-within.

    Exit code 1 when it is off by now.
    """
    node = session.node()
    with held(session):
        before = _installed(session, node)
        node.confirm()
        switch = Switch.SHADOW if before.shadow else Switch.ON
        notes = keep(session, node, before, lambda word: word.say(switch))
    change = _Change(enabled=True, shadow=False, changed=before.confirm_left_s is not None)
    change.done.append("mesh stays on" if change.changed else "mesh was on without a limit")
    data = {"enabled": True, "changed": change.changed, "done": change.done}
    emit(session, "mesh.confirm/1", data, *change.done)
    for text in notes:
        note(text)


def _out(cgroup: str | None, word: Word) -> None:
    """Before an agent has put anything into the kernel."""
    if cgroup is None:
        word.say(Switch.OFF)
    else:
        word.take_out(Cgroup.of(cgroup).name)


def _installed(session: Session, node: Node) -> Installed:
    state = node_state.read(node)
    if state is not None:
        return state
    text, todo = f"{node.tree.current}: nothing is installed", TO_INSTALL
    config = session.config()
    # Of an agent with other pins the lock says nothing.
    if node.tree.root == config.bpf.root and (pid := agent_lock.holder(config.agent.runtime_dir)):
        what, todo = agent_lock.outlived_its_pins(pid)
        text = f"{text}; {what}"
    raise Failure(text, todo)


def _add_scope(
    session: Session, node: Node, before: Installed, scope: Cgroup, shadow: bool, force: bool,
    change: _Change,
) -> None:  # fmt: skip
    node.add_scope(scope, shadow=shadow, force=force)
    change.notes += keep(
        session, node, before, lambda word: word.add(scope.name, shadow=shadow, forced=force)
    )
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


def _switch_on(
    session: Session, node: Node, before: Installed, shadow: bool, change: _Change
) -> None:
    mode = " in shadow: nothing is changed, only counted" if shadow else ""
    within_s = change.confirm_within_s
    if before.enabled and before.shadow == shadow and before.confirm_left_s == within_s:
        change.done.append(f"mesh was already on{mode}")
    else:
        node.switch(on=True, shadow=shadow, confirm_within_s=within_s)
        change.shadow, change.changed = shadow, True
        limit = f", off again in {duration(within_s)} unless confirmed" if within_s else ""
        change.done.append(f"mesh on{mode}{limit}")
    switch, confirmed = Switch.SHADOW if shadow else Switch.ON, within_s is None
    change.notes += keep(session, node, before, lambda word: word.say(switch, confirmed=confirmed))


def _remove_scope(
    session: Session, node: Node, before: Installed, scope: Cgroup, change: _Change
) -> None:
    change.cgroup = scope.name
    configured = scope.name in session.config().scope.cgroups
    change.changed = node.remove_scope(scope, configured=configured)
    verb = "is out of the mesh now" if change.changed else "was not in the mesh"
    change.done.append(f"cgroup {scope.name} {verb}")
    stays_out = change.changed or configured
    change.notes += keep(
        session, node, before,
        lambda word: word.take_out(scope.name) if stays_out else word.forget(scope.name),
    )  # fmt: skip
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


mesh.add_command(membership.join)
mesh.add_command(membership.leave)
