"""When a task that cannot be served as its store says is tried again.

Owns: whose turn it is. Must not know: what is wrong with a task, the store, the catalogue. Trying costs a fetch, so it
is a few tasks at a time, and each the more seldom the longer it has been in vain.
"""

from __future__ import annotations

import heapq
from collections.abc import Set
from typing import Final

_AT_ONCE: Final = 64
_LONGEST_PAUSE: Final = 60.0


class Mending:
    """Turns by task. `pause` is that after the first try; it doubles with each."""

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._turns: dict[str, tuple[float, float]] = {}  # task → when, and the pause after that

    def afresh(self) -> None:
        """Let all have their turn now."""
        self._turns.clear()

    def due(self, troubled: Set[str], now: float) -> list[str]:
        """Those of `troubled` that are to be tried at `now`, the longest overdue first."""
        for task_id in self._turns.keys() - troubled:
            del self._turns[task_id]  # mended: what breaks later starts afresh
        ready = ((self._turns.get(task_id, (0.0, self._pause)), task_id) for task_id in troubled)
        turns = heapq.nsmallest(_AT_ONCE, (turn for turn in ready if turn[0][0] <= now))
        for (_, pause), task_id in turns:
            self._turns[task_id] = (now + pause, min(2 * pause, _LONGEST_PAUSE))
        return [task_id for _, task_id in turns]
