"""Lays out what a package holds: the private environment, man pages, shell completion.

`package.py TREE` writes below TREE; the environment is the one that runs this.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import click
from click.shell_completion import get_completion_class
from click_man.core import write_man_pages

from installer.cli.main import root
from installer.plan import environment

HOME = "usr/lib/moa-interceptor"
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/moactl",
    "zsh": "usr/share/zsh/vendor-completions/_moactl",
    "fish": "usr/share/fish/vendor_completions.d/moactl.fish",
}


def main(tree: Path) -> None:
    source = replace(environment.of_this_process(), python="/usr/bin/python3")
    (tree / HOME).parent.mkdir(parents=True)
    environment.build(source, tree / HOME)
    # dpkg has a list of its own, of what it put there.
    (tree / HOME / environment.LIST).unlink()
    _write_man_pages(tree / "usr/share/man/man1")
    _write_completions(tree)


def _write_man_pages(directory: Path) -> None:
    directory.mkdir(parents=True)
    write_man_pages(
        "moactl",
        _loaded(root),
        version=version(environment.DISTRIBUTION),
        target_dir=str(directory),
    )


def _loaded(command: click.Command) -> click.Command:
    """A command whose subcommands are all imported, which is what click-man looks at."""
    if not isinstance(command, click.Group):
        return command
    context = click.Context(command)
    names = command.list_commands(context)
    found = {name: command.get_command(context, name) for name in names}
    return click.Group(
        command.name,
        {name: _loaded(child) for name, child in found.items() if child is not None},
        params=command.params,
        help=command.help,
        short_help=command.short_help,
    )


def _write_completions(tree: Path) -> None:
    for shell, place in COMPLETIONS.items():
        complete = get_completion_class(shell)
        assert complete is not None, shell
        path = tree / place
        path.parent.mkdir(parents=True)
        path.write_text(complete(root, {}, "moactl", "_MOACTL_COMPLETE").source())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
