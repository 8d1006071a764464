"""How a command fails: one text on stderr, what to do next, and exit code 1.

Usage errors are click's own and exit with 2.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from installer.client import AgentError
from installer.next_steps import TO_INSTALL
from interceptor.errors import Busy, Incomplete, InterceptorError, NotInstalled, Refused


class Failure(click.ClickException):
    """Ends the command; `next_step` names the command to try, or says what to do."""

    exit_code = 1

    def __init__(self, text: str, next_step: str) -> None:
        super().__init__(text)
        self.next_step = next_step

    def show(self, file: IO[Any] | None = None) -> None:
        stream = file or sys.stderr
        click.echo(f"moactl: {self.message}", file=stream)
        click.echo(f"  next: {self.next_step}", file=stream)


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turn the errors that we expect into a `Failure`; anything else is a bug and shows itself."""
    try:
        yield
    except AgentError as error:
        raise Failure(str(error), error.next_step) from error
    except InterceptorError as error:
        raise Failure(str(error), _next_step(error)) from error
    except PermissionError as error:
        raise Failure(str(error), "run it as root") from error


def _next_step(error: InterceptorError) -> str:
    if isinstance(error, NotInstalled):
        return TO_INSTALL
    if isinstance(error, Incomplete):
        return "moactl uninstall, then moactl agent run"
    if isinstance(error, Busy):
        return "try again; moactl status"
    if isinstance(error, Refused):
        return "moactl mesh on --help"
    return "moactl doctor"


def note(text: str) -> None:
    """Say something that is no part of the product: on stderr."""
    click.echo(f"note: {text}", err=True)
