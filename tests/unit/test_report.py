"""A bug report: what it must not hold, and what it lists first."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from installer import report
from installer.report import Page
from tests.support.cli import as_json, moactl, write_config
from tests.support.documented import assert_as_documented


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('url = "redis://user:s3cret@10.0.0.1:6379/0"', 'url = "redis://***@10.0.0.1:6379/0"'),
        ("redis+sentinel://:s3cret@a:1,b:2/m", "redis+sentinel://***@a:1,b:2/m"),
        ("redis://10.0.0.1:6379/0 and redis://b/0", "redis://10.0.0.1:6379/0 and redis://b/0"),
        ('{"password": "s3cret", "x": 1}', '{"password": ***, "x": 1}'),
        ("token=s3cret next", "token=*** next"),
        ("Authorization: s3cret", "Authorization: ***"),
        ("tokens 5", "tokens 5"),
    ],
)
def test_secrets_are_starred(text: str, expected: str) -> None:
    assert report.redacted(text) == expected


def test_archive_lists_its_contents_first_and_is_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "out.tar.gz"
    report.write(path, [Page("a.txt", b"hello"), Page("b.json", b"{}")])
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["out/CONTENTS", "out/a.txt", "out/b.json"]
        listing = archive.extractfile("out/CONTENTS")
        assert listing is not None
        assert listing.read().decode().split() == ["5", "a.txt", "2", "b.json"]
    with pytest.raises(FileExistsError):
        report.write(path, [])


def test_bugreport_of_a_node_without_anything(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("[registry]", '[registry]\nkind = "redis"\n'
                      'url = "redis://:s3cret@127.0.0.1:1/0"'))  # fmt: skip
    path = tmp_path / "report.tar.gz"
    found = as_json("-c", config, "bugreport", "--yes", "--to", path)
    assert_as_documented("bugreport", found)
    with tarfile.open(path) as archive:
        texts = {m.name: archive.extractfile(m) for m in archive.getmembers()}
        assert {"report/CONTENTS", "report/doctor.json"} <= texts.keys()
        assert not [n for n, file in texts.items() if file and b"s3cret" in file.read()]


def test_dry_run_lists_and_writes_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    before = set(tmp_path.iterdir())
    result = moactl("-c", config, "bugreport", "--dry-run", "--to", tmp_path / "x.tar.gz")
    assert "doctor.json" in result.stdout
    assert set(tmp_path.iterdir()) == before


def test_bugreport_asks_only_on_a_terminal(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert moactl("-c", config, "bugreport", "--to", tmp_path / "x").exit_code == 2
    assert not (tmp_path / "x").exists()
