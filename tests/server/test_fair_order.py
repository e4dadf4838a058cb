"""Fair queueing: order within a flow, even shares among flows, nobody starves."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given

from server.fair_order import FairOrder

Item = tuple[str, int, int]  # flow, its how manieth, cost


class Line:
    """An order whose items have their costs with them."""

    def __init__(self, allowance: int = 0) -> None:
        self.order: FairOrder[Item] = FairOrder(allowance)
        self.put_in: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()

    def put(self, flow: str, cost: int = 5, times: int = 1) -> None:
        for _ in range(times):
            self.order.put((flow, self.put_in[flow], cost), flow)
            self.put_in[flow] += 1
            self.waiting[flow] += 1

    def take(self) -> Item:
        item = self.order.first()
        self.order.served(item[2], again=False)
        self.waiting[item[0]] -= 1
        return item

    def names(self, count: int) -> list[str]:
        return ["{}{}".format(*self.take()) for _ in range(count)]


def test_flows_with_one_item_each_are_first_come_first_served() -> None:
    line = Line()
    for at, flow in enumerate("abcd"):
        line.put(flow, cost=10 - at)
    assert line.names(4) == ["a0", "b0", "c0", "d0"]


def test_who_comes_behind_a_flood_does_not_wait_for_it() -> None:
    line = Line()
    line.put("flood", times=100)
    assert line.names(3) == ["flood0", "flood1", "flood2"]
    line.put("late")
    # The one whose turn it was anyway came first.
    assert line.names(2) == ["flood3", "late0"]


def test_a_flow_gets_no_credit_for_the_time_in_which_it_asked_nothing() -> None:
    line = Line()
    line.put("a", times=20)
    line.names(10)
    line.put("b", times=10)
    assert [name[0] for name in line.names(10)].count("b") == 5


def test_shares_are_of_cost_not_of_items() -> None:
    line = Line()
    for _ in range(60):
        line.put("a", cost=1)
        line.put("b", cost=3)
    assert Counter(name[0] for name in line.names(40)) == {"a": 30, "b": 10}


def test_an_item_whose_turn_is_not_over_waits_behind_its_flows_others() -> None:
    line = Line()
    line.put("a", times=2)
    line.put("b", times=2)
    line.order.served(5, again=True)  # a0
    assert line.names(4) == ["b0", "a1", "b1", "a0"]


def test_what_is_given_up_costs_its_flow_nothing() -> None:
    line = Line()
    line.put("a", times=1000)
    line.put("b", times=2)
    for _ in range(999):
        assert line.order.first()[0] == "a"
        line.order.drop()
    assert line.names(3) == ["a999", "b0", "b1"]


def test_when_nothing_waits_nobody_owes() -> None:
    line = Line()
    line.put("a", cost=1000)
    line.take()
    assert not line.order
    line.put("a", cost=1)
    line.put("b", cost=1)
    assert line.names(2) == ["a1", "b0"]


def test_who_has_two_waiting_is_not_starved_by_those_who_come_with_one() -> None:
    line = Line()
    line.put("a", times=2)
    came = []
    for at in range(20):
        line.put(f"new{at}-")
        came += line.names(1)
    assert came.index("a1") < 6


def test_within_its_allowance_a_flow_is_served_as_it_came() -> None:
    line = Line(allowance=10)
    for at in range(5):
        line.put("a")
        line.put(f"b{at}-")
    # It may be two of five tokens ahead beside the one whose turn it is.
    assert line.names(10) == ["a0", "b0-0", "a1", "b1-0", "a2", "b2-0", "b3-0", "b4-0", "a3", "a4"]


def test_an_allowance_is_given_once_not_again_and_again() -> None:
    line = Line(allowance=10)
    line.put("a", times=40)
    line.put("b", times=40)
    first = [name[0] for name in line.names(40)]
    assert abs(first.count("a") - 20) <= 2


def test_flows_that_are_gone_are_forgotten() -> None:
    line = Line()
    line.put("one", cost=10**9, times=2)  # the second waits behind all of the others
    for at in range(10_000):
        line.put(f"flow {at}", cost=1)
        line.take()
    assert len(line.order._finish) < 200


def test_an_empty_order_says_so() -> None:
    with pytest.raises(IndexError):
        FairOrder[str]().first()


STEPS = st.lists(
    st.one_of(st.tuples(st.sampled_from("abc"), st.integers(1, 20)), st.none()), min_size=1, max_size=120
)


@given(STEPS, st.integers(0, 40))
def test_every_item_comes_once_in_its_flows_order(
    steps: list[tuple[str, int] | None], allowance: int
) -> None:
    """None is a take."""
    line, came = Line(allowance), []
    for step in steps:
        if step is not None:
            line.put(*step)
        elif line.order:
            came.append(line.take())
    while line.order:
        came.append(line.take())
    assert len(came) == sum(line.put_in.values())
    for flow in "abc":
        assert [at for name, at, _ in came if name == flow] == list(range(line.put_in[flow]))


@given(STEPS, st.integers(0, 40), st.integers(2, 4))
def test_flows_that_wait_all_the_time_differ_by_one_item_and_the_allowance_at_most(
    steps: list[tuple[str, int] | None], allowance: int, backlog: int
) -> None:
    """As in the paper's theorem 1, for two that never stop waiting while others come and go: who is ahead by more than
    the allowance has no turn before the other has.
    """
    line, work = Line(allowance), Counter[str]()
    costs = {"x": 20, "y": 1}
    for step in steps * 3:
        for flow, cost in costs.items():  # as soon as one is answered the next one is asked
            line.put(flow, cost, backlog - line.waiting[flow])
        if step is not None:
            line.put(*step)
            continue
        flow, _, cost = line.take()
        work[flow] += cost
        assert abs(work["x"] - work["y"]) <= max(costs.values()) + allowance
