"""Shows an upgrade as it goes on: a bar on a terminal, lines of ASCII anywhere else, lines of
JSON when asked; and a summary."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import click

from installer.cli.output import Facts, cell, duration, emit_line, show
from installer.cli.session import Session

Line = dict[str, Any]

_PLAIN_S = 5.0
"""So much of a stage passes in silence where nobody can see a bar."""


def follow(session: Session, schema: str, lines: Iterable[Line]) -> Line:
    """Show every line; the last one."""
    if session.as_json:
        return _as_json(schema, lines)
    last = _on_terminal(lines) if sys.stdout.isatty() else _plain(lines)
    show(_summary(last))
    return last


def _as_json(schema: str, lines: Iterable[Line]) -> Line:
    last: Line = {}
    for last in lines:
        emit_line(schema, last)
    return last


def _plain(lines: Iterable[Line]) -> Line:
    last: Line = {}
    told_s = 0.0
    for last in lines:
        if last["event"] == "progress":
            if last["elapsed_s"] - told_s < _PLAIN_S:
                continue
            click.echo(f"{last['elapsed_s']:7.1f} s  {last['stage']:<9}  {_progress(last)}")
        elif last["text"] and not last["done"]:
            click.echo(f"{last['elapsed_s']:7.1f} s  {last['stage']:<9}  {cell(last['text'])}")
        told_s = last["elapsed_s"]
    return last


def _on_terminal(lines: Iterable[Line]) -> Line:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.text import Text

    console = Console(highlight=False)
    last: Line = {}
    columns = (TextColumn("{task.description:<9}"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", text="", total=None)
        for last in lines:
            if last["event"] != "progress" and last["text"] and not last["done"]:
                style = "yellow" if last["event"] == "warning" else ""
                stamp = f"{last['elapsed_s']:7.1f} s  {last['stage']:<9}  "
                console.print(Text(stamp + cell(last["text"]), style=style))
            total, done = _share(last)
            bar.update(
                task, description=last["stage"], total=total, completed=done, text=_progress(last)
            )
    return last


def _share(line: Line) -> tuple[float | None, float]:
    """What there is to do in this stage, and what of it is done."""
    if line["stage"] == "baking" and line["left_s"] is not None:
        served_s = line["baked_s"]
        return served_s + line["left_s"] or None, served_s
    if line["total"]:
        return line["total"], line["moved"]
    return None, 0


def _progress(line: Line) -> str:
    words = []
    if line["total"] is not None:
        words.append(f"{line['moved']}/{line['total']} connections")
    if line["in_flight"]:
        words.append(f"{line['in_flight']} requests in flight")
    if line["left_s"] is not None:
        words.append(f"{duration(line['left_s'])} left")
    return ", ".join(words)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.1f}"


def _summary(last: Line) -> Facts:
    before, after = last["before"] or {}, last["after"] or {}

    def both(name: str, unit: str = "") -> str | None:
        if before.get(name) is None and after.get(name) is None:
            return None
        old, new = (
            "-" if health.get(name) is None else f"{_number(health[name])}{unit}"
            for health in (before, after)
        )
        return f"{old} before, {new} after"

    ends = [last["from"], last["to"]]
    versions = " to ".join(f"{end['version']} (process {cell(end['pid'])})" for end in ends)
    stay = f", {last['stay']} stay until they end" if last["stay"] else ""
    return Facts(
        [
            ("outcome", last["outcome"]),
            ("from", versions),
            ("connections moved", f"{last['moved']}{stay}"),
            ("took", duration(last["elapsed_s"])),
            ("errors", both("errors")),
            ("requests", both("requests")),
            ("latency", both("latency_ms", " ms")),
            ("loop lag", both("loop_lag_ms", " ms")),
        ]
    )
