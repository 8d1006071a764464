"""`moactl instance drain|maint|ready`."""

from __future__ import annotations

import getpass
import socket

import click

from installer.cli import registry_access
from installer.cli.output import emit
from installer.cli.service import address_of, key_of
from installer.cli.session import Session, pass_session, shared_options
from proxy.core.model import DRAIN, MAINT
from proxy.registry.watch_log import Entry

_why_option = click.option("--why", default="", metavar="TEXT", help="For the log.")


@click.group()
@shared_options
def instance() -> None:
    """Take instances out of traffic by hand, and give them back.

    NAME is a service's URI, or NAME#GROUP. What is said here holds until it is taken back or the
    instance deregisters, and is written to the log (`moactl watcher log`).
    """


@instance.command()
@click.argument("name")
@click.argument("hostport", metavar="HOST:PORT")
@_why_option
@shared_options
@pass_session
def drain(session: Session, name: str, hostport: str, why: str) -> None:
    """Give an instance no new requests as long as there is another one."""
    _say(session, "drain", name, hostport, why, (DRAIN,), (MAINT,))


@instance.command()
@click.argument("name")
@click.argument("hostport", metavar="HOST:PORT")
@_why_option
@shared_options
@pass_session
def maint(session: Session, name: str, hostport: str, why: str) -> None:
    """Never choose an instance, and leave it alone: no health checks, no watcher."""
    _say(session, "maint", name, hostport, why, (MAINT,), (DRAIN,))


@instance.command()
@click.argument("name")
@click.argument("hostport", metavar="HOST:PORT")
@_why_option
@shared_options
@pass_session
def ready(session: Session, name: str, hostport: str, why: str) -> None:
    """Take drain and maint back."""
    _say(session, "ready", name, hostport, why, (), (DRAIN, MAINT))


def _say(
    session: Session, word: str, name: str, hostport: str, why: str,
    marks: tuple[str, ...], cleared: tuple[str, ...],
) -> None:  # fmt: skip
    key, address = key_of(name), address_of(hostport)
    entry = Entry(_author(), word, str(key), str(address), why=why)
    config = session.config()
    changed = registry_access.mark(config, key, address, marks, cleared, entry)
    data = {
        "uri": key.uri, "group": key.group, "address": str(address), "changed": changed,
        "registry": registry_access.source_of(config),
    }  # fmt: skip
    already = "" if changed else " already"
    emit(session, f"instance.{word}/1", data, f"{address} of {key} is{already} {word}")


def _author() -> str:
    """Who asks, for the log: one word."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"  # a user without a name and an environment
    return "".join(f"{user}@{socket.gethostname()}".split())
