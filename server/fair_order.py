"""Whose turn it is: shares of the device that do not depend on who asks most. Knows no torch, HTTP or prompt.

Owns the order in which what waits is taken, and nothing else. Each item is of a flow (a task, here). In first come,
first served, a flow that asks a hundred times as much makes all others wait behind its hundred; here each flow that
waits gets the same share of tokens, and what one leaves the others share. Items of one flow keep their order, and
flows that are ahead of the others by only a little, an allowance, are served as they came: between those who do not
flood the longest wait is shortest that way.

Fair queueing by start tags (Goyal, Vin and Cheng, "Start-time Fair Queuing", 1996, section 2): a flow's first item
starts, in virtual time, where the flow's last one ended, and not before now for a flow that had nothing waiting; the
least start tag goes first. Virtual time is not theirs, which stands still for as long as new flows keep coming, and who
has two items waiting would starve: it also grows by what is served, divided by the flows that wait (Bennett and Zhang,
"Hierarchical packet fair queueing algorithms", 1997, equation 23). Only what was served is charged: an item that is
given up costs its flow nothing.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

T = TypeVar("T")
# Flows that are remembered beyond twice those that wait, before those that are not ahead are forgotten.
_FORGET_ABOVE: Final = 64


class FairOrder(Generic[T]):
    """What waits, in the order in which it is to be taken. Not safe among threads."""

    def __init__(self, allowance: int = 0) -> None:
        """`allowance` is the cost by which a flow may be ahead before it waits longer than others."""
        self._allowance = allowance
        self._waiting: dict[
            Hashable, deque[tuple[float, int, T]]
        ] = {}  # when they came: virtual time, number
        self._turns: list[
            tuple[float, int, Hashable]
        ] = []  # a heap: start tag and number of each flow's first item
        self._finish: dict[Hashable, float] = {}  # where each flow's last turn ended
        self._now = 0.0
        self._arrived = 0

    def __bool__(self) -> bool:
        return bool(self._turns)

    def put(self, item: T, flow: Hashable) -> None:
        """Let an item wait behind what its flow has waiting."""
        self._arrived += 1
        came = (self._now, self._arrived, item)
        if flow in self._waiting:
            self._waiting[flow].append(came)
            return
        self._finish[flow] = max(self._now, self._finish.get(flow, 0.0))
        self._waiting[flow] = deque([came])
        self._take_turn(flow)
        if len(self._finish) > 2 * len(self._waiting) + _FORGET_ABOVE:
            self._finish = {
                one: tag for one, tag in self._finish.items() if tag > self._now or one in self._waiting
            }

    def first(self) -> T:
        """Whose turn it is. IndexError when nobody waits."""
        return self._waiting[self._turns[0][2]][0][2]

    def drop(self) -> None:
        """The first is given up: the next of its flow has the turn."""
        flow = heapq.heappop(self._turns)[2]
        self._waiting[flow].popleft()
        self._go_on(flow)

    def served(self, cost: int, *, again: bool) -> None:
        """The first has had its turn, which took `cost`; with `again` it waits for another behind its flow's others."""
        start, _, flow = heapq.heappop(self._turns)
        item = self._waiting[flow].popleft()[2]
        self._now = max(self._now, start) + cost / len(self._waiting)
        self._finish[flow] += cost
        if again:
            self._arrived += 1
            self._waiting[flow].append((self._now, self._arrived, item))
        self._go_on(flow)

    def _go_on(self, flow: Hashable) -> None:
        if self._waiting[flow]:
            self._take_turn(flow)
            return
        del self._waiting[flow]
        if not self._waiting:  # nobody waits: nobody owes anything
            self._finish.clear()

    def _take_turn(self, flow: Hashable) -> None:
        came, number, _ = self._waiting[flow][0]
        ends = self._finish[flow]
        # Behind the others: where its last turn ended. A little ahead: as it came. Further ahead: as far as it is.
        start = max(min(came, ends), ends - self._allowance)
        heapq.heappush(self._turns, (start, number, flow))
