"""`moactl config check|show|example`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, SecretStr

from installer.cli.failure import note
from installer.cli.output import emit
from installer.cli.session import DEFAULT_CONFIG, Session, pass_session, shared_options
from installer.config import ConfigError, default_toml, exposed_password, load
from installer.config_failover import ServiceOverride


@click.group()
@shared_options
def config() -> None:
    """Check and show the configuration."""


@config.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@shared_options
@pass_session
@click.pass_context
def check(ctx: click.Context, session: Session, file: Path | None) -> None:
    """Check FILE, or the configuration that counts; exit 1 when it cannot be used."""
    path = file or session.config_file
    problems: tuple[str, ...] = ()
    exposed = None
    try:
        if path is not None:
            exposed = exposed_password(load(path), path)
    except ConfigError as error:
        problems = error.problems
    data = {
        "file": str(path) if path else None,
        "valid": not problems,
        "problems": problems,
        "warnings": [exposed] if exposed else [],
    }
    if exposed and not session.as_json:
        note(f"{exposed} (chmod 600 {path})")
    if session.as_json or not problems:
        verdict = f"{path}: valid" if path else f"{DEFAULT_CONFIG}: none, the defaults count"
        emit(session, "config.check/1", data, verdict)
    else:
        for problem in problems:
            click.echo(problem, err=True)
        click.echo("  next: moactl config example", err=True)
    ctx.exit(1 if problems else 0)


@config.command()
@shared_options
@pass_session
def show(session: Session) -> None:
    """Show every value that counts, as TOML; what is secret is shown as ***."""
    sections = plain(session.config())
    file = session.config_file
    if file is None and not session.as_json:
        note(f"{DEFAULT_CONFIG} does not exist: these are the built-in defaults")
    data = {"file": str(file) if file else None, "config": sections}
    emit(session, "config.show/1", data, _toml(sections))


@config.command()
@shared_options
@pass_session
def example(session: Session) -> None:
    """Print a complete example with every key, its meaning, bounds and default."""
    text = default_toml()
    emit(session, "config.example/1", {"toml": text}, text.rstrip("\n"))


def plain(section: BaseModel) -> dict[str, Any]:
    """A configuration as JSON values, without its secrets.

    Of a section that may repeat only what was said: the rest is that of another section.
    """
    said = section.model_fields_set if isinstance(section, ServiceOverride) else None
    return {
        name: _plain(getattr(section, name))
        for name in type(section).model_fields
        if said is None or name in said
    }


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return plain(value)
    if isinstance(value, SecretStr):
        return _without_secrets(value.get_secret_value())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _without_secrets(url: str) -> str:
    """A URL with everything left out that may hold a password."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    at = "***@" if "@" in authority else ""
    return f"{scheme}://{at}{authority.rpartition('@')[2]}{slash}{path}"


def _toml(sections: dict[str, Any]) -> str:
    lines: list[str] = []
    for section, values in sections.items():
        if isinstance(values, list):
            for one in values:
                lines += [f"[[{section}]]", *_key_lines(one), ""]
        else:
            lines += [f"[{section}]", *_key_lines(values), ""]
    return "\n".join(lines).rstrip("\n")


def _key_lines(values: dict[str, Any]) -> list[str]:
    # Booleans, integers, strings and lists of them are written as in JSON.
    return [
        f"# {key} is not set"
        if value is None
        else f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
    ]
