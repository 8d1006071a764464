"""`moactl uninstall`: takes everything of ours away, from the pins and the manifest alone."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import click

from installer import agent_lock, bypass, mesh_word, node_state, switches
from installer.cli.failure import Failure, note
from installer.cli.install import told
from installer.cli.output import emit
from installer.cli.session import Session, pass_session, shared_options
from installer.config import DEFAULT_PATH, Config
from installer.opsd import versions
from installer.plan import manifest, run
from installer.plan.manifest import Places
from installer.plan.site import Site
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
    dry_run: bool = False
    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    agent_pids: list[int] = field(default_factory=list)


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--purge", is_flag=True, help="Also files of ours that were changed since.")
@click.option(
    "--sysroot",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True),
    default=Path("/"),
    help="Only the files below DIR, as of an image.",
)
@shared_options
@pass_session
def uninstall(session: Session, dry_run: bool, yes: bool, purge: bool, sysroot: Path) -> None:
    """Take everything off this node.

    Out of the kernel first, then the processes that the installer started, then its files and
    what the agent wrote. Needs no agent and no valid configuration, and may be repeated, also
    after it was killed. Files that you have changed stay, unless --purge is given. Services are
    not touched: their new connections go straight.
    """  # fmt: skip
    site = Site(sysroot.resolve(), purge=purge)
    report = _Report(dry_run=dry_run)
    # With -c or --root this is about another agent than the installed one.
    is_whole = not site.is_live or session.config_path in (None, DEFAULT_PATH)
    with told("uninstall"):
        installed = is_whole and run.load_for_removal(site)
        config = _config_or_last(session, site.manifest.places if site.is_live else None)
        node = Node(session.root or config.bpf.root)
        if site.is_live and node.tree.root != config.bpf.root:
            is_whole = installed = False
        for text in site.notes if installed else ():
            note(text)
        if dry_run:
            _preview(node, site, installed, report)
        else:
            if not yes:
                _ask(node)
            if site.is_live:
                _leave_node(node, config, site, installed, report)
            if is_whole:
                run.uninstall(site)
                report.removed += site.removed
                report.left += site.left
    if not installed:
        _say_what_stays(session, report)
    emit(
        session, "uninstall/1",
        {"dry_run": dry_run, "removed": report.removed, "left": report.left,
         "agent_pids": report.agent_pids},
        *_sentences(report, node),
    )  # fmt: skip


def _preview(node: Node, site: Site, installed: bool, report: _Report) -> None:
    if site.is_live and node.tree.root.is_dir():
        report.removed.append(str(node.tree.root))
    if installed:
        removed, left = run.would_remove(site)
        report.removed += removed
        report.left += left


def _leave_node(node: Node, config: Config, site: Site, installed: bool, report: _Report) -> None:
    """Switched off, so that connections go straight, before anything ends."""
    if node.tree.root == config.bpf.root:
        for name in mesh_word.NAMES:  # first: nobody shall bring back what is taken away
            _remove(config.agent.state_dir / name, report)
    if installed:
        if (node.tree.maps / "cfg").exists():
            node.switch(on=False)
        for own in run.stop_processes(site, config.agent.drain_timeout_s):
            report.removed.append(f"process {own.pid} ({own.command})")
    running = _running_agents(node, config)
    removal = node.uninstall()
    report.removed += removal.removed
    report.left += removal.left
    report.agent_pids = running.own
    if running.stranger:
        report.left.append(
            f"{config.agent.runtime_dir}, of the agent with other pins (process {running.stranger})"
        )
    elif not running.own:
        _remove_files(config, report)
        _name_empty_cgroup(config, report)


def _config_or_last(session: Session, places: Places | None) -> Config:
    """The configuration; where it is gone or cannot be read, the directories of the last
    install."""
    known = "the directories of the last install" if places else "the built-in defaults"
    try:
        config = session.config()
        if places is None or session.config_file is not None:
            return config
        note(f"{DEFAULT_PATH}: is not there; going on with {known}")
    except Failure as failure:
        note(f"{failure.message}\nnote: going on with {known}; see --root")
    if places is None:
        return Config()
    agent = {
        "runtime_dir": places.runtime_dir,
        "state_dir": places.state_dir,
        "cgroup": places.agent_cgroup,
    }
    return Config.model_validate({"agent": agent, "bpf": {"root": places.pins}})


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
    names = (*switches.NAMES, versions.RECORD)
    kept = (config.last_known_path, *(agent.state_dir / name for name in names))
    for path in (*_runtime_files(agent.runtime_dir), *kept):
        _remove(path, report)
    for directory in (agent.runtime_dir, agent.state_dir):
        with suppress(FileNotFoundError):
            try:
                directory.rmdir()
            except OSError:
                others = set(directory.iterdir()) - {manifest.PATH.parent}
                report.left += sorted(map(str, others))
            else:
                report.removed.append(str(directory))


def _runtime_files(directory: Path) -> list[Path]:
    """Sockets and locks of the agents and of their supervisor."""
    paths = sorted(directory.iterdir()) if directory.is_dir() else []
    return [p for p in paths if p.suffix == ".lock" or p.suffix == ".sock" or p.is_socket()]


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
        verb = "would remove" if report.dry_run else "removed"
        lines = [f"{verb}  {text}" for text in report.removed]
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
