"""`moactl switch off|on|list`: services, applications and nodes, here and everywhere."""

from __future__ import annotations

import asyncio
import getpass
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from redis.exceptions import RedisError

from installer import switches
from installer.cli.failure import Failure, note
from installer.cli.output import Table, duration, emit
from installer.cli.session import Session, pass_session, shared_options
from installer.client import AgentError, AgentNotRunning
from installer.config import Config
from proxy.core.switches import BadStatement, Statement, Target, What
from proxy.registry import switches_redis
from proxy.registry.base import RegistryError
from proxy.registry.endpoint import RedisEndpoint

_Value = TypeVar("_Value")
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class _Asked:
    target: Target
    on: bool
    everywhere: bool
    why: str


@click.group()
@shared_options
def switch() -> None:
    """Switch services, applications and nodes off and on by name.

    A service that is off is as if the mesh did not know it: new connections to its instances go
    straight, and its requests on open ones go to the address that was dialled. An application
    that is off is all nodes with that node.application.
    """


def _target(function: _Function) -> _Function:
    """What `on` and `off` are told."""
    for option in (
        click.option("--why", default="", help="For whoever asks later."),
        click.option("--everywhere", is_flag=True, help="In the registry, for every node."),
        click.argument("name"),
        click.argument("what", type=click.Choice([str(what) for what in What])),
    ):
        function = option(function)
    return function


@switch.command()
@_target
@shared_options
@pass_session
def off(session: Session, what: str, name: str, everywhere: bool, why: str) -> None:
    """Switch it off: a service on this node or everywhere, an application, or a node.

    Counts for new connections at once here, and within a second where the registry says it.
    """
    _change(session, _asked(what, name, False, everywhere, why))


@switch.command()
@_target
@shared_options
@pass_session
def on(session: Session, what: str, name: str, everywhere: bool, why: str) -> None:
    """Switch it on again where it was switched off: here, or with --everywhere."""
    _change(session, _asked(what, name, True, everywhere, why))


@switch.command("list")
@shared_options
@pass_session
def list_(session: Session) -> None:
    """List what was said of services, applications and nodes, here and in the registry."""
    config = session.config()
    local = _said_here(config.agent.state_dir / switches.LOCAL)
    shared = _run(config, switches_redis.read(_endpoint(config))) if _is_redis(config) else {}
    found = [
        {**switches.described(target, said), "where": where}
        for where, statements in (("node", local), ("registry", shared))
        for target, said in statements.items()
    ]
    rows = [
        (s["what"], s["name"], "on" if s["on"] else "off", s["where"],
         duration(time.time() - s["at_unix_s"]), s["who"], s["why"])
        for s in found
    ]  # fmt: skip
    headings = ("WHAT", "NAME", "IS", "SAID BY", "AGO", "WHO", "WHY")
    emit(session, "switch.list/1", {"switches": found}, Table(headings, rows, empty="all is on"))


def _asked(what: str, name: str, is_on: bool, everywhere: bool, why: str) -> _Asked:
    try:
        target = Target.parse(f"{what} {name}")
    except BadStatement as error:
        raise click.UsageError(str(error)) from None
    if target.what is not What.SERVICE and not everywhere:
        raise click.UsageError(
            f"{what} {name}: is said in the registry: --everywhere; this node: moactl mesh off"
        )
    return _Asked(target, is_on, everywhere, why)


def _change(session: Session, asked: _Asked) -> None:
    config = session.config()
    who = f"{getpass.getuser()}@{config.node.name or socket.gethostname()}"
    if asked.everywhere:
        saying = switches_redis.write(
            _endpoint(config), asked.target, on=asked.on, who=who, why=asked.why
        )
        _run(config, saying)
    else:
        _change_here(session, config, asked, who)
    data = {
        "what": asked.target.what, "name": asked.target.name, "on": asked.on,
        "everywhere": asked.everywhere, "who": who, "why": asked.why,
    }  # fmt: skip
    place = "everywhere" if asked.everywhere else "on this node"
    sentence = f"{asked.target} is {'on' if asked.on else 'off'} {place}"
    emit(session, f"switch.{'on' if asked.on else 'off'}/1", data, sentence)
    _note_unknown(session, asked)


def _note_unknown(session: Session, asked: _Asked) -> None:
    """No refusal: it may be registered later, and shall be off then."""
    if asked.target.what is not What.SERVICE:
        return
    try:
        found = session.client().knows(asked.target.name)
    except AgentError:  # none runs, or one of an older version
        return
    if not found["known"]:
        similar = ", ".join(found["similar"])
        hint = f"; did you mean {similar}?" if similar else ""
        note(f"the agent here knows no service {asked.target.name}{hint}")


def _said_here(path: Path) -> dict[Target, Statement]:
    try:
        return switches.read(path)
    except switches.SwitchesError as error:
        todo = f"mend it, or move it away: then all is on here (mv {path} {path}.broken)"
        raise Failure(str(error), todo) from error


def _change_here(session: Session, config: Config, asked: _Asked, who: str) -> None:
    path = config.agent.state_dir / switches.LOCAL
    said = Statement(asked.on, int(time.time() * 1000), who, " ".join(asked.why.split()))
    try:
        switches.save(path, {**_said_here(path), asked.target: said})
    except PermissionError:
        raise
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", "moactl doctor") from error
    try:
        session.client().post("/v1/switches/reload")
    except AgentNotRunning:
        note("no agent runs: connections go straight; the next one obeys")


def _is_redis(config: Config) -> bool:
    return config.registry.kind == "redis" and config.registry.url is not None


def _endpoint(config: Config) -> RedisEndpoint:
    if not _is_redis(config) or config.registry.url is None:
        raise Failure(
            f"registry {config.registry.file}: a file has no switches for every node",
            "leave --everywhere out, on each node",
        )
    return RedisEndpoint.parse(config.registry.url.get_secret_value())


def _run(config: Config, work: Coroutine[Any, Any, _Value]) -> _Value:
    try:
        return asyncio.run(work)
    except (RegistryError, RedisError, OSError) as error:
        words = str(error) or "no answer in time"
        raise Failure(f"registry {_endpoint(config)}: {words}", "moactl doctor registry") from error
