"""The installer's plan, below a directory: repeated, killed anywhere, and beside a user's files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from installer.plan import node_plan, processes, run
from installer.plan.manifest import Manifest, ManifestError
from installer.plan.site import InstallBusy, Site
from installer.plan.steps import Verdict
from tests.support.installs import (
    VERSION,
    in_memory,
    install,
    make_sysroot,
    picture,
    tiny_source,
    uninstall,
    wanted,
)

LIBRARY = "lib/python{}.{}/site-packages".format(*sys.version_info[:2])
CONFIG = "etc/moa/agent.toml"
CHANGES = (os.mkdir, os.rename, os.symlink, os.unlink, os.rmdir)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with in_memory() as made:
        yield made


@pytest.fixture
def sysroot(tmp_path: Path) -> Path:
    return make_sysroot(tmp_path / "root")


@pytest.fixture
def asked(tmp_path: Path) -> node_plan.Wanted:
    return wanted(tiny_source(tmp_path / "source"))


def test_install_and_uninstall_leave_nothing(sysroot: Path, asked: node_plan.Wanted) -> None:
    before = picture(sysroot)
    install(sysroot, asked)
    assert (sysroot / "opt/moa/current").readlink() == Path("versions") / VERSION
    # The kernel cannot follow a link to /opt from here, but the command itself runs anywhere.
    done = subprocess.run(
        [sysroot / "opt/moa/current/bin/moactl"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"hello of {VERSION}\n"
    site = uninstall(sysroot)
    assert picture(sysroot) == before
    assert site.left == []


def test_second_install_changes_nothing(sysroot: Path, asked: node_plan.Wanted) -> None:
    install(sysroot, asked)
    first = picture(sysroot)
    site = Site(sysroot)
    run.load(site)
    outcomes = run.preview(node_plan.steps(asked, site), site)
    assert {o.verdict for o in outcomes} == {Verdict.DONE}
    install(sysroot, asked)
    assert picture(sysroot) == first


def test_preview_changes_nothing(sysroot: Path, asked: node_plan.Wanted) -> None:
    before = picture(sysroot)
    site = Site(sysroot)
    assert not run.load(site)
    run.preview(node_plan.steps(asked, site), site)
    assert picture(sysroot) == before


def test_file_that_was_there_before_is_kept_and_told(
    sysroot: Path, asked: node_plan.Wanted
) -> None:
    (sysroot / "etc/moa").mkdir()
    (sysroot / CONFIG).write_text("# of an operator\n")
    before = picture(sysroot)
    site = install(sysroot, wanted(asked.source, "# ours\n"))
    assert (sysroot / CONFIG).read_text() == "# of an operator\n"
    assert (sysroot / f"{CONFIG}.dist").read_text() == "# ours\n"
    assert any(CONFIG in text for text in site.notes)
    assert install(sysroot, wanted(asked.source, "# ours\n")).notes == []  # told once
    site = uninstall(sysroot)
    assert picture(sysroot) == before
    assert any(CONFIG in text for text in site.left)


def test_file_that_was_changed_since_is_kept_until_a_purge(
    sysroot: Path, asked: node_plan.Wanted
) -> None:
    before = picture(sysroot)
    install(sysroot, asked)
    (sysroot / CONFIG).write_text("# changed\n")
    assert install(sysroot, asked).notes == []  # we want nothing new: nothing to tell
    assert not (sysroot / f"{CONFIG}.dist").exists()
    site = install(sysroot, wanted(asked.source, "# newer\n"))
    assert (sysroot / CONFIG).read_text() == "# changed\n"
    assert (sysroot / f"{CONFIG}.dist").read_text() == "# newer\n"
    assert len(site.notes) == 1
    site = uninstall(sysroot)
    assert set(picture(sysroot)) - set(before) == {"etc/moa", CONFIG}
    assert len(site.left) == 2

    install(sysroot, asked)  # the file is the operator's now
    uninstall(sysroot, purge=True)
    assert (sysroot / CONFIG).read_text() == "# changed\n"


def test_purge_removes_what_was_changed_since(sysroot: Path, asked: node_plan.Wanted) -> None:
    before = picture(sysroot)
    install(sysroot, asked)
    (sysroot / CONFIG).write_text("# changed\n")
    (sysroot / f"opt/moa/versions/{VERSION}/{LIBRARY}/hello/__init__.py").write_text("pass")
    uninstall(sysroot, purge=True)
    assert picture(sysroot) == before


def test_environment_that_was_changed_is_told_and_what_was_changed_stays(
    sysroot: Path, asked: node_plan.Wanted
) -> None:
    install(sysroot, asked)
    changed = sysroot / f"opt/moa/versions/{VERSION}/{LIBRARY}/hello/__init__.py"
    changed.write_text("def main(): print('patched')\n")
    assert any("hello/__init__.py" in text for text in install(sysroot, asked).notes)
    site = uninstall(sysroot)
    assert changed.exists()
    assert any("hello/__init__.py" in text for text in site.left)


def test_versions_stand_side_by_side_and_go_together(
    sysroot: Path, tmp_path: Path, asked: node_plan.Wanted
) -> None:
    before = picture(sysroot)
    install(sysroot, asked)
    install(sysroot, wanted(tiny_source(tmp_path / "newer", "8.0.0")))
    assert (sysroot / "opt/moa/current").readlink() == Path("versions/8.0.0")
    assert (sysroot / f"opt/moa/versions/{VERSION}/bin/moactl").exists()
    (sysroot / "opt/moa/current").unlink()
    (sysroot / "opt/moa/current").symlink_to(f"versions/{VERSION}")  # rolled back
    uninstall(sysroot)
    assert picture(sysroot) == before


def killed_at(step: int, action: Callable[[], object]) -> bool:
    """Run it in a child that is killed before its change of this number; whether it came there."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **more: Any) -> Any:
                nonlocal count
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return real(*arguments, **more)

            return call

        for real in CHANGES:
            setattr(os, real.__name__, counted(real))
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def test_install_killed_anywhere_is_finished_by_the_next(
    tmp_path: Path, asked: node_plan.Wanted
) -> None:
    whole = make_sysroot(tmp_path / "whole")
    install(whole, asked)
    expected = _without_manifest(picture(whole))
    for step in range(1000):
        root = make_sysroot(tmp_path / f"finish-{step}")
        if not killed_at(step, lambda root=root: install(root, asked)):  # type: ignore[misc]
            break
        install(root, asked)
        assert _without_manifest(picture(root)) == expected, step
        assert _complete(root)
    assert step > 20


