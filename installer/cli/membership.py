"""`moactl mesh join|leave`: units of systemd."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import click

from installer import membership, node_state
from installer.cli.failure import Failure, note
from installer.cli.install import told
from installer.cli.output import emit
from installer.cli.session import Session, pass_session, shared_options
from installer.cli.word import held, keep
from installer.membership import MembershipError, Unit
from installer.mesh_word import Word
from installer.node_state import Installed
from installer.plan import run
from installer.plan.site import Site
from interceptor.errors import NotInstalled
from interceptor.node import Node


@click.command()
@click.argument("unit")
@shared_options
@pass_session
def join(session: Session, unit: str) -> None:
    """Take a systemd unit into the mesh: now, and at its next starts.

    Its new connections count at once; it is not restarted. A drop-in puts it into
    moa-mesh.slice from its next start on.
    """
    _change(session, unit, "mesh.join/1", membership.join)


@click.command()
@click.argument("unit")
@shared_options
@pass_session
def leave(session: Session, unit: str) -> None:
    """Take a systemd unit out of the mesh: now, and at its next starts.

    Its new connections go straight at once; it is not restarted.
    """
    _change(session, unit, "mesh.leave/1", membership.leave)


def _change(
    session: Session, name: str, schema: str, change: Callable[[Unit, Site, Node], list[str]]
) -> None:
    site, node = Site(), session.node()
    with told(schema.partition("/")[0].replace(".", " ")):
        if not node.is_installed() or not run.load(site):
            raise NotInstalled(f"{node.tree.current}: no installation by moactl install")
        try:
            unit = membership.look(name)
            with site.locked():
                run.load(site)
                before = node_state.read(node)
                done = change(unit, site, node)
        except MembershipError as error:
            raise Failure(str(error), error.next_step) from error
    with held(session):
        notes = keep(session, node, before, partial(_say, node, before))
    data = {
        "unit": unit.name,
        "cgroup": unit.cgroup.name if unit.cgroup else None,
        "done": done,
    }
    emit(session, schema, data, *done)
    for text in notes:
        note(text)


def _say(node: Node, before: Installed | None, word: Word) -> None:
    """What is in the mesh by a drop-in needs no word; the slice that drop-ins name does."""
    earlier = {scope.cgroup for scope in before.scopes} if before else set()
    now, passing = {scope.cgroup for scope in node.scopes()}, set(node.passing())
    for name in (earlier - now) | passing:
        word.forget(name)
    for name in now - earlier - passing:
        word.add(name)
    word.taken_out = [name for name in word.taken_out if name not in now]
