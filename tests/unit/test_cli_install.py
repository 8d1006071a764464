"""`moactl install` below a directory: what its options make of the configuration, and refusals."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from installer.plan import environment
from tests.support.cli import as_json, moactl
from tests.support.documented import assert_as_documented
from tests.support.installs import VERSION, make_sysroot, picture, tiny_source

URL = "redis://:s3cret@10.0.0.9:6379/0"


@pytest.fixture
def sysroot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    source = tiny_source(tmp_path / "source")
    monkeypatch.setattr(environment, "of_this_process", lambda: source)
    return make_sysroot(tmp_path / "root")


def install(sysroot: Path, *options: str) -> dict[str, Any]:
    return as_json("install", "--sysroot", sysroot, "--yes", *options)


def written(sysroot: Path) -> dict[str, Any]:
    return tomllib.loads((sysroot / "etc/moa/agent.toml").read_text())


def test_options_make_the_configuration_and_what_is_not_named_stays(sysroot: Path) -> None:
    found = install(sysroot, "--registry", URL, "--cgroup", "/a.slice", "--cgroup", "/b.slice")
    assert_as_documented("install", found)
    wanted = {"kind": "redis", "url": URL}
    assert written(sysroot) == {"scope": {"cgroups": ["/a.slice", "/b.slice"]}, "registry": wanted}
    assert (sysroot / "etc/moa/agent.toml").stat().st_mode & 0o777 == 0o640
    install(sysroot)
    install(sysroot, "--cgroup", "/c.slice")
    assert written(sysroot)["registry"] == wanted
    assert written(sysroot)["scope"]["cgroups"] == ["/a.slice", "/b.slice", "/c.slice"]
    install(sysroot, "--registry", "/etc/moa/others.toml")
    assert written(sysroot)["registry"] == {"kind": "static", "file": "/etc/moa/others.toml"}
    assert "s3cret" not in str(as_json("install", "status", "--sysroot", sysroot))


def test_image_with_systemd_gets_units_and_the_slice(sysroot: Path) -> None:
    (sysroot / "lib/systemd").mkdir(parents=True)
    (sysroot / "lib/systemd/systemd").touch()
    install(sysroot)
    assert written(sysroot)["agent"] == {"cgroup": "/system.slice/moa-agent.service"}
    assert written(sysroot)["scope"]["cgroups"] == ["/moa.slice/moa-mesh.slice"]
    wants = sysroot / "etc/systemd/system/multi-user.target.wants/moa-agent.service"
    assert wants.readlink() == Path("/etc/systemd/system/moa-agent.service")


def test_whole_configuration_of_an_operator(sysroot: Path, tmp_path: Path) -> None:
    given = tmp_path / "given.toml"
    given.write_text('[node]\nname = "n"\n')
    install(sysroot, "-c", str(given))
    assert written(sysroot) == {"node": {"name": "n"}}
    refused = moactl("install", "--sysroot", sysroot, "--yes", "--registry", URL)
    assert refused.exit_code == 1
    assert "would lose it" in refused.stderr
    assert written(sysroot) == {"node": {"name": "n"}}


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ((), 2, "--yes"),
        (("--yes", "-c", "/nowhere.toml", "--cgroup", "/a"), 2, "-c FILE"),
        (("--yes", "-c", "/nowhere.toml"), 1, "cannot be read"),
        (("--yes", "--registry", "http://x"), 1, "registry.url"),
        (("--yes", "--cgroup", "a"), 1, "scope.cgroups"),
    ],
)
def test_refusals_write_nothing(
    sysroot: Path, options: tuple[str, ...], code: int, words: str
) -> None:
    before = picture(sysroot)
    result = moactl("install", "--sysroot", sysroot, *options)
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert picture(sysroot) == before


def test_status_of_what_is_there(sysroot: Path) -> None:
    assert as_json("install", "status", "--sysroot", sysroot)["installed"] is False
    install(sysroot)
    (sysroot / "etc/moa/services.toml").write_text("# mine\n")
    found = as_json("install", "status", "--sysroot", sysroot)
    assert_as_documented("install status", found)
    assert (found["complete"], found["current"]) == (True, VERSION)
    assert found["changed"] == ["/etc/moa/services.toml"]


def test_uninstall_dry_run_says_what_would_go_and_stay(sysroot: Path) -> None:
    before = picture(sysroot)
    install(sysroot)
    (sysroot / "etc/moa/services.toml").write_text("# mine\n")
    installed = picture(sysroot)
    told = as_json("uninstall", "--sysroot", sysroot, "--dry-run")
    assert_as_documented("uninstall", told)
    assert told["left"] == ["/etc/moa/services.toml"]
    assert picture(sysroot) == installed
    done = as_json("uninstall", "--sysroot", sysroot, "--yes", "--purge")
    assert set(told["removed"]) < set(done["removed"])
    assert picture(sysroot) == before