def test_install_killed_anywhere_is_undone_by_an_uninstall(
    tmp_path: Path, asked: node_plan.Wanted
) -> None:
    before = picture(make_sysroot(tmp_path / "bare"))
    for step in range(1000):
        root = make_sysroot(tmp_path / f"undo-{step}")
        if not killed_at(step, lambda root=root: install(root, asked)):  # type: ignore[misc]
            break
        uninstall(root)
        assert picture(root) == before, step
    assert step > 20


def test_uninstall_killed_anywhere_is_finished_by_the_next(
    tmp_path: Path, asked: node_plan.Wanted
) -> None:
    before = picture(make_sysroot(tmp_path / "bare"))
    for step in range(1000):
        root = make_sysroot(tmp_path / f"out-{step}")
        install(root, asked)
        if not killed_at(step, lambda root=root: uninstall(root)):  # type: ignore[misc]
            break
        uninstall(root)
        assert picture(root) == before, step
    assert step > 20


def test_upgrade_killed_anywhere_is_finished_or_undone(
    tmp_path: Path, asked: node_plan.Wanted
) -> None:
    before = picture(make_sysroot(tmp_path / "bare"))
    newer = wanted(tiny_source(tmp_path / "newer", "8.0.0"), "# newer\n")
    for step in range(1000):
        root = make_sysroot(tmp_path / f"up-{step}")
        install(root, asked)
        if not killed_at(step, lambda root=root: install(root, newer)):  # type: ignore[misc]
            break
        if step % 2:
            assert install(root, newer).notes == [], step
            assert (root / CONFIG).read_text() == "# newer\n"
        uninstall(root)
        assert picture(root) == before, step
    assert step > 10


def _without_manifest(tree: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    return {path: facts for path, facts in tree.items() if "var/lib/moa" not in path}


def _complete(root: Path) -> bool:
    found = Manifest.load(Site(root).manifest_path)
    return found is not None and found.complete


def test_two_at_once_are_refused(sysroot: Path, asked: node_plan.Wanted) -> None:
    with Site(sysroot).locked(), pytest.raises(InstallBusy):
        install(sysroot, asked)


def test_manifest_that_cannot_be_read_is_told(sysroot: Path) -> None:
    path = Site(sysroot).manifest_path
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(ManifestError, match="is not JSON"):
        run.load(Site(sysroot))
    path.write_text('{"format": 99, "version": "9.9"}')
    with pytest.raises(ManifestError, match=r"format 1, saw 99.*9\.9"):
        run.load(Site(sysroot))


@pytest.mark.parametrize(
    ("said", "ended"),
    [
        ("ActiveState=active\nNRestarts=0\n", False),
        ("ActiveState=activating\nNRestarts=2\n", False),
        ("ActiveState=activating\nNRestarts=3\n", True),
        ("ActiveState=failed\nNRestarts=0\n", True),
        ("", False),
    ],
)
def test_unit_that_does_not_start_is_not_waited_for(
    said: str, ended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f"#!/bin/sh\nprintf '%s' '{said}'\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert processes.unit_has_ended("moa-agent.service")() is ended
