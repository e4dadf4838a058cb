"""Whose turn it is: shares of the device that do not depend on who asks most. Knows no torch, HTTP or prompt.

Owns the order in which what waits is taken, and nothing else. Each item is of a flow (a task, here). In first come,
first served, a flow that asks a hundred times as much makes all others wait behind its hundred; here each flow that
waits gets the same share of tokens, and what one leaves the others share. Items of one flow keep their order, and
flows that have only a little waiting, by an allowance, are served as they came: between those who do not flood the
longest wait is shortest that way.

Fair queueing by start tags (Goyal, Vin and Cheng, "Start-time Fair Queuing", 1996, section 2): an item's start tag is
the larger of the virtual time at which it came and its flow's last finish tag; its finish tag is that and its cost; the
least start tag goes first. Virtual time is not theirs, which stands still for as long as new flows keep coming, and who
has two items waiting would starve: it also grows by what is served, divided by the flows that wait (Bennett and Zhang,
"Hierarchical packet fair queueing algorithms", 1997, equation 23).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

T = TypeVar("T")
# Flows that are remembered beyond twice those that can have something waiting, before the others are forgotten.
_FORGET_ABOVE: Final = 64


@dataclass(frozen=True, slots=True, order=True)
class Place(Generic[T]):
    """An item's place in the order."""

    start: float
    arrived: int
    item: T = field(compare=False)
    flow: Hashable = field(compare=False)
    cost: int = field(compare=False)


class FairOrder(Generic[T]):
    """What waits, in the order in which it is to be taken. Not safe among threads."""

    def __init__(self, allowance: int = 0) -> None:
        """`allowance` is the cost that a flow may have waiting before its items wait longer than others'."""
        self._allowance = allowance
        self._heap: list[Place[T]] = []
        self._waiting: Counter[Hashable] = Counter()  # items of each flow
        self._finish: dict[Hashable, float] = {}  # each flow's last finish tag, where it lies ahead
        self._now = self._before = 0.0  # virtual time, and what it was before the last one was taken
        self._arrived = 0

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, item: T, flow: Hashable, cost: int) -> None:
        """Let an item wait behind what its flow has waiting; `cost` is what its turn will take."""
        finish = max(self._now, self._finish.get(flow, 0.0))
        start = max(self._now, finish - self._allowance)
        self._finish[flow] = finish + cost
        self._insert(Place(start, self._arrived, item, flow, cost))
        self._arrived += 1
        if len(self._finish) > 2 * len(self._heap) + _FORGET_ABOVE:
            self._finish = {one: tag for one, tag in self._finish.items() if tag > self._now}

    def take(self) -> Place[T]:
        """Whose turn it is. IndexError when nobody waits."""
        place = heapq.heappop(self._heap)
        self._before = self._now
        self._now = max(self._now, place.start) + place.cost / len(self._waiting)
        if self._waiting[place.flow] == 1:
            del self._waiting[place.flow]
        else:
            self._waiting[place.flow] -= 1
        if not self._heap:  # nobody waits: nobody owes anything
            self._finish.clear()
        return place

    def back(self, place: Place[T]) -> None:
        """Put back what was taken last: its turn is not over, and it keeps its place."""
        self._now = self._before
        self._finish.setdefault(place.flow, max(self._now, place.start) + place.cost)
        self._insert(place)

    def _insert(self, place: Place[T]) -> None:
        heapq.heappush(self._heap, place)
        self._waiting[place.flow] += 1
