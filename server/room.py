"""How much may be outstanding, and how much of it for one flow (a task, here). Owns the counts, and nothing else.

Without a bound for each flow, one that floods fills the queue, and all the others are refused. A fixed bound would
waste room that nobody else wants. So a flow may hold three times what is still free: alone it has three quarters of
all, two that flood have three sevenths each, and something is always left for who comes next (dynamic thresholds:
Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998, equation 1).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Literal

_TIMES_FREE: Final = 3


class Room:
    """Counts what each flow has outstanding. Belongs to one thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._own: dict[Hashable, int] = {}
        self.total = 0

    def refuses(self, flow: Hashable, amount: int) -> Literal["", "all", "flow"]:
        """Whether so much more has no room: in all of it, or in what is this flow's. Empty when it has.

        A flow that has nothing outstanding may have all that is free.
        """
        free = self._limit - self.total - amount
        if free < 0:
            return "all"
        own = self._own.get(flow, 0)
        return "flow" if own and own + amount > _TIMES_FREE * free else ""

    def take(self, flow: Hashable, amount: int) -> None:
        """Count it as outstanding."""
        if not amount:
            return
        self.total += amount
        self._own[flow] = self._own.get(flow, 0) + amount

    def give(self, flow: Hashable, amount: int) -> None:
        """Count it as outstanding no more."""
        if not amount:
            return
        self.total -= amount
        self._own[flow] -= amount
        if not self._own[flow]:
            del self._own[flow]
