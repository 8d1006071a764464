"""Events as journald's fields, byte by byte."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest

from installer import journal


def test_fields_of_an_event() -> None:
    event = {"event": "attached", "level": "warning", "cgroup": "/app.slice", "count": 2}
    assert journal.datagram("moa-agent", event) == (
        b"MESSAGE=attached\nPRIORITY=4\nSYSLOG_IDENTIFIER=moa-agent\n"
        b"MOA_CGROUP=/app.slice\nMOA_COUNT=2\n"
    )


def test_value_of_several_lines_has_its_length() -> None:
    sent = journal.datagram("x", {"event": "one\ntwo"})
    assert sent.startswith(b"MESSAGE\n" + struct.pack("<Q", 7) + b"one\ntwo\nPRIORITY=6\n")


def test_key_that_journald_refuses_is_changed() -> None:
    assert b"MOA_A_B_=1\n" in journal.datagram("x", {"event": "", "a-b.": 1})


def test_journal_stream_names_our_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    status = os.fstat(writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    assert journal.is_ours(writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
    assert not journal.is_ours(writer)
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not journal.is_ours(writer)
    os.close(reader)
    os.close(writer)


def test_datagram_is_sent_and_a_journal_that_is_gone_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        logger = journal.JournalLogger(str(path))
        logger.info(b"MESSAGE=x\n")
        assert server.recv(100) == b"MESSAGE=x\n"
    path.unlink()
    logger.info(b"MESSAGE=y\n")
