"""`moactl tap`: the kernel's decisions as they happen."""

from __future__ import annotations

import contextlib
import select
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from types import FrameType

import click

from installer.cli.output import cell, emit_line
from installer.cli.session import Session, pass_session, shared_options
from interceptor import cgroup
from interceptor.abi import Reason
from interceptor.bpffs import locked
from interceptor.events import Decision, EventStream
from interceptor.node import Node

_WAKE_S = 0.2


@dataclass(slots=True)
class _Printer:
    as_json: bool
    wanted: int | None
    printed: int = 0
    stopped: bool = False
    cgroups: dict[int, str | None] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.stopped or (self.wanted is not None and self.printed >= self.wanted)

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        """A signal asked for the end; the loop sees it when it wakes next."""
        self.stopped = True

    def print(self, decision: Decision) -> None:
        if self.done:
            return
        self.printed += 1
        at_unix_s = time.time() - time.monotonic() + decision.at_ns / 1e9
        reason = decision.reason.name.removeprefix("CONNECT_").lower()
        intercepted = decision.reason in (Reason.CONNECT_REDIRECTED, Reason.CONNECT_PEER)
        if self.as_json:
            data = {
                "at_unix_s": round(at_unix_s, 6),
                "reason": reason,
                "intercepted": intercepted,
                "pid": decision.pid,
                "process": decision.comm,
                "cgroup": self._cgroup(decision.cgroup_id),
                "before": decision.before,
                "after": decision.after if intercepted else None,
            }
            emit_line("tap/1", data)
            return
        at = datetime.fromtimestamp(at_unix_s).strftime("%H:%M:%S.%f")[:-3]
        way = f"{decision.before} -> {decision.after}" if intercepted else decision.before
        click.echo(f"{at}  {reason:<16}  {cell(decision.comm)}[{decision.pid}]  {way}")

    def _cgroup(self, number: int) -> str | None:
        if number not in self.cgroups:
            found = cgroup.find_by_id(number)
            self.cgroups[number] = found.name if found else None
        return self.cgroups[number]


@click.command()
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many decisions.")
@shared_options
@pass_session
def tap(session: Session, count: int | None) -> None:
    """Show the kernel's decisions as they happen.

    One line for each connect() to a destination of the mesh: who dialled what, and where it
    was sent. Ends with Ctrl-C. One reader at a time sees all decisions.
    """
    printer = _Printer(session.as_json, count)
    # No KeyboardInterrupt: one that comes within libbpf's callback into us would be lost.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, printer.stop)
    with _stream(session.node(), printer) as stream:
        while not printer.done:
            ready, _, _ = select.select([stream], [], [], _WAKE_S)
            if ready:
                stream.consume()
                sys.stdout.flush()


@contextlib.contextmanager
def _stream(node: Node, printer: _Printer) -> Iterator[EventStream]:
    with node.maps() as maps:
        with locked(node.tree):
            stream = EventStream(maps, printer.print)
        try:
            yield stream
        finally:
            with locked(node.tree):
                stream.close()
