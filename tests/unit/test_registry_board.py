"""What a registry's board logs, and when."""

from __future__ import annotations

from structlog.testing import capture_logs

from proxy.registry.base import RegistryState
from proxy.registry.board import Board


def test_each_reason_of_a_registry_that_was_never_read_is_logged_once() -> None:
    board = Board("redis", lambda: 0.0)
    with capture_logs() as logs:
        for reason in ("h:1: refused", "h:1: refused", "h:1: no answer in time"):
            board.set_state(RegistryState.STARTING, reason)
        board.set_state(RegistryState.SYNCED)
    assert [(entry["log_level"], entry["detail"]) for entry in logs] == [
        ("warning", "h:1: refused"),
        ("warning", "h:1: no answer in time"),
        ("info", ""),
    ]


def test_a_later_loss_is_logged_once_whatever_its_reasons() -> None:
    seconds = iter(range(10))
    board = Board("redis", lambda: float(next(seconds)))
    board.set_state(RegistryState.SYNCED)
    with capture_logs() as logs:
        for silence in ("silent for 4.0 s", "silent for 4.1 s"):
            board.set_state(RegistryState.STALE, silence)
    assert [entry["detail"] for entry in logs] == ["silent for 4.0 s"]
    assert board.status().since_unix_s == 2.0
