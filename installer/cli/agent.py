"""`moactl agent run`."""

from __future__ import annotations

import click

from installer import agent_lock
from installer.cli.failure import Failure
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
    config, file = session.config(), session.config_file
    # Late: it brings the event loop and the whole proxy with it.
    from installer.agent import run as run_agent
    from interceptor.errors import Busy
    from proxy.registry.base import RegistryError

    try:
        run_agent(config, file)
    except PermissionError:
        raise
    except Busy as error:
        other = agent_lock.holder(config.agent.runtime_dir)
        if other is None:  # not the agent's lock, but the one of a command
            raise
        raise Failure(str(error), f"moactl status; kill {other}, or stop its unit") from error
    except (RegistryError, OSError) as error:
        raise Failure(f"agent: {error}", "moactl doctor") from error
