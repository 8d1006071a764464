"""The private environment: this very moactl, its libraries and its commands, copied to a place
of their own, `/opt/moa/versions/<version>/{bin,lib}`, beside other versions.

Complete and precompiled: it needs no network, no compiler and no pip, and nothing is written
into it afterwards. It may be moved: its commands find their libraries from where they are. It
is laid out as a venv, so that `sys.executable` starts further processes in it. `FILES` lists
every file with its SHA-256, as sha256sum writes it; it is written last when the tree is built,
and removed last when it is taken away.
"""

from __future__ import annotations

import compileall
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from installer.plan import file_list
from installer.plan.file_list import LIST
from installer.plan.manifest import Entry, Kind, naming, sync_directory, sync_file_system
from installer.plan.site import Site, seen
from installer.plan.steps import Step, Verdict, undo

DISTRIBUTION = "moa-interceptor"
PACKAGES = ("interceptor", "proxy", "installer")
VERSIONS = "/opt/moa/versions"
CURRENT = "/opt/moa/current"
STAGING = ".new-"
"""How the name of a version begins that is not whole yet."""

_LIBRARY = "lib/python{}.{}/site-packages".format(*sys.version_info[:2])
_SYSTEM_PYTHON = "/usr/bin/python3"
_TOLD = 8
# Sources of compiled modules, which nothing reads at run time.
_NOT_NEEDED = (".c", ".cpp", ".h", ".pxd", ".pyx", ".pyi")
_NOT_COPIED = {"INSTALLER", "REQUESTED", "direct_url.json"}

_LAUNCHER = """\
#!{python} -ISB
import os
import sys

here = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(here), "{library}"))
sys.executable = os.path.join(here, "python3")
from {module} import {attribute}

sys.exit({attribute}())
"""


@dataclass(frozen=True, slots=True)
class Source:
    """What an environment is made of; paths of `files` are relative to its `lib`."""

    version: str
    python: str
    files: tuple[tuple[Path, PurePosixPath], ...]
    commands: tuple[tuple[str, str, str], ...]
    """Name, module and function of each."""


def of_this_process() -> Source:
    """The environment that runs now: an installed package, or a checkout with its .venv."""
    own = distribution(DISTRIBUTION)
    files = dict(_own_files(own))
    for found in _requirements(own):
        files.update(_files(found))
    commands = tuple(
        (entry.name, entry.module, entry.attr)
        for entry in sorted(own.entry_points, key=lambda e: e.name)
        if entry.group == "console_scripts"
    )
    pairs = tuple((source, place) for place, source in sorted(files.items()))
    return Source(own.version, _python(), pairs, commands)


def step(source: Source) -> Step:
    """The step that puts this version beside the others."""
    path = f"{VERSIONS}/{source.version}"
    entry = Entry(f"environment {source.version}", Kind.TREE, path, mode=0o755)
    return Step(
        entry.step,
        f"put the private environment of version {source.version} into {path}",
        partial(_check, path, source),
        partial(_apply, entry, source),
        partial(undo, entry),
    )


