"""What every command shares: the options -c, -o and --root, and what follows from them.

They are accepted before and after the name of a command; the last one counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from installer.cli.failure import Failure

if TYPE_CHECKING:
    from installer.client import AgentClient
    from installer.config import Config
    from interceptor.node import Node

_Function = TypeVar("_Function", bound=Callable[..., Any])

DEFAULT_CONFIG = "/etc/moa/agent.toml"


@dataclass(slots=True)
class Session:
    """The options of one call of moactl."""

    config_path: Path | None = None
    output: str = "table"
    root: Path | None = None
    _config: Config | None = field(default=None, repr=False)

    @property
    def as_json(self) -> bool:
        return self.output == "json"

    @property
    def config_file(self) -> Path | None:
        """The file that counts; None when there is none and the built-in defaults do."""
        if self.config_path is not None:
            return self.config_path
        default = Path(DEFAULT_CONFIG)
        return default if default.exists() else None

    def config(self) -> Config:
        """The configuration; raises `Failure`."""
        from installer.config import Config, ConfigError, load

        if self._config is None:
            path = self.config_file
            try:
                self._config = load(path) if path else Config()
            except ConfigError as error:
                raise Failure(str(error), f"moactl config check {path}") from error
        return self._config

    def node(self) -> Node:
        """The node whose pins are at --root, or at the configuration's bpf.root."""
        from interceptor.node import Node

        return Node(self.root or self.config().bpf.root)

    def client(self) -> AgentClient:
        """The running agent, if any."""
        from installer.client import AgentClient

        return AgentClient.of(self.config().agent.runtime_dir)


pass_session = click.make_pass_decorator(Session, ensure=True)


def _store(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None:
        setattr(ctx.find_root().ensure_object(Session), str(param.name), value)


SHORT = "short"
"""A form of the output that `doctor` alone has."""


def _options(forms: list[str]) -> tuple[Callable[[_Function], _Function], ...]:
    return (
        click.option(
            "-c", "--config", "config_path", metavar="FILE", type=click.Path(path_type=Path),
            expose_value=False, callback=_store, help=f"Configuration [default: {DEFAULT_CONFIG}].",
        ),
        click.option(
            "-o", "--output", type=click.Choice(forms),
            expose_value=False, callback=_store, help="Form of the output [default: table].",
        ),
        click.option(
            "--root", metavar="DIR", type=click.Path(path_type=Path),
            expose_value=False, callback=_store, help="Where the pins are [default: bpf.root].",
        ),
    )  # fmt: skip


def shared_options(function: _Function) -> _Function:
    """Give a command the options that every command has."""
    return _given(function, ["table", "json"])


def shared_options_and_short(function: _Function) -> _Function:
    """The same, and one form of the output more."""
    return _given(function, ["table", "json", SHORT])


def _given(function: _Function, forms: list[str]) -> _Function:
    for option in reversed(_options(forms)):
        function = option(function)
    return function
