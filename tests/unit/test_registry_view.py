"""The rule that keeps routes alive, told as what Redis shows one reading after another."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.registry.view import ServiceView, expired, history_lost, merged, restored

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"
GRACE_S = 90.0


def read(
    known: ServiceView | None,
    version: str | None,
    *members: str,
    now_s: float = 0.0,
    marks: Iterable[str] = (),
) -> ServiceView:
    return merged(known, version, frozenset(members), now_s, GRACE_S, frozenset(marks))


def routed(view: ServiceView) -> set[str]:
    return {str(instance.address) for instance in view.instances}


def test_a_set_is_taken_as_it_is() -> None:
    view = read(read(None, "7-1", A, B), "7-2", B, C)
    assert routed(view) == {B, C}
    assert not view.kept


def test_an_empty_set_under_a_new_version_is_deliberate() -> None:
    assert routed(read(read(None, "7-1", A), "7-2")) == set()


def test_an_empty_set_under_the_same_version_is_not_deliberate() -> None:
    assert routed(read(read(None, "7-1", A), "7-1")) == {A}


def test_a_lost_version_keeps_everything() -> None:
    view = read(read(None, "7-3", A, B), None)
    assert routed(view) == {A, B}
    assert view.kept_until_s is None


def test_after_a_loss_the_rest_stays_beside_the_first_to_return() -> None:
    view = read(read(None, "7-3", A, B, C), None, now_s=10)
    view = read(view, "9-1", A, now_s=5000)
    assert routed(view) == {A, B, C}
    assert set(view.kept) == {B, C}
    view = read(view, "9-2", A, B, now_s=5010)
    assert routed(expired(view, 5089.9)) == {A, B, C}
    assert routed(expired(view, 5090)) == {A, B}


def test_returned_with_other_parameters_is_not_there_twice() -> None:
    view = read(read(read(None, "7-1", A), None), "9-1", f"{A}?weight=5")
    assert [i.weight for i in view.instances] == [5]


def test_returned_and_deregistered_is_gone() -> None:
    view = read(read(read(None, "7-1", A, B), None), "9-1", A)
    view = read(view, "9-2", now_s=1)
    assert routed(view) == {B}
    assert routed(expired(view, 10_000)) == {B}, "the last ones stay while the set is empty"


def test_a_version_from_a_backup_is_a_loss() -> None:
    assert routed(read(read(None, "7-9", A, B), "7-4", A)) == {A, B}


def test_an_opaque_version_has_no_order() -> None:
    view = read(read(None, "d41d8cd9", A, B), "0cc175b9", B)
    assert routed(view) == {B}
    assert routed(read(view, "e1671797")) == set()
    assert routed(read(view, None)) == {B}


def test_a_set_of_broken_members_only_is_no_reason_to_drop_routes() -> None:
    view = read(read(None, "7-1", A), "7-2", "nonsense")
    assert routed(view) == {A}
    assert len(view.broken) == 1
    assert view.cardinality == 1


def test_broken_and_doubled_members_are_left_out_and_named() -> None:
    view = read(None, "7-1", A, f"{A}?weight=5", "db.example:80")
    assert routed(view) == {A}
    assert len(view.broken) == 2


def test_a_restored_copy_goes_on_where_it_was() -> None:
    view = restored("9-1", [A], [B, "nonsense"])
    assert routed(view) == {A, B}
    assert routed(read(view, "9-1", A, now_s=5)) == {A, B}
    assert routed(read(read(view, "9-2", A, C, now_s=5), "9-2", A, C, now_s=95)) == {A, C}


def marks(view: ServiceView) -> dict[str, set[str]]:
    return {str(i.address): set(i.marks) for i in view.instances if i.marks}


def test_marks_belong_to_addresses_and_go_when_they_are_cleared() -> None:
    view = read(None, "7-1", A, B, marks=[f"{A} drain", f"{A} later", f"{C} maint"])
    assert marks(view) == {A: {"drain", "later"}}
    assert marks(read(view, "7-2", f"{A}?weight=5", B, marks=[f"{A} drain"])) == {A: {"drain"}}
    assert marks(read(view, "7-2", A, B)) == {}


def test_the_mesh_mark_adds_the_protocol_once() -> None:
    view = read(None, "7-1", A, f"{B}?proto=mesh&proto=resp", marks=[f"{A} mesh", f"{B} mesh"])
    assert [i.protocols for i in view.instances] == [("resp", "mesh"), ("mesh", "resp")]
    assert [i.protocols for i in read(view, "7-2", A, B).instances] == [("resp",), ("resp",)]


def test_marks_that_cannot_be_read_are_named_and_harm_nothing() -> None:
    view = read(None, "7-1", A, marks=["nonsense", f"{A} ", f"{A} Drain", "", f"{A} maint"])
    assert marks(view) == {A: {"maint"}}
    assert len(view.broken) == 4


def test_a_lost_instance_keeps_its_marks_until_it_registers_again() -> None:
    view = read(read(None, "7-1", A, B, marks=[f"{A} drain", f"{B} maint"]), None)
    assert marks(view) == {A: {"drain"}, B: {"maint"}}
    assert marks(read(view, "9-1", A)) == {B: {"maint"}}


def test_marks_survive_in_a_copy() -> None:
    assert marks(restored("9-1", [A], [B], [f"{A} drain", f"{B} mesh", "x"])) == {
        A: {"drain"}, B: {"mesh"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("known", "seen", "lost"),
    [
        (None, None, False), (None, "1-1", False), ("hash", None, False), ("1-1", "1-1", False),
        ("1-1", "1-2", False), ("1-9", "1-10", False), ("1-2", "1-1", True), ("1-1", "2-5", True),
        ("1-1", None, True), ("1-1", "hash", True),
    ],
)  # fmt: skip
def test_history(known: str | None, seen: str | None, lost: bool) -> None:
    assert history_lost(known, seen) is lost


readings = st.lists(
    st.tuples(
        st.sampled_from([None, "7-1", "7-2", "7-3", "8-1", "8-2", "hash"]),
        st.frozensets(st.sampled_from([A, B, C, "nonsense", f"{A}?weight=5"])),
        st.floats(0, 100),
    )
)


@given(readings)
def test_routes_end_only_by_a_deliberate_change(
    steps: list[tuple[str | None, frozenset[str], float]],
) -> None:
    view, now_s = ServiceView(), 0.0
    for version, texts, passed_s in steps:
        now_s += passed_s
        before = view
        view = merged(before, version, texts, now_s, GRACE_S)
        addresses = [instance.address for instance in view.instances]
        assert len(addresses) == len(set(addresses))
        assert {i.address for i in view.members.values()} <= set(addresses)
        if before.instances and not view.instances:
            assert not texts
            assert version not in (None, before.version)
            assert not history_lost(before.version, version)
