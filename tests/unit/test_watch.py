"""A watcher's opinions and its doubts, told as pings one after the other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.model import Address
from proxy.core.quorum import Settling, votes_needed
from proxy.core.watch import Opinion, WatchBook, WatchSettings

ALL = [Address(f"10.0.0.{n}", 80) for n in range(1, 11)]
A, B = ALL[:2]
SETTINGS = WatchSettings()


def book(*pings: tuple[Address, str]) -> WatchBook:
    made = WatchBook(SETTINGS)
    made.retain(ALL)
    for address in ALL:
        made.note(address, True)
    for address, outcomes in pings:
        seen(made, address, outcomes)
    return made


def doubts(watched: WatchBook) -> bool:
    return watched.in_doubt


def seen(watched: WatchBook, address: Address, outcomes: str) -> None:
    for outcome in outcomes:
        watched.note(address, outcome == "+")


def test_nothing_is_said_before_there_is_proof() -> None:
    made = WatchBook(SETTINGS)
    made.retain([A])
    assert made.opinion(A) is Opinion.UNSURE
    seen(made, A, "--")
    assert made.opinion(A) is Opinion.UNSURE
    assert made.opinion(Address("10.9.9.9", 1)) is Opinion.UNSURE


def test_three_failures_in_a_row_are_down_and_two_answers_are_up() -> None:
    assert book((A, "+--+--")).opinion(A) is Opinion.UP
    assert book((A, "---")).opinion(A) is Opinion.DOWN
    assert book((A, "---+")).opinion(A) is Opinion.DOWN
    assert book((A, "---+-+")).opinion(A) is Opinion.DOWN
    assert book((A, "---++")).opinion(A) is Opinion.UP


def test_what_was_entered_anew_has_to_fail_anew() -> None:
    made = book((A, "----"))
    made.forget(A)
    assert made.opinion(A) is Opinion.UNSURE
    seen(made, A, "--")
    assert made.opinion(A) is Opinion.UNSURE
    seen(made, A, "-")
    assert made.opinion(A) is Opinion.DOWN


def test_more_than_half_failing_is_doubt_and_half_is_not() -> None:
    made = book(*((address, "---") for address in ALL[:5]))
    assert not doubts(made)
    assert made.opinion(A) is Opinion.DOWN
    seen(made, ALL[5], "-")
    assert doubts(made)
    assert made.opinion(A) is Opinion.UNSURE
    assert list(made.addresses(Opinion.DOWN)) == []
    assert made.opinion(ALL[9]) is not Opinion.DOWN


def test_after_a_doubt_everything_has_to_fail_anew() -> None:
    made = book(*((address, "-----") for address in ALL))
    assert doubts(made)
    for address in ALL[:5]:
        seen(made, address, "+")
    assert not doubts(made)
    assert list(made.addresses(Opinion.DOWN)) == []
    seen(made, ALL[9], "--")
    assert made.opinion(ALL[9]) is Opinion.UNSURE
    seen(made, ALL[9], "-")
    assert made.opinion(ALL[9]) is Opinion.DOWN


def test_an_answer_counts_in_doubt_too() -> None:
    made = book(*((address, "---") for address in ALL[1:]))
    assert doubts(made)
    seen(made, A, "++")
    assert made.opinion(A) is Opinion.UP


def test_one_dead_instance_of_one_is_no_doubt() -> None:
    made = WatchBook(SETTINGS)
    made.retain([A])
    seen(made, A, "---")
    assert not doubts(made)
    assert made.opinion(A) is Opinion.DOWN


def test_what_is_not_followed_any_more_does_not_weigh() -> None:
    made = book(*((address, "---") for address in ALL[:6]))
    assert doubts(made)
    made.retain(ALL[5:])
    assert (made.pinged, made.in_doubt) == (4, False)


events = st.lists(
    st.tuples(st.sampled_from(["+", "-", "forget", "drop", "keep"]), st.integers(0, 9)),
    max_size=120,
)


@given(events)
def test_down_means_fall_failures_since_the_last_answer_reset_or_doubt(
    steps: list[tuple[str, int]],
) -> None:
    made = WatchBook(SETTINGS)
    made.retain(ALL)
    failures = dict.fromkeys(ALL, 0)
    last: dict[Address, bool] = {}
    down: set[Address] = set()
    doubted = False
    for kind, number in steps:
        address = ALL[number]
        if kind in "+-":
            made.note(address, kind == "+")
            failures[address] = 0 if kind == "+" else failures[address] + 1
            last[address] = kind == "+"
        elif kind == "forget":
            made.forget(address)
            failures[address] = 0
            last.pop(address, None)
        else:
            made.retain([a for a in ALL if a != address] if kind == "drop" else ALL)
            if kind == "drop":
                failures[address] = 0
                last.pop(address, None)
        if doubted and not made.in_doubt:
            failures = dict.fromkeys(ALL, 0)
            last = {a: well for a, well in last.items() if well}
        if kind == "drop":
            made.retain(ALL)
        doubted = made.in_doubt
        assert made.pinged == len(last)
        assert made.failing == sum(not well for well in last.values())
        fresh = set(made.addresses(Opinion.DOWN)) - down
        assert all(failures[a] >= SETTINGS.fall for a in fresh)
        down = set(made.addresses(Opinion.DOWN))
        assert not (down and made.in_doubt)


def test_a_majority_of_those_alive() -> None:
    assert [votes_needed(live, 0) for live in (0, 1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3, 3]
    assert votes_needed(1, 2) == 2
    assert votes_needed(5, 2) == 3


def test_who_has_just_come_does_not_act() -> None:
    settling = Settling(lease_s=6.0)
    assert not settling.may_act(100.0)
    settling.renewed(100.0, was_held=False)
    settling.renewed(103.0, was_held=True)
    assert not settling.may_act(105.9)
    assert settling.may_act(106.0)
    settling.renewed(107.0, was_held=False)
    assert not settling.may_act(107.0)
    assert settling.may_act(113.0)
    settling.lost()
    assert not settling.may_act(200.0)
