"""Where a plan is carried out: a root directory, its manifest, and what there is to tell.

Every change of a path goes through here: first the manifest, then one system call that takes
effect as a whole. Leftovers of a killed run have names of ours and are cleared by the next one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from installer.plan import manifest as manifests
from installer.plan.manifest import Before, Entry, Kind, Manifest, naming, sync_directory

STAGING = ".moa-new"
"""How the name of a file ends that is not yet in its place."""


class InstallBusy(Exception):
    """Another install or uninstall is at work on this root."""


@dataclass(slots=True)
class Site:
    """One root; `manifest` is what is known of it, and is saved with every change."""

    sysroot: Path = Path("/")
    manifest: Manifest = field(default_factory=Manifest)
    notes: list[str] = field(default_factory=list)
    purge: bool = False
    """Whether undoing takes away what a user has changed as well."""
    leaving: bool = False
    """Whether everything is being undone, which must not fail for want of space."""
    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def is_live(self) -> bool:
        """Whether this is the running system, in which something can be started."""
        return self.sysroot == Path("/")

    @property
    def manifest_path(self) -> Path:
        return self.at(manifests.PATH)

    def at(self, path: str | Path) -> Path:
        """Where an absolute path lies below the sysroot."""
        return self.sysroot / str(path).lstrip("/")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one who changes this root; raises InstallBusy."""
        directory = self.manifest_path.parent
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InstallBusy(
                    f"lock {directory}: another moactl install or uninstall is at work; try again"
                ) from None
            yield
        finally:
            os.close(fd)

    # The manifest

    def save(self) -> None:
        """Put the manifest on the disk. While everything is undone, go on where that fails: it
        says too much then, and to undo once more what is gone does no harm."""
        try:
            self.manifest.save(self.manifest_path)
        except OSError:
            if not self.leaving:
                raise

    def announce(self, entry: Entry) -> None:
        """Put an entry on the disk before its path is changed; keeps what was there first."""
        known = self.manifest.entries.get(entry.path)
        if known is None:
            entry = replace(entry, before=seen(self.at(entry.path)))
        else:
            previous = known.content if known.content != entry.content else known.previous
            entry = replace(entry, before=known.before, previous=previous)
        if entry != known:
            self.manifest.entries[entry.path] = entry
            self.save()

    def forget(self, path: str) -> None:
        """Strike an entry whose path is gone, or is left to the user."""
        if self.manifest.entries.pop(path, None) is not None:
            self.save()

    def is_ours(self, entry: Entry) -> bool:
        """Whether at an entry's path is what we wrote, now or before the present change."""
        now = seen(self.at(entry.path))
        return (
            now is not None
            and now.kind == entry.kind
            and now.content in (entry.content, entry.previous)
        )

    # Changes

    def write(self, path: str, content: bytes, mode: int) -> None:
        """Put a file in its place by rename."""
        target = self.at(path)
        staging = target.with_name(target.name + STAGING)
        with suppress(FileNotFoundError):
            os.unlink(staging)
        fd = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with naming(staging), os.fdopen(fd, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.rename(staging, target)
        sync_directory(target.parent)

    def link(self, path: str, target: str) -> None:
        """Put a symbolic link in its place by rename."""
        place = self.at(path)
        staging = place.with_name(place.name + STAGING)
        with suppress(FileNotFoundError):
            os.unlink(staging)
        os.symlink(target, staging)
        os.rename(staging, place)
        sync_directory(place.parent)

    def remove_file(self, path: str) -> None:
        """Remove a file or a link, and what a killed run left beside it."""
        target = self.at(path)
        for name in (target, target.with_name(target.name + STAGING)):
            with suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(name)

    def remove_directory(self, path: str) -> bool:
        """Remove a directory when it is empty; whether it is gone."""
        try:
            os.rmdir(self.at(path))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
        return True

    def remove_all(self, path: str) -> None:
        """Remove a directory with all that is in it."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.at(path))


def seen(path: Path) -> Before | None:
    """What is at a path now, links not followed; None when nothing is."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return Before(Kind.LINK, os.readlink(path), mode)
    if stat.S_ISDIR(status.st_mode):
        return Before(Kind.DIRECTORY, "", mode)
    if stat.S_ISREG(status.st_mode):
        return Before(Kind.FILE, digest(path), mode)
    return Before("other", "", mode)


def digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
