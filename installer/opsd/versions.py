"""Environments that agents are started from: which there are, whether one can take over, and
which are the current and the previous one (`<agent.state_dir>/opsd.json`)."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from installer.link import environment

VERSIONS = Path("/opt/moa/versions")
CURRENT = Path("/opt/moa/current")
RECORD = "opsd.json"

_AGENT = "bin/moa-agent"
_MAX_OUTPUT = 64 * 1024

log = structlog.get_logger("opsd")


class VersionError(Exception):
    """There is no such version, or it cannot take over; the text says why."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a version says of itself."""

    version: str
    handover: tuple[int, int]
    abi: int

    @classmethod
    def of(cls, word: Mapping[str, Any]) -> Facts:
        """From `hello`, or from the check; raises VersionError."""
        try:
            low, high = word["handover"]
            return cls(str(word["version"]), (int(low), int(high)), int(word["abi"]))
        except (KeyError, TypeError, ValueError) as error:
            raise VersionError(f"it does not say its versions: {error!r}") from None


@dataclass(frozen=True, slots=True)
class Record:
    """Environments by their paths; `upgrade` is under way, or None."""

    current: str | None = None
    previous: str | None = None
    upgrade: dict[str, Any] | None = None


_unwritten: dict[Path, Record] = {}
"""By state directory: what was to be remembered and could not be written."""


def own_environment() -> Path:
    """Where this very supervisor runs from."""
    return environment()


def has_agent(path: Path) -> bool:
    """Whether an agent can be started from this environment."""
    return os.access(path / _AGENT, os.X_OK)


def command(path: Path) -> str:
    """Of the agent in an environment."""
    return str(path / _AGENT)


def resolve(to: str) -> Path:
    """The environment of a version's number, of a path to it or to its moa-agent.

    Raises VersionError.
    """
    if "/" not in to:
        path = VERSIONS / to
        if not has_agent(path):
            there = ", ".join(known()) or "none"
            raise VersionError(f"no version {to} below {VERSIONS}; there are: {there}")
        return path
    path = Path(to)
    if not path.is_absolute():
        raise VersionError(f"{to}: expected an absolute path")
    if path.name == "moa-agent" and path.is_file():
        path = path.parent.parent
    path = Path(os.path.realpath(path))
    if not has_agent(path):
        raise VersionError(f"{to}: expected an environment with {_AGENT}")
    return path


def known() -> list[str]:
    """Versions that are installed beside each other."""
    with suppress(OSError):
        return sorted(
            name for name in os.listdir(VERSIONS) if name[0] != "." and has_agent(VERSIONS / name)
        )
    return []


async def check(path: Path, config: Path | None, old: Mapping[str, Any], within_s: float) -> Facts:
    """Ask a version whether it could take over here; raises VersionError. Changes nothing.

    `old` is the hello of the agent that serves.
    """
    argv = [command(path), "--check", *([str(config)] if config else [])]
    facts = Facts.of(await _json_of(argv, within_s))
    mine = Facts.of(old)
    (low, high), (old_low, old_high) = facts.handover, mine.handover
    if low > old_high or high < old_low:
        raise VersionError(
            f"version {facts.version} hands over by protocol {low} to {high}, the agent that "
            f"serves ({mine.version}) by {old_low} to {old_high}"
        )
    if facts.abi != mine.abi:
        raise VersionError(
            f"version {facts.version} has layout {facts.abi} of the kernel's maps, the agent that "
            f"serves ({mine.version}) has {mine.abi}: they cannot serve side by side"
        )
    return facts


async def _json_of(argv: Sequence[str], within_s: float) -> Mapping[str, Any]:
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=pipe)
    except OSError as error:
        raise VersionError(f"{argv[0]}: {error.strerror}") from None
    try:
        async with asyncio.timeout(within_s):
            out, err = await process.communicate()
    except TimeoutError:
        raise VersionError(f"{argv[0]} --check: no answer within {within_s:g} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        words = err.decode(errors="replace").strip() or f"exit code {process.returncode}"
        if "Traceback" in words:
            words = words.splitlines()[-1]
        raise VersionError(f"its own check failed: {words[-1000:]}")
    with suppress(ValueError):
        document = json.loads(out[:_MAX_OUTPUT])
        if isinstance(document, dict):
            return document
    raise VersionError(f"{argv[0]} --check: expected a JSON object, saw {out[:80]!r}")


# What is remembered


def load(state_dir: Path) -> Record:
    """What was remembered; a file that cannot be read is as none."""
    if state_dir in _unwritten:
        return _unwritten[state_dir]
    try:
        document = json.loads((state_dir / RECORD).read_text())
        return Record(document.get("current"), document.get("previous"), document.get("upgrade"))
    except FileNotFoundError:
        return Record()
    except (OSError, ValueError, AttributeError) as error:
        log.warning("record not read", path=str(state_dir / RECORD), error=str(error))
        return Record()


def to_start(state_dir: Path) -> Path:
    """The environment last confirmed, while it is there, or our own."""
    recorded = load(state_dir).current
    if recorded is not None and has_agent(Path(recorded)):
        return Path(recorded)
    return own_environment()


def save(state_dir: Path, record: Record) -> None:
    """Replace it as a whole. What a full disk does not take counts in this process all the
    same: after a crash it is the new version that is started again."""
    _unwritten[state_dir] = record
    path = state_dir / RECORD
    staging = path.with_suffix(".new")
    try:
        state_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        with staging.open("w") as file:
            json.dump(asdict(record), file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(staging, path)
        del _unwritten[state_dir]
    except OSError as error:
        log.warning("record not written", path=str(path), error=error.strerror)


def forget_upgrade(state_dir: Path) -> None:
    """Of an upgrade that changed nothing."""
    record = load(state_dir)
    if record.upgrade is not None:
        save(state_dir, replace(record, upgrade=None))


def confirm(state_dir: Path, path: Path) -> None:
    """This environment's agent serves for good: it is the current one, the one before is the
    previous one. The installer's link follows when both are of its versions."""
    record = load(state_dir)
    if record.current != str(path):
        record = replace(record, current=str(path), previous=record.current)
    save(state_dir, replace(record, upgrade=None))
    _move_link(path)


def _move_link(path: Path) -> None:
    if path.parent != VERSIONS or not CURRENT.is_symlink():
        return
    target = f"{VERSIONS.name}/{path.name}"
    now = os.readlink(CURRENT)
    # One that an operator has made is theirs.
    if now == target or os.path.dirname(now) != VERSIONS.name:
        return
    staging = CURRENT.with_name(".current.new")
    try:
        with suppress(FileNotFoundError):
            os.unlink(staging)
        os.symlink(target, staging)
        os.rename(staging, CURRENT)
    except OSError as error:
        log.warning("link not moved", link=str(CURRENT), to=target, error=error.strerror)
