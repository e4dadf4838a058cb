"""Fair queueing: order within a flow, even shares among flows, nobody starves."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given

from server.fair_order import FairOrder


def taken(order: FairOrder[str], count: int | None = None) -> list[str]:
    return [order.take().item for _ in range(len(order) if count is None else count)]


def test_flows_with_one_item_each_are_first_come_first_served() -> None:
    order: FairOrder[str] = FairOrder()
    for at, flow in enumerate("abcd"):
        order.put(flow, flow, cost=10 - at)
    assert taken(order) == list("abcd")


def test_who_comes_behind_a_flood_does_not_wait_for_it() -> None:
    order: FairOrder[str] = FairOrder()
    for at in range(100):
        order.put(f"flood {at}", "flood", cost=5)
    assert taken(order, 3) == ["flood 0", "flood 1", "flood 2"]
    order.put("late", "other", cost=5)
    # The one whose turn it was anyway came first.
    assert taken(order, 2) == ["flood 3", "late"]


def test_a_flow_gets_no_credit_for_the_time_in_which_it_asked_nothing() -> None:
    order: FairOrder[str] = FairOrder()
    for at in range(20):
        order.put(f"a{at}", "a", cost=1)
    taken(order, 10)
    for at in range(10):
        order.put(f"b{at}", "b", cost=1)
    assert [name[0] for name in taken(order, 10)].count("b") == 5


def test_shares_are_of_cost_not_of_items() -> None:
    order: FairOrder[str] = FairOrder()
    for at in range(60):
        order.put(f"a{at}", "a", cost=1)
        order.put(f"b{at}", "b", cost=3)
    first = Counter(name[0] for name in taken(order, 40))
    assert first == {"a": 30, "b": 10}


def test_what_is_put_back_keeps_its_place() -> None:
    order: FairOrder[str] = FairOrder()
    order.put("only", "a", cost=4)
    place = order.take()
    order.back(place)
    order.put("next", "b", cost=4)
    order.put("again", "a", cost=4)
    assert taken(order)[:2] == ["only", "next"]


def test_when_nothing_waits_nobody_owes() -> None:
    order: FairOrder[str] = FairOrder()
    order.put("large", "a", cost=1000)
    taken(order)
    order.put("a", "a", cost=1)
    order.put("b", "b", cost=1)
    assert taken(order) == ["a", "b"]


def test_who_has_two_waiting_is_not_starved_by_those_who_come_with_one() -> None:
    order: FairOrder[str] = FairOrder()
    order.put("a0", "a", cost=5)
    order.put("a1", "a", cost=5)
    came = []
    for at in range(20):
        order.put(f"new {at}", f"new {at}", cost=5)
        came.append(order.take().item)
    assert came.index("a1") < 6


def test_within_its_allowance_a_flow_is_served_as_it_came() -> None:
    order: FairOrder[str] = FairOrder(allowance=10)
    for at in range(5):
        order.put(f"a{at}", "a", cost=5)
        order.put(f"b{at}", f"b{at}", cost=5)
    # Two of five tokens each are allowed to wait beside the one whose turn begins now.
    assert taken(order) == ["a0", "b0", "a1", "b1", "a2", "b2", "b3", "b4", "a3", "a4"]


def test_an_allowance_is_given_once_not_again_and_again() -> None:
    order: FairOrder[str] = FairOrder(allowance=10)
    for at in range(40):
        order.put(f"a{at}", "a", cost=5)
    for at in range(40):
        order.put(f"b{at}", "b", cost=5)
    first = [name[0] for name in taken(order, 40)]
    assert abs(first.count("a") - 20) <= 2


def test_flows_that_are_gone_are_forgotten() -> None:
    order: FairOrder[str] = FairOrder()
    order.put("stays", "one", cost=10**9)
    order.put("stays", "one", cost=1)  # waits behind all of the others
    for at in range(10_000):
        order.put("x", f"flow {at}", cost=1)
        order.take()
    assert len(order._finish) < 200


def test_an_empty_order_says_so() -> None:
    with pytest.raises(IndexError):
        FairOrder[str]().take()


FLOWS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 20)), min_size=1, max_size=60)


@given(FLOWS, FLOWS, st.integers(0, 60))
def test_every_item_comes_once_in_its_flows_order(
    first: list[tuple[str, int]], then: list[tuple[str, int]], before: int
) -> None:
    order: FairOrder[tuple[str, int]] = FairOrder()
    for at, (flow, cost) in enumerate(first):
        order.put((flow, at), flow, cost)
    came = [order.take().item for _ in range(min(before, len(order)))]
    for at, (flow, cost) in enumerate(then, start=len(first)):
        order.put((flow, at), flow, cost)
    came += [order.take().item for _ in range(len(order))]
    assert len(came) == len(first) + len(then)
    for flow in "abc":
        own = [at for name, at in came if name == flow]
        assert own == sorted(own)
        assert own == [at for at, (name, _) in enumerate(first + then) if name == flow]


@given(FLOWS, st.integers(0, 40))
def test_two_flows_that_wait_differ_by_two_items_and_the_allowance_at_most(
    items: list[tuple[str, int]], allowance: int
) -> None:
    """The paper's theorem 1: |W_f / r_f - W_m / r_m| ≤ l_f / r_f + l_m / r_m, with equal weights."""
    order: FairOrder[tuple[str, int]] = FairOrder(allowance)
    for flow, cost in items:
        order.put((flow, cost), flow, cost)
    left = Counter(flow for flow, _ in items)
    longest = {flow: max((cost for name, cost in items if name == flow), default=0) for flow in "abc"}
    work = dict.fromkeys("abc", 0)
    while len(order):
        flow, cost = order.take().item
        work[flow] += cost
        left[flow] -= 1
        waiting = [name for name in "abc" if left[name]]
        for one in waiting:
            for other in waiting:
                assert abs(work[one] - work[other]) <= longest[one] + longest[other] + allowance
