"""`moactl agent run`."""

from __future__ import annotations

from importlib import import_module

import click

from installer.cli.session import Session, pass_session, shared_options


@click.group()
@shared_options
def agent() -> None:
    """Run the agent."""


@agent.command()
@shared_options
@pass_session
def run(session: Session) -> None:
    """Run the agent in the foreground until SIGTERM or SIGINT.

    Its log goes to stderr. It installs what is missing in the kernel; the switch and the
    scopes of an installed node stay as they are.
    """
    config = session.config()
    # Late: the agent brings the event loop and the whole proxy with it.
    import_module("installer.agent").run(config, session.config_file)
