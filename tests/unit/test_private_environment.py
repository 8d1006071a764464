"""Nothing we install provides our top-level names (docs/adr/0003-…-private-environment.md)."""

from __future__ import annotations

import re
import sysconfig
from importlib.metadata import distribution, distributions, packages_distributions
from pathlib import Path

import pytest

OURS = "moa-interceptor"
TOP_LEVEL = ("interceptor", "proxy", "installer")
REPOSITORY = Path(__file__).parents[2]


def locked(name: str) -> dict[str, str]:
    pins = re.findall(r"^([a-z0-9-]+)==(\S+)", (REPOSITORY / name).read_text(), re.MULTILINE)
    return dict(pins)


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_lock_holds_hashes_and_no_address(lock: str) -> None:
    text = (REPOSITORY / lock).read_text()
    assert locked(lock)
    assert "://" not in text
    assert not re.search(r"^--", text, re.MULTILINE)
    for requirement in re.split(r"\n(?=[a-z0-9-]+==)", text)[1:]:
        assert "--hash=sha256:" in requirement


def test_environment_is_the_lock() -> None:
    wanted = locked("requirements-dev.lock")
    for name, version in wanted.items():
        assert distribution(name).version == version, name


def test_runtime_lock_is_part_of_the_development_lock() -> None:
    assert locked("requirements.lock").items() <= locked("requirements-dev.lock").items()


@pytest.mark.parametrize("package", TOP_LEVEL)
def test_no_locked_distribution_provides_our_names(package: str) -> None:
    for name in locked("requirements-dev.lock"):
        tops = {file.parts[0] for file in distribution(name).files or ()}
        assert not tops & {package, f"{package}.py"}, name


@pytest.mark.parametrize("package", TOP_LEVEL)
def test_only_we_provide_our_names(package: str) -> None:
    others = {d.name for d in distributions() if d.name != OURS}
    assert not others & set(packages_distributions().get(package, ()))


@pytest.mark.parametrize("script", ["moactl", "moa-agent"])
def test_script_runs_isolated(script: str) -> None:
    first_line = (Path(sysconfig.get_path("scripts")) / script).read_text().splitlines()[0]
    assert first_line.startswith("#!")
    assert first_line.endswith(" -I")
