"""Small installations below a directory, and what is in a tree of files."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from installer.config import DEFAULT_PATH, parse
from installer.plan import node_plan, run
from installer.plan.environment import Source
from installer.plan.node_plan import Wanted
from installer.plan.site import Site, digest

VERSION = "7.8.9"


@contextmanager
def in_memory() -> Iterator[Path]:
    """A directory: thousands of flushed files take long on a disk that others use."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        yield Path(made)


def make_sysroot(directory: Path) -> Path:
    """What every system has of the directories that we write to."""
    for name in ("opt", "etc/systemd/system", "usr/local/bin", "var/lib"):
        (directory / name).mkdir(parents=True)
    return directory


def tiny_source(directory: Path, version: str = VERSION) -> Source:
    """An environment of one module and one command."""
    directory.mkdir(parents=True, exist_ok=True)
    module = directory / "hello.py"
    module.write_text(f"def main():\n    print('hello of {version}')\n")
    files = ((module, PurePosixPath("hello/__init__.py")),)
    return Source(version, "/usr/bin/python3", files, (("moactl", "hello", "main"),))


def wanted(source: Source, text: str = "") -> Wanted:
    """Files only, with systemd's units."""
    content = text.encode()
    return Wanted(source, content, parse(content, DEFAULT_PATH), True, False)


def install(sysroot: Path, asked: Wanted) -> Site:
    """As `moactl install` does it; the site, with its notes."""
    site = Site(sysroot)
    with site.locked():
        run.load(site)
        run.install(node_plan.steps(asked, site), site, asked.source.version)
    return site


def uninstall(sysroot: Path, *, purge: bool = False) -> Site:
    """As `moactl uninstall` does it."""
    site = Site(sysroot, purge=purge)
    run.uninstall(site)
    return site


def picture(top: Path) -> dict[str, tuple[object, ...]]:
    """Every path below a directory, with what can be told of it; not through links."""
    return {str(path.relative_to(top)): _facts(path) for path in top.rglob("*")}


def _facts(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    owner = (stat.filemode(status.st_mode), status.st_uid, status.st_gid)
    if path.is_symlink():
        return (*owner, str(path.readlink()))
    return (*owner, digest(path)) if path.is_file() else owner