def build(source: Source, directory: Path) -> None:
    """Write the whole tree into a directory that does not exist yet."""
    library, commands = directory / _LIBRARY, directory / "bin"
    for origin, place in source.files:
        target = library / place
        target.parent.mkdir(parents=True, exist_ok=True)
        # With its time, by which the compiled form beside it is known to be right.
        shutil.copy2(origin, target)
        target.chmod(0o755 if origin.suffix == ".so" else 0o644)
    compileall.compile_dir(library, quiet=2, workers=1, stripdir=str(directory))
    home = os.path.dirname(source.python)
    (directory / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    commands.mkdir(parents=True)
    (commands / "python3").symlink_to(source.python)
    for name, module, attribute in source.commands:
        launcher = commands / name
        launcher.write_text(
            _LAUNCHER.format(
                python=source.python, library=_LIBRARY, module=module, attribute=attribute
            )
        )
        launcher.chmod(0o755)
    file_list.write(directory)


def is_version(directory: Path) -> bool:
    """Whether it is, or was, a version of ours that an install put in its place."""
    return (directory / LIST).is_file() and not directory.name.startswith(STAGING)


def remove(path: str, site: Site) -> None:
    """Take a tree away; what is not as it was written stays, unless everything is to go."""
    directory = site.at(path)
    site.remove_all(_staging(path))
    if not directory.is_dir():
        return
    if (directory / LIST).is_file() and not file_list.listed(directory):
        site.remove_all(path)  # cut off by a power cut, as much else of it
        site.removed.append(path)
        return
    stay = set() if site.purge else set(file_list.changed(directory)) - file_list.lost(directory)
    for file in file_list.walk(directory):
        name = str(file.relative_to(directory))
        if name not in stay and name != LIST:
            os.unlink(file)
    with suppress(FileNotFoundError):
        os.unlink(directory / LIST)
    for parent, _, _ in os.walk(directory, topdown=False):
        with suppress(OSError):
            os.rmdir(parent)
    if directory.exists():
        names = _some(str(f.relative_to(directory)) for f in file_list.walk(directory))
        site.left.append(f"{path}: {names} is not as we wrote it")
    else:
        site.removed.append(path)


def _check(path: str, source: Source, site: Site) -> Verdict:
    directory = site.at(path)
    if file_list.lost(directory):
        # From itself it would be made again without what it has lost.
        return Verdict.KEEP if _is_made_of(directory, source) else Verdict.TODO
    return Verdict.KEEP if any(file_list.changed(directory)) else Verdict.DONE


def _is_made_of(directory: Path, source: Source) -> bool:
    own = directory.resolve()
    return any(origin.resolve().is_relative_to(own) for origin, _ in source.files)


def _apply(entry: Entry, source: Source, site: Site) -> None:
    directory = site.at(entry.path)
    if _check(entry.path, source, site) is Verdict.KEEP:
        if missing := file_list.lost(directory):
            site.notes.append(
                f"{entry.path}: damaged ({_some(missing)}), and this moactl runs from it: run "
                "install with the moactl of the package or the wheel"
            )
        else:
            names = _some(file_list.changed(directory))
            site.notes.append(f"{entry.path}: kept, with what was changed by hand: {names}")
        return
    site.announce(entry)
    staging = _staging(entry.path)
    site.remove_all(staging)
    with naming(site.at(staging)):
        build(source, site.at(staging))
        _keep_changed(directory, site.at(staging))
    sync_file_system(site.at(staging))
    if seen(directory) is not None:  # an undo that was cut short, or damaged
        site.remove_all(entry.path)
    os.rename(site.at(staging), directory)
    sync_directory(directory.parent)


def _keep_changed(damaged: Path, anew: Path) -> None:
    """What a user has changed in a tree that is made again stays changed."""
    if not file_list.listed(damaged):
        return
    for name in set(file_list.changed(damaged)) - file_list.lost(damaged):
        (anew / name).parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            os.unlink(anew / name)
        shutil.copy2(damaged / name, anew / name, follow_symlinks=False)


def _staging(path: str) -> str:
    directory, name = os.path.split(path)
    return f"{directory}/{STAGING}{name}"


def _some(names: Iterable[str]) -> str:
    """The first of many names, and how many there are."""
    ordered = sorted(names)
    more = [f"and {len(ordered) - _TOLD} more"] if len(ordered) > _TOLD else []
    return ", ".join([*ordered[:_TOLD], *more])


def _requirements(own: Distribution) -> Iterable[Distribution]:
    """What is installed of everything that a distribution asks for, directly or not."""
    found: dict[str, Distribution] = {}
    queue = list(own.requires or ())
    while queue:
        requirement = queue.pop()
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        # What is asked for in other circumstances only is not there, or does no harm.
        if "extra ==" in requirement or name is None or name[0].lower() in found:
            continue
        with suppress(PackageNotFoundError):
            found[name[0].lower()] = distribution(name[0])
            queue += found[name[0].lower()].requires or ()
    return found.values()


def _files(found: Distribution) -> Iterator[tuple[PurePosixPath, Path]]:
    for file in found.files or ():
        source = Path(str(file.locate()))
        if ".." in file.parts or file.name in _NOT_COPIED or file.suffix in _NOT_NEEDED:
            continue
        if source.is_file():
            yield PurePosixPath(file), source


def _own_files(own: Distribution) -> Iterator[tuple[PurePosixPath, Path]]:
    """Our packages from where they are imported, as a checkout's are not listed anywhere."""
    yield from ((p, s) for p, s in _files(own) if p.parts[0].endswith(".dist-info"))
    for name in PACKAGES:
        package = importlib.import_module(name)
        top = Path(str(package.__file__)).parent
        for path in file_list.walk(top):
            if path.suffix not in _NOT_NEEDED and "__pycache__" not in path.parts:
                yield PurePosixPath(name, path.relative_to(top)), path


def _python() -> str:
    """The system's interpreter when it runs the same compiled modules, else the one at work."""
    ours = "{}.{}".format(*sys.version_info[:2])
    print_version = 'import sys; print("{}.{}".format(*sys.version_info[:2]))'
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [_SYSTEM_PYTHON, "-IS", "-c", print_version],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        if done.stdout.strip() == ours:
            return _SYSTEM_PYTHON
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))
