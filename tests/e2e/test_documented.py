"""What the README tells people to type, typed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from interceptor.cgroup import Cgroup
from interceptor.node import DEFAULT_ROOT, Node
from tests.support.lab import REPO, Lab, LabNode

pytestmark = pytest.mark.e2e

README = (REPO / "README.md").read_text()
MESH_SLICE = Cgroup("/moa-mesh.slice")
DEFAULT_DIRECTORIES = (Path("/run/moa"), Path("/var/lib/moa"))


def commands(section: str) -> list[str]:
    """The shell lines of a section of the README, without their comments."""
    text = README.split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines()
    return [stripped for line in lines if (stripped := line.split("#", 1)[0].strip())]


@pytest.fixture
def node() -> Iterator[LabNode]:
    """A node of its own on which nothing of ours is installed, with a slice to join."""
    if DEFAULT_ROOT.exists():
        pytest.fail(f"{DEFAULT_ROOT} exists: this machine has an installation of its own")
    existing = [path for path in DEFAULT_DIRECTORIES if path.exists()]
    with Lab() as lab:
        MESH_SLICE.create()
        try:
            yield lab.add_node("readme")
            for process in lab.processes:
                process.stop()
            assert not Cgroup("/moa-agent").exists()
        finally:
            Node(DEFAULT_ROOT).uninstall()
            MESH_SLICE.remove()
            for path in set(DEFAULT_DIRECTORIES) - set(existing):
                shutil.rmtree(path, ignore_errors=True)


def test_the_commands_of_the_readme_work_in_their_order(node: LabNode) -> None:
    root = Cgroup("/")
    for command in commands("Use it on a node"):
        if command.startswith("make"):
            continue
        argv = [str(REPO / command.split()[0]), *command.split()[1:]]
        if command.endswith("agent run"):
            node.start("agent", *argv, cgroup=root).wait_line('"ready"')
            continue
        done = node.call(*argv, cgroup=root)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (REPO / "Makefile").read_text()
    documents = README + (REPO / "CONTRIBUTING.md").read_text()
    for target in set(re.findall(r"\bmake ([a-z][a-z0-9-]*)", documents)) - {"it", "sure"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("registry", ["static", "redis"])
def test_demo_shows_every_step(registry: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.demo", "--registry", registry],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^ *\d+  ", done.stdout, re.MULTILINE)) == 13, done.stdout
    assert "FAILED" not in done.stdout
