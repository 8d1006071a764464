"""What the supervisor says to systemd, and what it takes from it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from installer.opsd import systemd
from installer.opsd.systemd import Notifier


def test_words_to_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "3000000")
        notifier = Notifier()
        assert notifier.watchdog_s == 1.5
        notifier.ready()
        notifier.ready()
        notifier.status("one")
        notifier.status("one")
        notifier.store("control", 1)
        notifier.remove("control")
        notifier.wait(1.5)
        assert [sock.recv(100) for _ in range(2)] == [b"READY=1", b"STATUS=one"]
        assert sock.recv(100) == b"FDSTOREREMOVE=1\nFDNAME=control", "what had the name before"
        words, fds, _, _ = socket.recv_fds(sock, 100, 4)
        assert words == b"FDSTORE=1\nFDNAME=control\nFDPOLL=0"
        assert os.path.sameopenfile(fds[0], 1)
        os.close(fds[0])
        assert sock.recv(100) == b"FDSTOREREMOVE=1\nFDNAME=control"
        assert sock.recv(100) == b"EXTEND_TIMEOUT_USEC=1500000"
        notifier.close()


def test_without_systemd_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notifier = Notifier()
    notifier.ready()
    notifier.store("x", 1)
    assert notifier.watchdog_s is None


def test_what_systemd_stored_is_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "2")
    monkeypatch.setenv("LISTEN_PID", "1")
    assert systemd.stored() == {}
    assert "LISTEN_FDS" not in os.environ
