"""`moactl uninstall`: takes everything of ours away, from the pins alone."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import click

from installer import agent_lock, bypass, node_state
from installer.cli.failure import Failure, note
from installer.cli.output import emit
from installer.cli.session import Session, pass_session, shared_options
from installer.client import SOCKET_NAME
from installer.config import Config
from interceptor.cgroup import Cgroup
from interceptor.errors import InterceptorError
from interceptor.node import Node


@dataclass(frozen=True, slots=True)
class _Running:
    """Agents of the node that is uninstalled, and the holder of the lock if it has other pins."""

    own: list[int]
    stranger: int | None


@dataclass(slots=True)
class _Report:
    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    agent_pids: list[int] = field(default_factory=list)


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@shared_options
@pass_session
def uninstall(session: Session, yes: bool) -> None:
    """Take everything out of the kernel.

    Removes what the agent wrote, too; the configuration file stays. Needs no agent and no valid
    configuration, and may be repeated. Services are not touched: their new connections go
    straight.
    """
    config = _config_or_defaults(session)
    node = Node(session.root or config.bpf.root)
    if not yes:
        _ask(node)
    running = _running_agents(node, config)
    report = _Report(agent_pids=running.own)
    removal = node.uninstall()
    report.removed += removal.removed
    report.left += removal.left
    if running.stranger:
        report.left.append(
            f"{config.agent.runtime_dir}, of the agent with other pins (process {running.stranger})"
        )
    elif not running.own:
        _remove_files(config, report)
        _name_empty_cgroup(config, report)
    _say_what_stays(session, report)
    emit(
        session, "uninstall/1",
        {"removed": report.removed, "left": report.left, "agent_pids": report.agent_pids},
        *_sentences(report, node),
    )  # fmt: skip


def _config_or_defaults(session: Session) -> Config:
    try:
        return session.config()
    except Failure as failure:
        note(f"{failure.message}\nnote: going on with the built-in defaults; see --root")
        return Config()


def _ask(node: Node) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("stdin is not a terminal to ask on; say --yes")
    question = f"Take interception at {node.tree.root} out of this node?"
    click.confirm(question, abort=True, err=True)


def _running_agents(node: Node, config: Config) -> _Running:
    """Whoever holds the agent's lock or is in its cgroup; asked before the pins go."""
    own: set[int] = set()
    with suppress(InterceptorError):  # half of an installation names nobody
        state = node_state.read(node)
        own.update(state.agent_pids if state else ())
    holder = agent_lock.holder(config.agent.runtime_dir)
    # With --root these may be the pins of another agent than the configured one.
    if holder and (holder in own or node.tree.root == config.bpf.root):
        own.add(holder)
        holder = None
    return _Running(sorted(own), holder)


def _remove_files(config: Config, report: _Report) -> None:
    """What an agent leaves when it is killed; directories only when nothing else is in them."""
    agent = config.agent
    names = (SOCKET_NAME, agent_lock.LOCK_NAME)
    for path in (*(agent.runtime_dir / name for name in names), config.last_known_path):
        _remove(path, report)
    for directory in (agent.runtime_dir, agent.state_dir):
        with suppress(FileNotFoundError):
            try:
                directory.rmdir()
            except OSError:
                report.left += [str(path) for path in sorted(directory.iterdir())]
            else:
                report.removed.append(str(directory))


def _remove(path: Path, report: _Report) -> None:
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return
    report.removed.append(str(path))


def _name_empty_cgroup(config: Config, report: _Report) -> None:
    """A cgroup that held a running agent at an earlier uninstall: who made it is forgotten."""
    with suppress(InterceptorError):  # no cgroup2 at all
        cgroup = Cgroup.of(config.agent.cgroup)
        if cgroup.exists() and not bypass.processes(cgroup):
            report.left.append(f"cgroup {cgroup.name}, empty: rmdir {cgroup.path} if it is ours")


def _say_what_stays(session: Session, report: _Report) -> None:
    file = session.config_file
    if file is not None and file.exists():
        report.left.append(str(file))


def _sentences(report: _Report, node: Node) -> list[str]:
    if report.removed:
        lines = [f"removed  {text}" for text in report.removed]
    else:
        lines = [f"nothing was installed at {node.tree.root}"]
    lines += [f"left     {text}" for text in report.left]
    if report.agent_pids:
        pids = " ".join(map(str, report.agent_pids))
        lines.append(
            f"running  the agent (process {pids}): it intercepts nothing any more; stop it with "
            f"`kill {pids}` or its unit, then run moactl uninstall again for its files"
        )
    return lines
