"""An installation that was damaged: its manifest, its environment, the disk that it is on."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from installer.membership import DROP_IN_TEXT
from installer.plan import environment, file_list, manifest, node_plan, run
from installer.plan.environment import Source
from installer.plan.manifest import Manifest, ManifestDamaged
from installer.plan.site import Site
from installer.plan.steps import Verdict
from tests.support.cli import as_json, moactl
from tests.support.documented import assert_as_documented
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
from tests.support.lab import REPO

DAMAGED = {
    "empty": b"",
    "cut off": b'{"format": 1, "version": "7.8',
    "list": b"[]",
    "text": b'"x"',
    "number": b"7",
    "nothing in it": b'{"format": 1}',
    "no format": b"{}",
    "entries of another form": b'{"format": 1, "version": "7", "complete": true, '
    b'"switched_on": false, "entries": [{"path": 7}]}',
    "entries that are no list": b'{"format": 1, "version": "7", "complete": true, '
    b'"switched_on": false, "entries": 7}',
    "kind that is none": b'{"format": 1, "version": "7", "complete": true, '
    b'"switched_on": false, "entries": [{"path": "/a", "step": "", "content": "", "kind": "x", '
    b'"previous": "", "before": null}]}',
    "zeros": bytes(4096),
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 100_000,
}
TREE = f"opt/moa/versions/{VERSION}"
MANIFEST = "var/lib/moa/install/manifest.json"


@pytest.fixture
def directory() -> Iterator[Path]:
    with in_memory() as made:
        yield made


@pytest.fixture
def source(directory: Path) -> Source:
    return tiny_source(directory / "source")


@pytest.fixture
def sysroot(directory: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(environment, "of_this_process", lambda: source)
    root = make_sysroot(directory / "root")
    (root / "lib/systemd").mkdir(parents=True)
    (root / "lib/systemd/systemd").touch()
    return root


def put_on(sysroot: Path, *options: str) -> dict[str, Any]:
    return as_json("install", "--sysroot", sysroot, "--yes", *options)


def take_off(sysroot: Path, *options: str) -> dict[str, Any]:
    found = as_json("uninstall", "--sysroot", sysroot, "--yes", *options)
    assert_as_documented("uninstall", found)
    return found


def status(sysroot: Path) -> dict[str, Any]:
    found = as_json("install", "status", "--sysroot", sysroot)
    assert_as_documented("install status", found)
    return found


# The manifest


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_manifest_is_told_and_an_uninstall_goes_without(
    sysroot: Path, content: bytes
) -> None:
    before = picture(sysroot)
    put_on(sysroot, "--registry", "redis://10.0.0.9:6379/0", "--cgroup", "/a.slice")
    (sysroot / MANIFEST).write_bytes(content)
    with pytest.raises(ManifestDamaged, match=r"manifest\.json.*moactl uninstall goes without it"):
        Manifest.load(sysroot / MANIFEST)
    found = status(sysroot)
    assert found["installed"]
    assert "goes without it" in found["damaged"]
    assert (found["versions"], found["changed"]) == ([VERSION], [])
    refused = moactl("install", "--sysroot", sysroot, "--yes")
    assert refused.exit_code == 1
    assert "next: moactl uninstall, then moactl install\n" in refused.stderr

    told = as_json("uninstall", "--sysroot", sysroot, "--dry-run")
    done = take_off(sysroot)
    assert done["left"] == told["left"] == []
    assert set(told["removed"]) <= set(done["removed"])
    assert picture(sysroot) == before


def test_directory_in_the_place_of_the_manifest(sysroot: Path) -> None:
    before = picture(sysroot)
    put_on(sysroot)
    (sysroot / MANIFEST).unlink()
    (sysroot / MANIFEST).mkdir()
    assert "Is a directory" in status(sysroot)["damaged"]
    assert take_off(sysroot)["left"] == []
    assert picture(sysroot) == before


def test_uninstall_without_a_manifest_says_so(sysroot: Path) -> None:
    put_on(sysroot)
    (sysroot / MANIFEST).write_bytes(b"")
    result = moactl("uninstall", "--sysroot", sysroot, "--yes")
    assert result.exit_code == 0
    assert "is not JSON" in result.stderr
    assert "recognisably ours" in result.stderr


@pytest.mark.parametrize("options", [(), ("--purge",)])
def test_damaged_manifest_does_not_make_a_users_files_ours(
    sysroot: Path, options: tuple[str, ...]
) -> None:
    put_on(sysroot)
    theirs = {
        "etc/moa/agent.toml": '[node]\nname = "mine"\n',
        "etc/moa/services.toml": "# mine\n",
        "etc/systemd/system/moa-agent.service": "# mine\n",
        "opt/moa/versions/9.9.9/mine": "mine\n",
        f"{TREE}/mine": "mine\n",
        "etc/systemd/system/nginx.service.d/50-moa-mesh.conf": "# mine\n",
    }
    for name, text in theirs.items():
        (sysroot / name).parent.mkdir(parents=True, exist_ok=True)
        (sysroot / name).write_text(text)
    (sysroot / MANIFEST).write_bytes(b"")
    left = "\n".join(take_off(sysroot, *options)["left"])
    there = {name for name in theirs if (sysroot / name).exists()}
    assert there == set(theirs) - ({f"{TREE}/mine"} if options else set())
    for name in ("agent.toml", "services.toml", "moa-agent.service", "9.9.9"):
        assert name in left
    assert not (sysroot / "opt/moa/current").is_symlink()
    assert not (sysroot / MANIFEST).exists()


def test_drop_ins_of_units_go_without_a_manifest(sysroot: Path) -> None:
    before = picture(sysroot)
    put_on(sysroot)
    drop_in = sysroot / "etc/systemd/system/nginx.service.d/50-moa-mesh.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(DROP_IN_TEXT)
    (sysroot / MANIFEST).write_bytes(b"")
    assert take_off(sysroot)["left"] == []
    assert picture(sysroot) == before


@pytest.mark.parametrize("again", [False, True])
def test_manifest_that_is_lost_leaves_nothing_behind(sysroot: Path, again: bool) -> None:
    before = picture(sysroot)
    put_on(sysroot)
    (sysroot / MANIFEST).unlink()
    if again:
        assert any("was lost" in text for text in put_on(sysroot)["notes"])
    assert take_off(sysroot)["left"] == []
    assert picture(sysroot) == before


def test_files_of_a_user_are_theirs_at_a_first_install(sysroot: Path) -> None:
    """However much like ours they look."""
    (sysroot / "etc/moa").mkdir()
    (sysroot / "etc/moa/services.toml").write_text(node_plan.SERVICES_TEXT)
    before = picture(sysroot)
    put_on(sysroot)
    take_off(sysroot)
    assert picture(sysroot) == before


def test_uninstall_killed_without_a_manifest_is_finished_by_the_next(
    sysroot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = picture(sysroot)
    put_on(sysroot)
    (sysroot / MANIFEST).write_bytes(b"[]")
    with monkeypatch.context() as patched:
        patched.setattr(environment, "remove", lambda path, site: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            uninstall(sysroot)
    uninstall(sysroot)
    assert picture(sysroot) == before


# The disk


def test_uninstall_needs_no_space(sysroot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = picture(sysroot)
    put_on(sysroot)
    full(monkeypatch)
    assert take_off(sysroot)["left"] == []
    assert picture(sysroot) == before


def test_install_on_a_full_disk_names_the_file(
    sysroot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch)
    result = moactl("install", "--sysroot", sysroot, "--yes")
    assert result.exit_code == 1
    assert "install: [Errno 28] No space left on device: " in result.stderr
    assert f"{sysroot}/var/lib/moa/install/manifest.new" in result.stderr
    assert "or moactl uninstall" in result.stderr


def test_error_of_an_uninstall_is_its_own(sysroot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, site: Site) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    put_on(sysroot)
    monkeypatch.setattr(environment, "remove", refuse)
    result = moactl("uninstall", "--sysroot", sysroot, "--yes")
    assert result.exit_code == 1
    assert "moactl: uninstall: [Errno 5]" in result.stderr
    assert "moactl uninstall again\n" in result.stderr


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file's content can be flushed any more."""

    def fsync(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


# Units


def test_units_that_a_user_enabled_go_and_so_does_their_state(sysroot: Path) -> None:
    before = picture(sysroot)
    put_on(sysroot)
    enable(sysroot, "moa-agent.service", "multi-user.target.wants")
    enable(sysroot, "moa-agent.service", "other.target.requires")
    theirs = enable(sysroot, "nginx.service", "other.target.wants")
    elsewhere = theirs.with_name("moa-agent.service")
    elsewhere.symlink_to("/usr/lib/systemd/system/moa-agent.service")
    told = as_json("uninstall", "--sysroot", sysroot, "--dry-run")["removed"]
    gone = take_off(sysroot)
    path = "/etc/systemd/system/other.target.requires/moa-agent.service"
    assert path in told
    assert path in gone["removed"]
    assert theirs.is_symlink()
    assert elsewhere.is_symlink()
    for name in ("other.target.wants", "other.target.requires"):
        shutil.rmtree(sysroot / "etc/systemd/system" / name)
    assert picture(sysroot) == before


@pytest.mark.parametrize("edited", [False, True])
def test_watcher_and_lookup_go_with_their_links_and_state(
    directory: Path, sysroot: Path, edited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_all_commands(directory, monkeypatch)
    (sysroot / "var/lib/private").mkdir()
    before = picture(sysroot)
    put_on(sysroot)
    names = ("moa-watcher", "moa-lookup")
    for name in names:
        enable(sysroot, f"{name}.service", "multi-user.target.wants")
        give_state(sysroot, name)
        if edited:
            with (sysroot / f"etc/systemd/system/{name}.service").open("a") as file:
                file.write("# mine\n")
    gone = take_off(sysroot)
    for name in names:
        assert f"/var/lib/{name}" in gone["removed"]
    left = {name for name in picture(sysroot) if name not in before}
    assert left == ({f"etc/systemd/system/{name}.service" for name in names} if edited else set())
    assert len(gone["left"]) == len(left)


def test_purge_of_the_package_takes_what_was_edited_outside_of_the_configuration(
    directory: Path, sysroot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_all_commands(directory, monkeypatch)
    (sysroot / "var/lib/private").mkdir()
    before = picture(sysroot)
    put_on(sysroot)
    for name in ("etc/systemd/system/moa-opsd.service", f"{TREE}/bin/moactl"):
        with (sysroot / name).open("a") as file:
            file.write("# mine\n")
    (sysroot / "etc/systemd/system/moa-mesh.slice.dist").touch()
    assert len(take_off(sysroot)["left"]) > 1
    enable(sysroot, "moa-watcher.service", "multi-user.target.wants")
    give_state(sysroot, "moa-watcher")
    for action in ("remove", "purge"):
        script = REPO / "installer/debian/postrm"
        done = subprocess.run(
            ["/bin/sh", script, action], env={**os.environ, "DPKG_ROOT": str(sysroot)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        if action == "remove":
            assert (sysroot / "etc/systemd/system/moa-opsd.service").exists()
    (sysroot / "etc/systemd/system/multi-user.target.wants").rmdir()
    assert picture(sysroot) == before


def with_all_commands(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on an install is of a version with every command."""
    made = tiny_source(directory / "all")
    names = ("moactl", "moa-opsd", "moa-agent", "moa-watcher", "moa-lookup")
    commands = tuple((name, "hello", "main") for name in names)
    source = Source(made.version, made.python, made.files, commands)
    monkeypatch.setattr(environment, "of_this_process", lambda: source)


def enable(sysroot: Path, unit: str, where: str) -> Path:
    """As `systemctl enable` does it."""
    link = sysroot / "etc/systemd/system" / where / unit
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(f"/etc/systemd/system/{unit}")
    return link


def give_state(sysroot: Path, name: str) -> None:
    """As systemd does it for a service with a dynamic user."""
    state = sysroot / "var/lib/private" / name
    state.mkdir(parents=True)
    (state / "registry.json").write_text("{}")
    (sysroot / "var/lib" / name).symlink_to(f"private/{name}")


# The environment


def power_cut(sysroot: Path, *names: str) -> None:
    """What is left of files that were written and not flushed."""
    for name in names:
        (sysroot / TREE / name).write_bytes(b"")


@pytest.mark.parametrize(
    "lost",
    [("FILES", "bin/moactl"), ("bin/moactl",), ("FILES",)],
    ids=" ".join,
)
@pytest.mark.parametrize("action", ["install", "uninstall"])
def test_environment_after_a_power_cut(
    sysroot: Path, source: Source, lost: tuple[str, ...], action: str
) -> None:
    before = picture(sysroot)
    install(sysroot, wanted(source))
    whole = hashes(sysroot)
    power_cut(sysroot, *lost)
    if action == "install":
        site = install(sysroot, wanted(source))
        assert site.notes == []
        assert hashes(sysroot) == whole
        command = [sysroot / TREE / "bin/moactl"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"hello of {VERSION}\n"
    assert uninstall(sysroot).left == []
    assert picture(sysroot) == before


def test_file_of_the_environment_that_is_missing_is_put_back(sysroot: Path, source: Source) -> None:
    install(sysroot, wanted(source))
    (sysroot / TREE / "bin/moactl").unlink()
    site = Site(sysroot)
    run.load(site)
    step = environment.step(source)
    assert step.check(site) is Verdict.TODO
    install(sysroot, wanted(source))
    assert step.check(site) is Verdict.DONE


def test_what_a_user_changed_stays_when_the_rest_is_made_again(
    sysroot: Path, source: Source
) -> None:
    install(sysroot, wanted(source))
    (patched,) = (sysroot / TREE).glob("lib/*/*/hello/__init__.py")
    patched.write_text("def main(): print('patched')\n")
    (sysroot / TREE / "notes.txt").write_text("mine\n")
    power_cut(sysroot, "bin/moactl")
    install(sysroot, wanted(source))
    assert "patched" in patched.read_text()
    assert (sysroot / TREE / "notes.txt").exists()
    assert (sysroot / TREE / "bin/moactl").stat().st_size > 0
    left = uninstall(sysroot).left
    assert any("notes.txt" in text and "__init__.py" in text for text in left)


def test_damaged_environment_is_not_made_again_from_itself(sysroot: Path, source: Source) -> None:
    """It would be without what it has lost, and a list would say that this is all."""
    install(sysroot, wanted(source))
    (module,) = (sysroot / TREE).glob("lib/*/*/hello/__init__.py")
    power_cut(sysroot, "bin/moactl")
    files = ((module, source.files[0][1]),)
    itself = Source(source.version, source.python, files, source.commands)
    notes = install(sysroot, wanted(itself)).notes
    assert any("bin/moactl" in text and "the package" in text for text in notes)
    assert (sysroot / TREE / "bin/moactl").stat().st_size == 0


def test_environment_is_on_the_disk_before_it_is_in_its_place(
    sysroot: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    flush, rename = manifest.sync_file_system, os.rename

    def flushed(path: Path) -> None:
        seen.append(f"flush {path.name} {(path / 'FILES').is_file()}")
        flush(path)

    def renamed(old: Any, new: Any) -> None:
        seen.append(f"rename {Path(old).name}")
        rename(old, new)

    monkeypatch.setattr(environment, "sync_file_system", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    install(sysroot, wanted(source))
    at = seen.index(f"flush .new-{VERSION} True")
    assert seen[at + 1] == f"rename .new-{VERSION}"


def hashes(sysroot: Path) -> dict[str, str]:
    tree = sysroot / TREE
    listed = (line.split("  ") for line in (tree / "FILES").read_text().splitlines())
    found = {name: value for value, name in listed}
    assert list(file_list.changed(tree)) == []
    return {name: value for name, value in found.items() if not name.endswith(".pyc")}


# The status


def test_status_names_neither_a_users_files_nor_half_a_copy(sysroot: Path) -> None:
    (sysroot / "etc/moa").mkdir()
    (sysroot / "etc/moa/services.toml").write_text("# mine\n")
    put_on(sysroot)
    (sysroot / f"opt/moa/versions/.new-{VERSION}").mkdir()
    found = status(sysroot)
    assert (found["changed"], found["versions"]) == ([], [VERSION])
    assert found["damaged"] is None


def test_install_says_that_it_needs_root(sysroot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = moactl("install", "--yes")
    assert result.exit_code == 1
    assert "moactl: install needs root" in result.stderr
