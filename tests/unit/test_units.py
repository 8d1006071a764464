"""The systemd units: exposure, syntax, and what of a version they start."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from installer.plan import units

pytestmark = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="needs systemd-analyze, of Debian's systemd"
)

ALL = units.texts(["moa-agent", "moa-opsd", "moa-watcher", "moa-lookup"], "/etc/moa/agent.toml")
ALONE = units.texts(["moa-agent", "moactl"], "/etc/moa/agent.toml")
SERVICES = [name for name in {**ALL, **ALONE} if name.endswith(".service")]
MOST = 3.0


@pytest.fixture
def written(tmp_path: Path) -> Path:
    for name, text in {**ALL, **ALONE}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", SERVICES)
def test_exposure_is_below_three(name: str, written: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", written / name],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) < MOST


def test_systemd_knows_every_setting(written: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, written.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    # The commands are not there, and of that it speaks.
    words = [line for line in done.stderr.splitlines() if "is not executable" not in line]
    assert not [line for line in words if str(written) in line or "Unknown" in line], done.stderr


def test_supervisor_runs_the_agents_where_there_is_one() -> None:
    assert "moa-agent.service" not in ALL
    assert "Type=notify" in ALL["moa-opsd.service"]
    assert "FileDescriptorStoreMax=" in ALL["moa-opsd.service"]
    assert set(ALONE) == {"moa-agent.service", units.SLICE}


@pytest.mark.parametrize("texts", [ALL, ALONE])
def test_pins_can_be_written_where_a_unit_must_write_them(texts: dict[str, str]) -> None:
    for name, text in texts.items():
        if "ReadWritePaths=" in text and "/sys/fs/bpf" in text:
            # It makes /sys/fs/bpf read-only even when ReadWritePaths names it; the last one counts.
            assert re.findall(r"^ProtectKernelTunables=(\w+)", text, re.MULTILINE)[-1] == "no", name
