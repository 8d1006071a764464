"""The root of `moactl`: which commands there are."""

from __future__ import annotations

from typing import Any

import click

from installer.cli.failure import told_plainly
from installer.cli.lazy import Lazy, LazyGroup
from installer.cli.session import SHORT, Session, pass_session, shared_options_and_short

_HERE = "installer.cli"

COMMANDS = {
    "status": Lazy(f"{_HERE}.status", "status", "Show the node's interception and its agent."),
    "mesh": Lazy(f"{_HERE}.mesh", "mesh", "Switch interception on and off."),
    "switch": Lazy(
        f"{_HERE}.switch", "switch", "Switch services, applications and nodes off and on by name."
    ),
    "conns": Lazy(f"{_HERE}.conns", "conns", "List the connections that the agent carries."),
    "tap": Lazy(f"{_HERE}.tap", "tap", "Show the kernel's decisions as they happen."),
    "service": Lazy(f"{_HERE}.service", "service", "Look at services and change them."),
    "route": Lazy(f"{_HERE}.route", "route", "Look at how requests are routed."),
    "instance": Lazy(
        f"{_HERE}.instance",
        "instance",
        "Take instances out of traffic by hand, and give them back.",
    ),
    "watcher": Lazy(f"{_HERE}.watcher", "watcher", "Look at the watchers and what they did."),
    "registry": Lazy(f"{_HERE}.registry", "registry", "Look at the registry."),
    "config": Lazy(f"{_HERE}.config", "config", "Check and show the configuration."),
    "doctor": Lazy(f"{_HERE}.doctor", "doctor", "Say what is wrong here and what to do."),
    "selftest": Lazy(
        f"{_HERE}.selftest",
        "selftest",
        "Prove here that interception works, and that it fails open.",
    ),
    "bugreport": Lazy(
        f"{_HERE}.bugreport", "bugreport", "Pack what a bug report needs, without secrets."
    ),
    "agent": Lazy(f"{_HERE}.agent", "agent", "Run the agent, and exchange it for another version."),
    "install": Lazy(
        f"{_HERE}.install", "install", "Put it on this node, or bring it to this version."
    ),
    "uninstall": Lazy(f"{_HERE}.uninstall", "uninstall", "Take everything off this node."),
    "version": Lazy(f"{_HERE}.version", "version", "Show versions."),
}


class _Root(LazyGroup):
    def invoke(self, ctx: click.Context) -> Any:
        with told_plainly():
            return super().invoke(ctx)


@click.group(
    cls=_Root,
    commands_by_name=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit code: 0 done, 1 failed, 2 wrong usage. Every command takes -o json.",
)
@shared_options_and_short
@pass_session
@click.pass_context
def root(ctx: click.Context, session: Session) -> None:
    """MOA Interceptor on this node."""
    if session.output == SHORT and ctx.invoked_subcommand != "doctor":
        raise click.UsageError(f"-o {SHORT} is a form of moactl doctor alone")


def main() -> None:
    """The entry point."""
    root.main(prog_name="moactl")
