"""A hop: the deadline shrinks, the attempt is told, the trace goes on under a new span."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.mesh import RequestHeader, child_trace, next_hop, remaining_ms

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def test_deadline_shrinks_by_the_time_spent_here() -> None:
    assert remaining_ms(6.0, now_s=5.25) == 750
    assert remaining_ms(6.0, now_s=5.2509) == 749
    assert remaining_ms(6.0, now_s=6.5) == 0


@given(st.integers(0, 10**7), st.lists(st.floats(0, 10), max_size=5))
def test_deadline_never_grows_over_any_number_of_hops(left_ms: int, hops: list[float]) -> None:
    now_s = 0.0
    for spent_s in hops:
        after_ms = remaining_ms(now_s + left_ms / 1000, now_s + spent_s)
        assert 0 <= after_ms <= left_ms
        left_ms, now_s = after_ms, now_s + spent_s


def test_child_keeps_the_trace_and_gets_a_span_of_its_own() -> None:
    parent, state = child_trace(PARENT, "a=1,b=2", Random(1).getrandbits)
    assert re.fullmatch(rf"00-{TRACE}-[0-9a-f]{{16}}-01", parent)
    assert parent != PARENT
    assert state == "a=1,b=2"


@pytest.mark.parametrize(
    "invalid",
    [
        "",
        "nonsense",
        PARENT.upper(),
        PARENT + "-extra",
        PARENT[:-1],
        PARENT + "\n",
        PARENT.replace(TRACE, "0" * 32),
        PARENT.replace("00f067aa0ba902b7", "0" * 16),
        "ff" + PARENT[2:],
        PARENT.replace("4bf9", "４bf9"),
    ],
)
@pytest.mark.parametrize("sampled", [True, False])
def test_a_new_trace_where_there_is_none(invalid: str, sampled: bool) -> None:
    parent, state = child_trace(invalid, "a=1", Random(1).getrandbits, sampled)
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", parent)
    assert parent.endswith("1" if sampled else "0")
    assert TRACE not in parent
    assert state == ""


def test_newer_version_is_read_as_ours_and_leaves_as_ours() -> None:
    parent, _ = child_trace(f"cc-{TRACE}-00f067aa0ba902b7-ff-more", "", Random(1).getrandbits)
    assert re.fullmatch(rf"00-{TRACE}-[0-9a-f]{{16}}-01", parent)


def test_ids_are_never_all_zero() -> None:
    parent, _ = child_trace("", "", lambda _: 0)
    assert parent == f"00-{1:032x}-{1:016x}-00"


def test_long_tracestate_is_cut_between_members() -> None:
    members = ",".join(f"k{n:03}={'v' * 20}" for n in range(40))
    _, state = child_trace(PARENT, members, Random(1).getrandbits)
    assert len(state) <= 512
    assert members.startswith(state + ",")
    assert child_trace(PARENT, "x" * 600, Random(1).getrandbits)[1] == ""


def test_next_hop_changes_nothing_else() -> None:
    header = RequestHeader(
        "/s", "m", "g", 2, 500, 0, PARENT, "a=1", "app", "zone", {"k": "v"}, b"\x0a\x02/s"
    )
    bits = Random(1).getrandbits
    onward = next_hop(header, codec=2, deadline_ms=375, attempt=1, bits=bits)
    assert (onward.deadline_ms, onward.attempt, onward.tracestate) == (375, 1, "a=1")
    assert onward.traceparent.startswith(f"00-{TRACE}-")
    same = ("service", "method", "group", "codec", "source_app", "source_zone", "props", "received")
    for name in same:
        assert getattr(onward, name) == getattr(header, name)
