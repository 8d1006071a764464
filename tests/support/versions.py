"""Environments of earlier versions, made of the wheels in tests/wheels."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from configparser import ConfigParser
from pathlib import Path

from tests.support.lab import REPO

WHEELS = REPO / "tests/wheels"


def environment_of(version: str, directory: Path) -> Path:
    """An environment in `directory` that has this version and, of everything else, what this one
    has; its `bin` holds the version's commands."""
    wheel = WHEELS / f"moa_interceptor-{version}-py3-none-any.whl"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
    packages = next(directory.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(packages)
    # A path alone: the hook that makes this checkout importable is not followed there.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    entries = ConfigParser()
    entries.read(packages / f"moa_interceptor-{version}.dist-info" / "entry_points.txt")
    for name, target in entries["console_scripts"].items():
        module, _, function = target.partition(":")
        script = directory / "bin" / name
        script.write_text(
            f"#!{directory}/bin/python -I\nimport sys\nfrom {module} import {function}\n"
            f"sys.exit({function}())\n"
        )
        script.chmod(0o755)
    return directory
