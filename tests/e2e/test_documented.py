"""What the README tells people to type, typed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.config import DEFAULT_PATH
from interceptor.cgroup import Cgroup
from interceptor.node import DEFAULT_ROOT, Node
from tests.support.lab import REPO, Lab, LabNode

pytestmark = pytest.mark.e2e

README = (REPO / "README.md").read_text()
MESH_SLICE = Cgroup("/moa-mesh.slice")
DEFAULT_DIRECTORIES = (Path("/run/moa"), Path("/var/lib/moa"))


def blocks(section: str, language: str) -> list[str]:
    """The blocks of one language in a section of the README."""
    text = README.split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def node() -> Iterator[LabNode]:
    """A node of its own on which nothing of ours is installed or configured."""
    for path in (DEFAULT_ROOT, DEFAULT_PATH.parent, MESH_SLICE.path):
        if path.exists():
            pytest.fail(f"{path} exists: this machine has an installation of its own")
    existing = [path for path in DEFAULT_DIRECTORIES if path.exists()]
    with Lab() as lab:
        DEFAULT_PATH.parent.mkdir()
        try:
            yield lab.add_node("readme")
            for process in lab.processes:
                process.stop()
            assert not Cgroup("/moa-agent").exists()
        finally:
            for process in lab.processes:
                process.stop()
            Node(DEFAULT_ROOT).uninstall()
            MESH_SLICE.remove()
            shutil.rmtree(DEFAULT_PATH.parent)
            for path in set(DEFAULT_DIRECTORIES) - set(existing):
                shutil.rmtree(path, ignore_errors=True)


def test_the_commands_of_the_readme_work_in_their_order(node: LabNode) -> None:
    root = Cgroup("/")
    (services,) = blocks("Use it on a node", "toml")
    (DEFAULT_PATH.parent / "services.toml").write_text(services)
    first, second, last = blocks("Use it on a node", "sh")
    build, *checks, run = [line.split("#")[0].strip() for line in first.splitlines()]
    assert build == "make build"
    _succeeds(node, "\n".join(checks))
    agent = node.start("agent", *_in_shell(f"exec {run}"), cgroup=root)
    assert json.loads(agent.wait_line('"ready"'))["registry"] == "SYNCED"
    service = node.start("service", "sleep", "600", cgroup=root)
    assert "/moa-mesh.slice" in _succeeds(node, f"PID={service.pid}\n{second}")
    assert service.pid in MESH_SLICE.processes()
    agent.stop()
    _succeeds(node, last)


def _in_shell(script: str) -> tuple[str, ...]:
    return ("sh", "-e", "-c", f"cd {REPO}\n{script}")


def _succeeds(node: LabNode, script: str) -> str:
    done = node.call(*_in_shell(script), cgroup=Cgroup("/"))
    assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
    return done.stdout


def test_no_figure_is_left_open() -> None:
    assert "<!--" not in README


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
