"""The supervisor on bad days."""

from __future__ import annotations

import json
from pathlib import Path

from installer.opsd import versions


def test_what_a_full_disk_did_not_take_is_remembered_all_the_same(tmp_path: Path) -> None:
    """Otherwise a crash after an upgrade would start the version before it."""
    versions.save(tmp_path, versions.Record("/old", None))
    obstacle = tmp_path / "opsd.new"
    obstacle.mkdir()
    versions.confirm(tmp_path, Path("/new"))
    assert versions.load(tmp_path) == versions.Record("/new", "/old")
    obstacle.rmdir()
    versions.forget_upgrade(tmp_path)
    versions.save(tmp_path, versions.load(tmp_path))
    assert json.loads((tmp_path / versions.RECORD).read_text())["current"] == "/new"
