"""The operator's word on the mesh: what is kept of it, and what is read back."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from installer import mesh_word
from installer.mesh_word import Added, Switch, Word, WordError
from interceptor.node import Node, Scope
from tests.support.machines import STATE


def test_word_survives_its_file(tmp_path: Path) -> None:
    word, path = Word(), tmp_path / "state" / mesh_word.NAME
    assert mesh_word.load(path) is None
    word.say(Switch.SHADOW, confirmed=False)
    word.add("/a.slice", shadow=True, forced=True)
    word.take_out("/b.slice")
    mesh_word.save(path, word)
    assert mesh_word.load(path) == word
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == [mesh_word.NAME]


def test_word_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, done = tmp_path / mesh_word.NAME, []
    monkeypatch.setattr(os, "fsync", lambda fd: done.append(path.exists()))
    mesh_word.save(path, Word())
    assert done == [False, True]


def test_last_word_on_a_cgroup_counts() -> None:
    word = Word()
    word.take_out("/a")
    word.add("/a")
    assert (word.added, word.taken_out) == ({"/a": Added()}, [])
    word.take_out("/a")
    assert (word.added, word.taken_out) == ({}, ["/a"])
    word.forget("/a")
    assert word.taken_out == ["/a"]


@pytest.mark.parametrize(
    ("switch", "confirmed", "is_on"),
    [
        (Switch.ON, True, True),
        (Switch.SHADOW, True, True),
        (Switch.OFF, True, False),
        (Switch.ON, False, False),
    ],
)
def test_what_waits_to_be_confirmed_is_off_after_a_boot(
    switch: Switch, confirmed: bool, is_on: bool
) -> None:
    word = Word()
    word.say(switch, confirmed=confirmed)
    assert word.is_on is is_on


@pytest.mark.parametrize(
    "text",
    [
        "", "{bad", "[]", "{}", '{"format": 2}', "[" * 100_000,
        '{"format": 1, "switch": "maybe", "confirmed": true, "at_unix_s": 0, "who": "",'
        ' "added": {}, "taken_out": []}',
        '{"format": 1, "switch": "on", "confirmed": true, "at_unix_s": 0, "who": "",'
        ' "added": {"/a": {"odd": 1}}, "taken_out": []}',
    ],
)  # fmt: skip
def test_damaged_word_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / mesh_word.NAME
    path.write_text(text)
    with pytest.raises(WordError, match=str(path)):
        mesh_word.load(path)
    told: list[str] = []
    with mesh_word.changing(path, Word(Switch.ON), told.append) as word:
        word.add("/a")
    assert mesh_word.load(path) == Word(Switch.ON, added={"/a": Added()})
    assert path.with_name(mesh_word.BROKEN).read_text() == text
    assert len(told) == 1


def test_word_that_nobody_kept_is_what_the_pins_show(tmp_path: Path) -> None:
    """Of a version that kept none; what the configuration names needs no word."""
    scopes = tuple(
        Scope(name, "attached", shadow, ()) for name, shadow in [("/conf", False), ("/own", True)]
    )
    state = replace(STATE, shadow=True, scopes=scopes, taken_out=("/out",))
    word = mesh_word.of_kernel(Node(tmp_path), state, ("/conf",))
    assert word == Word(Switch.SHADOW, added={"/own": Added(shadow=True)}, taken_out=["/out"])
    pending = mesh_word.of_kernel(Node(tmp_path), replace(STATE, confirm_left_s=9.0), ())
    assert not pending.is_on


def test_lock_that_cannot_be_had_keeps_nobody_from_switching_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh_word, "LOCK_TIMEOUT_S", 0.0)
    path = tmp_path / mesh_word.NAME
    with mesh_word.locked(path), mesh_word.locked(path):
        pass
    with mesh_word.locked(tmp_path / "none" / mesh_word.NAME):
        assert not (tmp_path / "none").exists()
