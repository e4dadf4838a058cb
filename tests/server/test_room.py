"""Room for all, and something always left for who comes next."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from server.room import Room


def fill(room: Room, flow: str, amount: int = 1) -> int:
    """Take until it is refused; how much it has got."""
    got = 0
    while not room.refuses(flow, amount):
        room.take(flow, amount)
        got += amount
    return got


def test_a_flow_alone_has_three_quarters() -> None:
    room = Room(100)
    assert fill(room, "a") == 75
    assert room.refuses("a", 1) == "flow"


def test_two_that_flood_come_to_the_same_and_leave_a_seventh() -> None:
    room = Room(70)
    for _ in range(200):  # in turns, and giving back in between: who came first has no advantage that lasts
        for flow in "ab":
            if not room.refuses(flow, 1):
                room.take(flow, 1)
        if room.refuses("a", 1):
            room.give("a", 1)
    assert abs(room.total - 60) <= 2
    assert room.refuses("c", 1) == ""


def test_who_has_nothing_may_send_as_much_as_there_is_at_once() -> None:
    room = Room(10)
    assert room.refuses("a", 10) == ""
    assert room.refuses("a", 11) == "all"
    room.take("a", 10)
    assert room.refuses("b", 1) == "all"
    room.give("a", 10)
    assert (room.total, room.refuses("b", 10)) == (0, "")


def test_a_flood_does_not_take_the_others_room() -> None:
    room = Room(1000)
    fill(room, "flood")
    assert [room.refuses(f"task {at}", 1) for at in range(5)] == [""] * 5
    for at in range(100):
        assert room.refuses(f"task {at}", 1) == ""
        room.take(f"task {at}", 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30), st.booleans()), max_size=80))
def test_it_never_holds_more_than_its_limit_and_counts_right(
    steps: list[tuple[str, int, bool]],
) -> None:
    room = Room(50)
    held: list[tuple[str, int]] = []
    for flow, amount, gives in steps:
        if gives and held:
            room.give(*held.pop(0))
        elif not room.refuses(flow, amount):
            room.take(flow, amount)
            held.append((flow, amount))
        assert room.total == sum(amount for _, amount in held) <= 50
    for one in held:
        room.give(*one)
    assert room.total == 0
    assert not room._own


def test_what_was_not_taken_cannot_be_given_back() -> None:
    with pytest.raises(KeyError):
        Room(5).give("a", 1)
