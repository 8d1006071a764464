"""The copy on disk: it comes back, is replaced as a whole, and a bad one is refused."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from proxy.core.model import ServiceKey
from proxy.registry import file_worker
from proxy.registry.lastknown import LastKnownError, load, save
from proxy.registry.view import restored

KEY = ServiceKey("/service/demo", "g")
VIEW = restored("7-2", ["10.0.0.1:80?weight=5", "[::1]:80"], ["10.0.0.9:80"], ["10.0.0.1:80 drain"])


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "services.json"
    asyncio.run(save(path, {KEY: VIEW}))
    assert load(path) == {KEY: VIEW}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["services.json"]


def test_no_copy_is_no_error(tmp_path: Path) -> None:
    assert load(tmp_path / "services.json") == {}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"format": 2, "services": {}}',
        b'{"format": 1, "services": []}', b'{"format": 1, "services": {"/a": {}}}',
        b'{"format": 1, "services": {"/a": {"version": 1, "members": [], "kept": []}}}',
        b'{"format": 1, "services": {"/a": {"version": "1", "members": [1], "kept": []}}}',
        b'{"format": 1, "services": {"/a": '
        b'{"version": "1", "members": [], "kept": [], "marks": {}}}}',
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_corrupt_copy_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "services.json"
    path.write_bytes(content)
    with pytest.raises(LastKnownError, match=r"services\.json"):
        load(path)


def test_a_copy_of_an_agent_that_knew_no_marks_is_read(tmp_path: Path) -> None:
    path = tmp_path / "services.json"
    service = {"version": "7-2", "members": ["10.0.0.1:80"], "kept": []}
    path.write_text(json.dumps({"format": 1, "services": {"/a": service}}))
    assert [i.marks for view in load(path).values() for i in view.instances] == [frozenset()]


def test_a_bad_member_or_name_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "services.json"
    service = {"version": "7-2", "members": ["10.0.0.1:80", "nonsense"], "kept": []}
    path.write_text(json.dumps({"format": 1, "services": {"/a": service, "a b": service}}))
    assert {str(key): len(view.instances) for key, view in load(path).items()} == {"/a": 1}


def test_a_failed_save_leaves_the_old_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "services.json"
    asyncio.run(save(path, {KEY: VIEW}))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        file_worker.replace(path, b"half")
    assert load(path) == {KEY: VIEW}
    assert os.listdir(tmp_path) == ["services.json"]


def test_what_a_killed_save_left_is_swept_by_the_next_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "services.json"
    (tmp_path / ".services.json.abc123.new").write_text("half")
    (tmp_path / ".services.json.swp").write_text("an editor's")
    asyncio.run(save(path, {KEY: VIEW}))
    assert sorted(os.listdir(tmp_path)) == [".services.json.swp", "services.json"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(LastKnownError, match="nowhere"):
        asyncio.run(save(tmp_path / "nowhere" / "services.json", {}))


def test_a_large_copy_is_saved_without_a_thread_and_in_many_turns(tmp_path: Path) -> None:
    """20 000 instances: the loop turns at least once for every 600 of them."""
    path = tmp_path / "services.json"
    views = {
        ServiceKey(f"/service/s{n}"): restored(
            "7-2", [f"10.0.{n % 256}.{i}:80" for i in range(40)], ()
        )
        for n in range(500)
    }

    async def main() -> tuple[int, set[int]]:
        turns, threads = 0, set()
        saving = asyncio.ensure_future(save(path, views))
        while not saving.done():
            turns += 1
            threads.add(threading.active_count())
            await asyncio.sleep(0)
        saving.result()
        return turns, threads

    before = threading.active_count()
    turns, threads = asyncio.run(main())
    assert turns > 33
    assert threads == {before}
    assert load(path) == views
