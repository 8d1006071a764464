"""Switches by name: what they say, what they hide, and that silence changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from installer import switches
from installer.switches import SwitchBoard
from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.core.switches import BadStatement, Statement, Target, What, parse_all
from proxy.registry.static import StaticRegistry
from proxy.registry.switched import SwitchedRegistry

A, B = ServiceKey.parse("/service/a"), ServiceKey.parse("/service/b")
OFF, ON = Statement(False, 1, "ann@node", "it is slow"), Statement(True, 2, "bob@node", "")
SHARED, ONLY_A = Address("10.0.0.1", 5000), Address("10.0.0.2", 5000)


def table() -> ServiceTable:
    return ServiceTable.build({A: [Instance(SHARED), Instance(ONLY_A)], B: [Instance(SHARED)]})


@pytest.fixture
def inner(tmp_path: Path) -> StaticRegistry:
    return StaticRegistry(tmp_path / "services.toml")


@pytest.fixture
def board(tmp_path: Path, inner: StaticRegistry) -> SwitchBoard:
    made = SwitchBoard("node-a", "chat", tmp_path, SwitchedRegistry(inner))
    made.registry._on_table(table())
    inner._board.table = table()
    return made


@pytest.mark.parametrize("said", [OFF, ON])
def test_statement_and_target_survive_their_text(said: Statement) -> None:
    assert Statement.parse(str(said)) == said
    for what in What:
        target = Target(what, "/service/a")
        assert Target.parse(str(target)) == target


@pytest.mark.parametrize("text", ["", "service", "service ", "thing x", "service a b"])
def test_target_that_cannot_be_read(text: str) -> None:
    with pytest.raises(BadStatement):
        Target.parse(text)


def test_broken_statements_are_told_and_the_others_count() -> None:
    found, broken = parse_all(
        [("service /a", "off 1 me why"), ("service /b", "of 1"), ("x", "on 1")]
    )
    assert found == {Target(What.SERVICE, "/a"): Statement(False, 1, "me", "why")}
    assert len(broken) == 2


def test_service_that_is_off_is_unknown_and_a_shared_address_is_not_hidden(
    board: SwitchBoard,
) -> None:
    board.on_shared({Target(What.SERVICE, A.uri): OFF})
    assert board.registry.table.uris == {B.uri}
    assert board.registry.hidden == {ONLY_A}
    board.on_shared({Target(What.SERVICE, A.uri): ON})
    assert board.registry.table.uris == {A.uri, B.uri}
    assert board.registry.hidden == frozenset()


@pytest.mark.parametrize("target", [Target(What.APPLICATION, "chat"), Target(What.NODE, "node-a")])
def test_application_or_node_that_is_off_hides_everything(
    board: SwitchBoard, target: Target
) -> None:
    board.on_shared({target: OFF})
    assert board.is_off
    assert board.registry.table.uris == frozenset()
    board.on_shared({target: ON})
    assert board.registry.table.uris == {A.uri, B.uri}
    assert board.describe() == []


def test_others_are_not_meant(board: SwitchBoard) -> None:
    board.on_shared({Target(What.APPLICATION, "mail"): OFF, Target(What.NODE, "node-b"): OFF})
    assert not board.is_off


def test_registry_that_was_emptied_switches_nothing_on(board: SwitchBoard) -> None:
    board.on_shared({Target(What.SERVICE, A.uri): OFF})
    board.on_shared({})
    assert A.uri not in board.registry.table.uris


def test_off_stays_off_through_a_restart_without_the_registry(
    board: SwitchBoard, inner: StaticRegistry, tmp_path: Path
) -> None:
    board.on_shared({Target(What.SERVICE, A.uri): OFF})
    later = SwitchBoard("node-a", "chat", tmp_path, SwitchedRegistry(inner))
    later.start()
    assert A.uri not in later.registry.table.uris


def test_off_here_or_off_there_is_off(board: SwitchBoard, tmp_path: Path) -> None:
    switches.save(tmp_path / switches.LOCAL, {Target(What.SERVICE, A.uri): OFF})
    board.reload()
    board.on_shared({Target(What.SERVICE, A.uri): ON})
    assert A.uri not in board.registry.table.uris
    assert [said["where"] for said in board.describe()] == ["node"]


@pytest.mark.parametrize("text", ["[1]", "{bad", "", '{"service /service/a": "of 1"}'])
def test_file_that_is_damaged_meanwhile_changes_nothing(
    board: SwitchBoard, tmp_path: Path, text: str
) -> None:
    path = tmp_path / switches.LOCAL
    switches.save(path, {Target(What.SERVICE, A.uri): OFF})
    board.reload()
    path.write_text(text)
    board.reload()
    assert A.uri not in board.registry.table.uris
    with pytest.raises(switches.SwitchesError, match=str(path)):
        switches.read(path)


def test_what_can_be_read_of_a_damaged_file_counts(board: SwitchBoard, tmp_path: Path) -> None:
    path = tmp_path / switches.LOCAL
    path.write_text('{"service /service/a": "of 1", "service /service/b": "off 1 me why"}')
    board.start()
    assert board.registry.table.uris == {A.uri}


def test_file_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, done = tmp_path / switches.LOCAL, []
    monkeypatch.setattr(os, "fsync", lambda fd: done.append(path.exists()))
    switches.save(path, {Target(What.SERVICE, A.uri): OFF})
    assert done == [False, True]  # the file, and then its name
    assert path.stat().st_mode & 0o777 == 0o600


def test_service_that_is_off_is_known_and_one_that_is_not_there_is_not(board: SwitchBoard) -> None:
    board.on_shared({Target(What.SERVICE, A.uri): OFF})
    assert board.knows(A.uri) == {"known": True, "similar": []}
    assert board.knows("a") == {"known": False, "similar": [A.uri]}
    assert board.knows("nosuch") == {"known": False, "similar": []}
