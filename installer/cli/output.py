"""Shows a result: JSON with a schema, or blocks of text.

On a terminal tables are drawn by rich; anywhere else they are plain ASCII columns. A word is
never left out for a colour. Text that came from elsewhere cannot move the cursor.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from installer.cli.session import Session

_STYLES = {
    "ok": "green", "on": "green", "attached": "green", "fresh": "green", "SYNCED": "green",
    "warn": "yellow", "shadow": "yellow", "STALE": "yellow", "DEGRADED": "yellow",
    "FAIL": "bold red", "lost": "bold red", "stale": "bold red",
    "skip": "dim", "off": "bold", "-": "dim",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Facts:
    """Labels and their values, one a line."""

    pairs: Sequence[tuple[str, object]]


@dataclass(frozen=True, slots=True)
class Table:
    """Columns with headings; `empty` is said instead when there are no rows."""

    headings: Sequence[str]
    rows: Sequence[Sequence[object]]
    empty: str = "none"
    title: str = ""


Block = Facts | Table | str


def emit(session: Session, schema: str, data: Mapping[str, Any], *blocks: Block) -> None:
    """Print the result once: `data` under its schema's name, or the blocks."""
    if session.as_json:
        click.echo(json.dumps({"schema": schema, **data}, indent=2))
    else:
        show(*blocks)


def emit_line(schema: str, data: Mapping[str, Any]) -> None:
    """Print one result of a stream as a line of JSON, at once."""
    click.echo(json.dumps({"schema": schema, **data}))


def show(*blocks: Block) -> None:
    """Print blocks of text."""
    draw = _draw_on_terminal if sys.stdout.isatty() else _draw_plain
    for block in blocks:
        draw(block)


def cell(value: object) -> str:
    """One value as text without control characters, off a terminal in ASCII; nothing is a
    dash."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value)) if value else "-"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))
    return text if text.isascii() or sys.stdout.isatty() else in_ascii(text)


def in_ascii(text: str) -> str:
    """A text with every other character as TOML and JSON write it: \\u00fc, \\U0001f600."""
    return "".join(
        c if c.isascii() else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}"
        for c in text
    )


def duration(seconds: float | None) -> str:
    """An age for people: 0.4 s, 12 s, 3 min, 5 h, 2 d."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def _draw_plain(block: Block) -> None:
    if isinstance(block, str):
        click.echo(in_ascii(block))
    elif isinstance(block, Facts):
        _echo_columns([[label, cell(value)] for label, value in block.pairs])
    else:
        if block.title:
            click.echo(in_ascii(block.title))
        if block.rows:
            rows = [[cell(value) for value in row] for row in block.rows]
            _echo_columns([list(block.headings), *rows])
        else:
            click.echo(in_ascii(block.empty))


def _echo_columns(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _draw_on_terminal(block: Block) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    def styled(value: object) -> Text:
        text = cell(value)
        return Text(text, style=_STYLES.get(text, ""))

    console = Console(highlight=False)
    if isinstance(block, str):
        click.echo(block)
    elif isinstance(block, Facts):
        grid = RichTable.grid(padding=(0, 2))
        for label, value in block.pairs:
            grid.add_row(Text(label, style="bold"), styled(value))
        console.print(grid)
    else:
        if block.title:
            console.print(Text(block.title, style="bold"))
        if not block.rows:
            console.print(Text(block.empty, style="dim"))
            return
        table = RichTable(*block.headings, box=box.SIMPLE_HEAD)
        for row in block.rows:
            table.add_row(*map(styled, row))
        console.print(table)
