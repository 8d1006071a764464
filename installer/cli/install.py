"""`moactl install` and `moactl install status`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click

from installer.cli import install_notes
from installer.cli.failure import Failure, note
from installer.cli.output import Block, Facts, Table, emit
from installer.cli.session import Session, pass_session, shared_options
from installer.config import DEFAULT_PATH, Config, ConfigError, parse
from installer.doctor import check as doctor_check
from installer.doctor import probes as doctor_probes
from installer.doctor.check import Severity, Status
from installer.doctor.checks import ALL_CHECKS
from installer.plan import environment, file_list, node_plan, processes, recognise, run, units
from installer.plan.manifest import ManifestDamaged, ManifestError
from installer.plan.node_plan import Wanted
from installer.plan.processes import ProcessError
from installer.plan.run import Outcome
from installer.plan.site import InstallBusy, Site
from installer.plan.steps import Step, Verdict

_SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")


@dataclass(frozen=True, slots=True)
class _Asked:
    """The options of one install."""

    registry: str | None
    cgroups: tuple[str, ...]
    sysroot: Path
    start: bool
    force: bool


@click.group(invoke_without_command=True)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--registry", metavar="URL", help="A redis:// URL, or the path of a TOML file.")
@click.option(
    "--cgroup",
    "cgroups",
    metavar="PATH",
    multiple=True,
    help="Take this cgroup into the mesh; may be repeated.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--no-start", is_flag=True, help="Only write files.")
@click.option("--force", is_flag=True, help="Even if a required check fails.")
@click.option(
    "--sysroot",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True),
    default=Path("/"),
    help="Write below DIR, as into an image; nothing is started.",
)
@shared_options
@click.pass_context
def install(
    ctx: click.Context, dry_run: bool, registry: str | None,
    cgroups: tuple[str, ...], yes: bool, no_start: bool, force: bool, sysroot: Path,
) -> None:  # fmt: skip
    """Put it on this node, or bring it to this version.

    Shows its steps and asks before it does them. May be repeated, also after it was killed.
    With -c the configuration is that file; otherwise --registry and --cgroup say what is to be
    in it. Files that you have changed stay as they are.
    """
    if ctx.invoked_subcommand is not None:
        return
    # Made here by a decorator it would hide the root's from `install status`.
    session = ctx.find_root().ensure_object(Session)
    if session.config_path and (registry or cgroups):
        raise click.UsageError("-c FILE is the whole configuration: without --registry, --cgroup")
    live = sysroot.resolve() == Path("/")
    asked = _Asked(registry, cgroups, sysroot.resolve(), live and not no_start, force)
    with told():
        site = Site(asked.sysroot)
        run.load(site)
        wanted = _wanted(session, asked, site)
        if dry_run:
            _tell(session, site, wanted, run.preview(node_plan.steps(wanted, site), site), True)
            return
        if live and os.geteuid() != 0:
            raise PermissionError(
                "install needs root: it writes below /etc, /opt and /var, and to the kernel"
            )
        _check_node(session, wanted, asked)
        if not yes:
            _ask(node_plan.steps(wanted, site), site)
        with site.locked():
            run.load(site)  # it may have changed while we asked
            steps = node_plan.steps(wanted, site)
            places = node_plan.places(wanted.config)
            outcomes = run.install(steps, site, wanted.source.version, places)
        if live:
            site.notes += install_notes.of(wanted.config)
        _tell(session, site, wanted, outcomes, False)


@install.command()
@click.option(
    "--sysroot",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True),
    default=Path("/"),
    help="Look below DIR.",
)
@shared_options
@pass_session
def status(session: Session, sysroot: Path) -> None:
    """Show what is installed, and what of it is not as it was written."""
    site, damage = Site(sysroot.resolve()), None
    with told("install status"):
        try:
            there = run.load(site)
        except ManifestDamaged as error:
            there, damage = True, str(error)
            recognise.recover(site)
    versions = site.at(environment.VERSIONS)
    found = sorted(versions.iterdir()) if versions.is_dir() else []
    names = [path.name for path in found if not path.name.startswith(environment.STAGING)]
    current = site.at(environment.CURRENT)
    changed = run.changed(site) + [
        f"{environment.VERSIONS}/{name}/{file}"
        for name in names
        for file in file_list.changed(versions / name)
    ]
    data = {
        "installed": there,
        "complete": site.manifest.complete,
        "damaged": damage,
        "version": site.manifest.version or None,
        "current": os.readlink(current).rpartition("/")[2] if current.is_symlink() else None,
        "versions": names,
        "paths": [path for path in site.manifest.entries if os.path.lexists(site.at(path))]
        if damage
        else list(site.manifest.entries),
        "changed": changed,
    }
    emit(session, "install.status/1", data, *_status_blocks(data))


def _status_blocks(data: Mapping[str, object]) -> list[Block]:
    if not data["installed"]:
        return ["nothing is installed (moactl install)"]
    shown = ("version", "current", "versions", "paths", "changed")
    state = "complete" if data["complete"] else "half done: moactl install, or moactl uninstall"
    if data["damaged"]:
        state = f"{data['damaged']}, by what is recognisably ours; then moactl install"
    return [Facts([("state", state), *((key, data[key]) for key in shown)])]


def _wanted(session: Session, asked: _Asked, site: Site) -> Wanted:
    source = environment.of_this_process()
    systemd = processes.has_systemd() if site.is_live else _has_systemd(site)
    unit = units.node_unit([name for name, _, _ in source.commands])
    text = _text(session, asked, site, units.cgroup(unit) if systemd else "")
    config = _parsed(text, session.config_path or DEFAULT_PATH)
    wanted = Wanted(source, text, config, systemd, asked.start)
    kept = run.preview(node_plan.steps(wanted, site), site)
    if any(o.step.id == "configuration" and o.verdict is Verdict.KEEP for o in kept):
        # What counts is the user's own file, whatever we would have written.
        own = site.at(DEFAULT_PATH).read_bytes()
        return replace(wanted, config=_parsed(own, DEFAULT_PATH))
    return wanted


def _has_systemd(site: Site) -> bool:
    return any(site.at(path).exists() for path in _SYSTEMD)


def _text(session: Session, asked: _Asked, site: Site, unit_cgroup: str) -> bytes:
    """The configuration that is wanted; what is not asked for stays as it is.

    Under systemd an agent stays in the cgroup of its unit, and the slice is what units join.
    """
    if session.config_path is not None:
        try:
            return session.config_path.read_bytes()
        except OSError as error:
            what = f"{session.config_path}: cannot be read: {error.strerror}"
            raise Failure(what, "moactl config example") from error
    existing = site.at(DEFAULT_PATH)
    if not existing.exists():
        cgroups = (*((units.SLICE_CGROUP,) if unit_cgroup else ()), *asked.cgroups)
        return node_plan.config_text(asked.registry, cgroups, unit_cgroup).encode()
    present = existing.read_bytes()
    if not (asked.registry or asked.cgroups):
        return present
    config = _parsed(present, DEFAULT_PATH)
    registry, cgroups = node_plan.registry_of(config), config.scope.cgroups
    own = config.agent.cgroup if "cgroup" in config.agent.model_fields_set else ""
    if node_plan.config_text(registry, cgroups, own).encode() != present:
        raise Failure(
            f"{existing}: says more than --registry and --cgroup can, and would lose it",
            "edit it, then install without them; or give a whole one with -c FILE",
        )
    cgroups = (*cgroups, *(c for c in asked.cgroups if c not in cgroups))
    merged = node_plan.config_text(asked.registry or registry, cgroups, own)
    return merged.encode()


def _parsed(text: bytes, path: Path) -> Config:
    try:
        return parse(text, path)
    except ConfigError as error:
        raise Failure(str(error), "moactl config example") from error


def _check_node(session: Session, wanted: Wanted, asked: _Asked) -> None:
    """Refuse where a required check fails: an install that cannot work is no help."""
    if not wanted.start or asked.force:
        return
    probes = doctor_probes.of_this_machine(
        wanted.config, None, (), session.root or wanted.config.bpf.root
    )
    checks = [c for c in ALL_CHECKS if c.before_install and c.severity is Severity.REQUIRED]
    failed = [f for f in doctor_check.run(checks, probes) if f.result.status is Status.FAIL]
    if failed:
        lines = "\n".join(f"  {f.check.id}: {f.result.seen}; {f.result.todo}" for f in failed)
        raise Failure(
            f"this node is not ready:\n{lines}", "moactl doctor --pre, or install with --force"
        )


def _ask(steps: tuple[Step, ...], site: Site) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("stdin is not a terminal to ask on; say --yes")
    for outcome in run.preview(steps, site):
        click.echo(f"{outcome.verdict:<7}{outcome.step.describe}", err=True)
    click.confirm("Go on?", abort=True, err=True)


def _tell(
    session: Session, site: Site, wanted: Wanted, outcomes: list[Outcome], dry_run: bool
) -> None:
    data = {
        "version": wanted.source.version,
        "dry_run": dry_run,
        "sysroot": str(site.sysroot),
        "steps": [
            {"id": o.step.id, "describe": o.step.describe, "verdict": o.verdict} for o in outcomes
        ],
        "notes": site.notes,
    }
    rows = [(o.verdict, o.step.describe) for o in outcomes]
    changes = sum(o.verdict in (Verdict.TODO, Verdict.CHANGE) for o in outcomes)
    summary = f"{len(outcomes)} steps: {changes} {'to be done' if dry_run else 'done now'}"
    emit(session, "install/1", data, Table(("WAS", "STEP"), rows), summary)
    if not session.as_json:
        for text in site.notes:
            note(text)


@contextmanager
def told(command: str = "install") -> Iterator[None]:
    """Turn what can go wrong with a plan into a `Failure` of this command."""
    again = f"moactl {command} again"
    if command == "install":
        again += ", or moactl uninstall"
    try:
        yield
    except ManifestDamaged as error:
        raise Failure(str(error), "moactl uninstall, then moactl install") from error
    except ManifestError as error:
        raise Failure(str(error), f"{environment.CURRENT}/bin/moactl {command}") from error
    except InstallBusy as error:
        raise Failure(str(error), "moactl install status") from error
    except ProcessError as error:
        raise Failure(str(error), f"moactl doctor; then {again}") from error
    except PermissionError:
        raise
    except OSError as error:
        raise Failure(f"{command}: {error}", f"when that is mended: {again}") from error
