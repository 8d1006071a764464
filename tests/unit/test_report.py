"""A bug report: what it must not hold, and what it lists first."""

from __future__ import annotations

import os
import resource
import tarfile
from pathlib import Path

import pytest

from installer import report
from installer.report import Page
from tests.support.cli import as_json, moactl, write_config
from tests.support.documented import assert_as_documented


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


def test_bugreport_of_a_configuration_that_is_refused(tmp_path: Path) -> None:
    """The usual reason to send one: a password with a character that should be encoded."""
    config = write_config(tmp_path)
    lines = (
        'kind = "redis"',
        'url = "redis://:PLANTED1/x+y@10.0.0.9:6379/0"',
        "# was: redis://u:PL@PLANTED3@10.0.0.9/0",
        "# header: Authorization: Bearer PLANTED4",
        "# requirepass PLANTED5",
    )
    text = config.read_text().replace("[registry]", "\n".join(("[registry]", *lines)))
    config.write_text(text)
    path = tmp_path / "report.tar.gz"
    as_json("-c", config, "bugreport", "--yes", "--to", path)
    with tarfile.open(path) as archive:
        texts = {m.name: archive.extractfile(m) for m in archive.getmembers()}
        contents = {name: file.read().decode() for name, file in texts.items() if file}
    assert [name for name, content in contents.items() if "PLANTED" in content] == []
    (shown,) = (content for name, content in contents.items() if name.endswith("agent.toml"))
    assert "# was: redis://***@10.0.0.9/0" in shown


def test_half_a_line_is_left_out(tmp_path: Path) -> None:
    """Of a long file its end is taken, where a secret may have lost its key."""
    config = write_config(tmp_path)
    end = "\n# the end\n"
    long = "x" * (report.MAX_FILE_BYTES - len(end))
    config.write_text(f"{config.read_text()}# password=PLANTED{long}{end}")
    (page,) = (p for p in report._file_pages(config) if p.name.endswith("agent.toml"))
    assert page.content == b"# the end\n"


def test_archive_that_cannot_be_written_is_not_left(tmp_path: Path) -> None:
    path = tmp_path / "out.tar.gz"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            report.write(path, [Page("a.bin", os.urandom(100_000))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.exists()


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
